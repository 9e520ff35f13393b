"""One damped Gauss-Newton step on F, exact at the penalties' kinks, in Numba. The algebra: step_algebra.py."""

import numpy as np
from numba import njit

from ado_kernels.fit.objective import ALPHA_HIGH_KINK, ALPHA_LOW_KINK, LOG_BETA_KINK, LOG_EPS_KINK, Floats
from ado_kernels.fit.step_algebra import (
    ALPHA_PENALTY_SLOPE,
    BETA_PENALTY_SLOPE,
    EPS_PENALTY_SLOPE,
    FACE_ALPHA_HIGH,
    FACE_ALPHA_LOW,
    FACE_LOG_BETA,
    FACE_LOG_EPS,
    FREE,
    GRADIENT,
    HELD,
    HELD_HIGH,
    INNER,
    OUTER,
    PAST,
    SHRINK,
    SMALLEST_ALPHA,
    TINY,
    VANISHING,
)

GRAD_B, GRAD_E, GRAD_A = GRADIENT
INNER_BB, INNER_BE, INNER_BA, INNER_EE, INNER_EA, INNER_AA = INNER
OUTER_BB, OUTER_BE, OUTER_BA, OUTER_EE, OUTER_EA, OUTER_AA = OUTER

Vector = tuple[float, float, float]
Matrix = tuple[float, float, float, float, float, float]  # entries 00, 01, 02, 11, 12, 22 of a symmetric 3 x 3 matrix
Law = tuple[float, float, float, float, float]  # eps, v, v with log_beta on its kink, alpha kept off 0, x0
# theta (P,), its law, the gradient of the sums, the damped matrix in the piece's coordinates, their jacobian (2, 3)
Model = tuple[Floats, Law, Vector, Matrix, Floats]


@njit(cache=True, nogil=True)
def copy_into(target: Floats, source: Floats) -> None:
    """target[:] = source without a check of shapes, whose error message alone costs Numba seconds to compile."""
    for i in range(target.size):
        target[i] = source[i]


@njit(cache=True, nogil=True)
def penalty_value(log_beta: float, log_eps: float, alpha: float) -> float:
    """The four penalty terms of F."""
    high = max(alpha - ALPHA_HIGH_KINK, 0.0) + max(log_beta - LOG_BETA_KINK, 0.0)
    return high - min(alpha, ALPHA_LOW_KINK) - min(log_eps - LOG_EPS_KINK, 0.0)


@njit(cache=True, nogil=True, error_model="numpy")
def solve_held(a: Matrix, g: Vector, held: tuple[bool, bool, bool], d: Floats) -> bool:
    """Minimises g.d + d'A d / 2 over the coordinates not held, in place; held ones keep d. False: A not positive."""
    # A held coordinate's row and column become the identity's; what they contributed moves to the right-hand side.
    a00, a01, a02, a11, a12, a22 = a
    r0, r1, r2 = -g[0], -g[1], -g[2]
    if held[0]:
        r1 -= a01 * d[0]
        r2 -= a02 * d[0]
        a00, a01, a02, r0 = 1.0, 0.0, 0.0, d[0]
    if held[1]:
        r0 -= a01 * d[1]
        r2 -= a12 * d[1]
        a01, a11, a12, r1 = 0.0, 1.0, 0.0, d[1]
    if held[2]:
        r0 -= a02 * d[2]
        r1 -= a12 * d[2]
        a02, a12, a22, r2 = 0.0, 0.0, 1.0, d[2]
    # L D L' by hand; A is positive definite where all three pivots are.
    l1 = a01 / a00
    l2 = a02 / a00
    d11 = a11 - l1 * a01
    d12 = a12 - l1 * a02
    d22 = a22 - l2 * a02 - d12 * d12 / d11
    if not (a00 > 0.0 and d11 > 0.0 and d22 > 0.0):
        return False
    y1 = r1 - l1 * r0
    d[2] = (r2 - l2 * r0 - d12 / d11 * y1) / d22
    d[1] = (y1 - d12 * d[2]) / d11
    d[0] = (r0 - a01 * d[1] - a02 * d[2]) / a00
    return True


@njit(cache=True, nogil=True, error_model="numpy")
def _tangent(state: tuple[int, int], law: Law, jacobian: Floats) -> None:
    """Writes d(log_beta, log_eps) / d(coordinates) of the piece into jacobian (2, 3); the last coordinate is alpha."""
    beta_state, eps_state = state
    eps, v, v_held, alpha, x0 = law
    jacobian[:] = 0.0
    jacobian[0, 0] = 1.0
    jacobian[1, 1] = 1.0
    if eps_state != HELD and (beta_state in (FREE, PAST)):  # (c, s, alpha), with v = s / alpha and eps = c - v
        jacobian[0, 0] = 0.0
        jacobian[0, 1] = 1.0 / (alpha * v)
        jacobian[0, 2] = x0 - 1.0 / alpha
        jacobian[1, 0] = 1.0 / eps
        jacobian[1, 1] = -1.0 / (alpha * eps)
        jacobian[1, 2] = v / (alpha * eps)
    elif eps_state != HELD:  # (-, c, alpha); on log_beta's kink v falls as alpha grows, and E = c - v rises
        jacobian[1, 1] = 1.0 / eps
        jacobian[1, 2] = x0 * v_held / eps if beta_state == HELD else 0.0
    elif beta_state in (FREE, PAST):  # (log v, -, alpha), with log_beta = log v + alpha x0
        jacobian[0, 2] = x0


@njit(cache=True, nogil=True, error_model="numpy")
def _retract(state: tuple[int, int], theta_P: Floats, law: Law, d: Floats, new_P: Floats) -> None:
    """Writes the parameters at displacement d into new_P (its alpha is set already).

    The coordinates are linear in the model but not in the law: v may change by SHRINK at most and eps fall to a tenth.
    Where one is clamped, d is set to the displacement that was made, so that the model is evaluated there.
    """
    beta_state, eps_state = state
    eps, v, v_held, alpha, x0 = law
    new_P[0] = LOG_BETA_KINK
    new_P[1] = LOG_EPS_KINK
    if beta_state == VANISHING:
        new_P[0] = theta_P[0] + np.log(SHRINK)
    if eps_state == HELD:
        if beta_state in (FREE, PAST):
            new_P[0] = theta_P[0] + d[0] + (new_P[2] - alpha) * x0
    elif beta_state in (FREE, PAST):
        new_v = min(max((alpha * v + d[1]) / new_P[2], SHRINK * v), v / SHRINK)
        new_eps = max(eps + v + d[0] - new_v, 0.1 * eps)
        d[0] = new_eps + new_v - eps - v
        d[1] = new_v * new_P[2] - v * alpha
        new_P[0] = np.log(new_v) + new_P[2] * x0
        new_P[1] = np.log(new_eps)
    else:
        moved = np.exp(LOG_BETA_KINK - new_P[2] * x0) - v_held if beta_state == HELD else 0.0
        new_eps = max(eps + d[1] - moved, 0.1 * eps)
        d[1] = new_eps - eps + moved
        new_P[1] = np.log(new_eps)


@njit(cache=True, nogil=True)
def _transform_matrix(jacobian: Floats, h: Matrix) -> Matrix:
    """The six entries of J' H J + TINY, J being the jacobian's two rows and (0, 0, 1)."""
    a0, a1, a2 = jacobian[0]
    e0, e1, e2 = jacobian[1]
    h00, h01, h02, h11, h12, h22 = h
    p0, q0 = h00 * a0 + h01 * e0, h01 * a0 + h11 * e0
    p1, q1 = h00 * a1 + h01 * e1, h01 * a1 + h11 * e1
    p2, q2 = h00 * a2 + h01 * e2 + h02, h01 * a2 + h11 * e2 + h12
    r2 = h02 * a2 + h12 * e2 + h22
    return (
        a0 * p0 + e0 * q0 + TINY,
        a0 * p1 + e0 * q1,
        a0 * p2 + e0 * q2,
        a1 * p1 + e1 * q1 + TINY,
        a1 * p2 + e1 * q2,
        a2 * p2 + e2 * q2 + r2 + TINY,
    )


@njit(cache=True, nogil=True)
def _face_allows(beta_state: int, eps_state: int, face: int | np.int64) -> bool:
    """Whether a search confined to `face` may use pieces of these two states."""
    if face == FACE_LOG_BETA:
        return beta_state == HELD
    return face != FACE_LOG_EPS or eps_state == HELD


@njit(cache=True, nogil=True)
def _face_allows_alpha(beta_state: int, alpha_state: int, face: int | np.int64) -> bool:
    """Whether it may use this state of alpha; a vanishing law keeps its alpha, hence one piece."""
    if beta_state == VANISHING:
        return alpha_state == FREE
    if face == FACE_ALPHA_LOW:
        return alpha_state == HELD
    return face != FACE_ALPHA_HIGH or alpha_state == HELD_HIGH


@njit(cache=True, nogil=True)
def _transform_gradient(jacobian: Floats, g: Vector) -> Vector:
    """J' g in the piece's coordinates."""
    return (
        jacobian[0, 0] * g[0] + jacobian[1, 0] * g[1],
        jacobian[0, 1] * g[0] + jacobian[1, 1] * g[1],
        jacobian[0, 2] * g[0] + jacobian[1, 2] * g[1] + g[2],
    )


@njit(cache=True, nogil=True, error_model="numpy")
def _solve_piece(state: tuple[int, int], alpha_state: int, model: Model, d: Floats, new_P: Floats) -> float:
    """Writes the piece's solution into new_P; returns the model's smooth part plus the penalty there (inf: none)."""
    theta_P, law, gradient, a, jacobian = model
    beta_state, eps_state = state
    holds_alpha = alpha_state in (HELD, HELD_HIGH) or beta_state == VANISHING
    # Displacements that held coordinates keep; solve_held overwrites the others. To shrink v to SHRINK v is a relative
    # change of SHRINK - 1, in which the loss is linear.
    d[0] = SHRINK - 1.0 if beta_state == VANISHING else LOG_BETA_KINK - theta_P[0]
    d[1] = LOG_EPS_KINK - theta_P[1]
    d[2] = 0.0
    if alpha_state == HELD:
        d[2] = ALPHA_LOW_KINK - theta_P[2]
    elif alpha_state == HELD_HIGH:
        d[2] = ALPHA_HIGH_KINK - theta_P[2]
    g_beta = gradient[0] + BETA_PENALTY_SLOPE[beta_state]
    g_eps = gradient[1] + EPS_PENALTY_SLOPE[eps_state]
    g_piece = (g_beta, g_eps, gradient[2] + ALPHA_PENALTY_SLOPE[alpha_state])
    held = (beta_state in (HELD, VANISHING), eps_state == HELD, holds_alpha)
    if not solve_held(a, _transform_gradient(jacobian, g_piece), held, d):
        return np.inf
    new_P[2] = theta_P[2] + d[2]
    if alpha_state == HELD:  # theta + (kink - theta) may round to beside the kink
        new_P[2] = ALPHA_LOW_KINK
    elif alpha_state == HELD_HIGH:
        new_P[2] = ALPHA_HIGH_KINK
    _retract(state, theta_P, law, d, new_P)
    # The smooth gradient alone: the penalty is added exactly, and not by the slope that the piece assumed.
    g = _transform_gradient(jacobian, gradient)
    a00, a01, a02, a11, a12, a22 = a
    value = g[0] * d[0] + g[1] * d[1] + g[2] * d[2]
    value += 0.5 * (a00 * d[0] * d[0] + a11 * d[1] * d[1] + a22 * d[2] * d[2])
    value += a01 * d[0] * d[1] + a02 * d[0] * d[2] + a12 * d[1] * d[2]
    return value + penalty_value(new_P[0], new_P[1], new_P[2])  # type: ignore[no-any-return]  # a float to Numba


@njit(cache=True, nogil=True)
def _one_sided_slope(slope: float, left: float, right: float) -> float:
    """The slope along which F falls, where the penalty adds `left` below the parameter and `right` above it; else 0."""
    return max(slope + left, 0.0) + min(slope + right, 0.0)


@njit(cache=True, nogil=True, error_model="numpy")
def single_parameter_gain(theta_P: Floats, sums: Floats, face: int | np.int64) -> float:
    """The largest fall of F that the majorising matrix promises when one parameter moves alone; 0: F is stationary."""
    log_beta, log_eps, alpha = theta_P
    beta = _one_sided_slope(sums[GRAD_B], 1.0 * (log_beta > LOG_BETA_KINK), 1.0 * (log_beta >= LOG_BETA_KINK))
    # log_eps is penalised downwards: the slope along -log_eps.
    eps = _one_sided_slope(-sums[GRAD_E], 1.0 * (log_eps < LOG_EPS_KINK), 1.0 * (log_eps <= LOG_EPS_KINK))
    left = 1.0 * (alpha > ALPHA_HIGH_KINK) - 1.0 * (alpha <= ALPHA_LOW_KINK)
    right = 1.0 * (alpha >= ALPHA_HIGH_KINK) - 1.0 * (alpha < ALPHA_LOW_KINK)
    slope = _one_sided_slope(sums[GRAD_A], left, right)
    best = 0.0
    if face != FACE_LOG_BETA:
        best = beta * beta / (sums[INNER_BB] + sums[OUTER_BB] + TINY)
    if face != FACE_LOG_EPS:
        best = max(best, eps * eps / (sums[INNER_EE] + sums[OUTER_EE] + TINY))
    if face not in (FACE_ALPHA_LOW, FACE_ALPHA_HIGH):
        best = max(best, slope * slope / (sums[INNER_AA] + sums[OUTER_AA] + TINY))
    return 0.5 * best


@njit(cache=True, nogil=True)
def _between_kinks(theta_P: Floats) -> bool:
    between = ALPHA_LOW_KINK < theta_P[2] < ALPHA_HIGH_KINK
    return between and theta_P[0] < LOG_BETA_KINK and theta_P[1] > LOG_EPS_KINK  # type: ignore[no-any-return]


@njit(cache=True, nogil=True, error_model="numpy")
def model_step(theta_P: Floats, sums: Floats, x0: float, damping: float, face: int | np.int64, new_P: Floats) -> float:
    """Writes the model's minimum into new_P and returns the change the model predicts there (inf: none found).

    sums: from `newton_sums`. damping: weight of the outer points' matrix; above 1 the inner one grows with it.
    face: NO_FACE, or the kink that theta_P is on and must stay on.
    """
    scale = max(1.0, damping)
    h = (
        scale * sums[INNER_BB] + damping * sums[OUTER_BB],
        scale * sums[INNER_BE] + damping * sums[OUTER_BE],
        scale * sums[INNER_BA] + damping * sums[OUTER_BA],
        scale * sums[INNER_EE] + damping * sums[OUTER_EE],
        scale * sums[INNER_EA] + damping * sums[OUTER_EA],
        scale * sums[INNER_AA] + damping * sums[OUTER_AA],
    )
    alpha = theta_P[2] if abs(theta_P[2]) > SMALLEST_ALPHA else SMALLEST_ALPHA
    law = (np.exp(theta_P[1]), np.exp(theta_P[0] - alpha * x0), np.exp(LOG_BETA_KINK - alpha * x0), alpha, x0)
    gradient = (sums[GRAD_B], sums[GRAD_E], sums[GRAD_A])
    here = penalty_value(theta_P[0], theta_P[1], theta_P[2])
    jacobian = np.empty((2, 3))
    d = np.empty(3)
    trial_P = np.empty(3)
    best = np.inf
    for pair in range(12):  # four states of log_beta times three of log_eps
        state = (pair // 3, pair % 3)
        if not _face_allows(state[0], state[1], face):
            continue
        _tangent(state, law, jacobian)
        model = (theta_P, law, gradient, _transform_matrix(jacobian, h), jacobian)
        for alpha_state in range(5):
            if not _face_allows_alpha(state[0], alpha_state, face):
                continue
            value = _solve_piece(state, alpha_state, model, d, trial_P)
            if pair == 0 and alpha_state == FREE and value < np.inf and _between_kinks(trial_P):
                # The first piece is the model without kinks; where its minimum lies between them no piece is lower.
                copy_into(new_P, trial_P)
                return value - here
            if value < best:
                best = value
                copy_into(new_P, trial_P)
    return best - here
