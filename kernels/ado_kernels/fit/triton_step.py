"""The step of the fit in Triton: one search's step, with every piece of the penalty in a lane of its own.

The algebra is in step_algebra.py; functions have the names and the results of those in numba_step.py, without
branches. theta is (log_beta, log_eps, alpha), scalars; a law is (eps, v, v_held, alpha, x0); pieces are the states of
(log_beta, log_eps, alpha), one entry a lane.
Two traps: a constant alone is float32, hence `float64`; and the interpreter takes `constant - tensor` for a constant,
so constants are written right of a tensor.
"""

import triton
import triton.language as tl

from ado_kernels.fit import objective, step_algebra
from ado_kernels.fit.triton_points import float64

LANES = tl.constexpr(64)  # 48 pieces, in a power of two
LOSS = tl.constexpr(step_algebra.LOSS)
GRAD_B, GRAD_E, GRAD_A = map(tl.constexpr, step_algebra.GRADIENT)
INNER_BB, INNER_BE, INNER_BA, INNER_EE, INNER_EA, INNER_AA = map(tl.constexpr, step_algebra.INNER)
OUTER_BB, OUTER_BE, OUTER_BA, OUTER_EE, OUTER_EA, OUTER_AA = map(tl.constexpr, step_algebra.OUTER)
BETA_KINK = tl.constexpr(objective.LOG_BETA_KINK)
EPS_KINK = tl.constexpr(objective.LOG_EPS_KINK)
LOW_KINK = tl.constexpr(objective.ALPHA_LOW_KINK)
HIGH_KINK = tl.constexpr(objective.ALPHA_HIGH_KINK)
HELD = tl.constexpr(step_algebra.HELD)
HELD_HIGH = tl.constexpr(step_algebra.HELD_HIGH)
PAST = tl.constexpr(step_algebra.PAST)
PAST_LOW = tl.constexpr(step_algebra.PAST_LOW)
PAST_HIGH = tl.constexpr(step_algebra.PAST_HIGH)
VANISHING = tl.constexpr(step_algebra.VANISHING)
FACE_LOG_BETA = tl.constexpr(step_algebra.FACE_LOG_BETA)
FACE_LOG_EPS = tl.constexpr(step_algebra.FACE_LOG_EPS)
FACE_ALPHA_HIGH = tl.constexpr(step_algebra.FACE_ALPHA_HIGH)
FACE_ALPHA_LOW = tl.constexpr(step_algebra.FACE_ALPHA_LOW)
SHRINK = tl.constexpr(step_algebra.SHRINK)
SMALLEST_ALPHA = tl.constexpr(step_algebra.SMALLEST_ALPHA)
TINY = tl.constexpr(step_algebra.TINY)


@triton.jit
def penalty(theta):
    """The four penalty terms of F."""
    high = tl.maximum(theta[2] - HIGH_KINK, 0.0) + tl.maximum(theta[0] - BETA_KINK, 0.0)
    return high - tl.minimum(theta[2], float64(LOW_KINK)) - tl.minimum(theta[1] - EPS_KINK, 0.0)


@triton.jit
def put_on_face(theta, face):
    """theta with the parameter that `face` holds moved onto its kink."""
    alpha = tl.where(face == FACE_ALPHA_HIGH, float64(HIGH_KINK), theta[2])
    return (
        tl.where(face == FACE_LOG_BETA, float64(BETA_KINK), theta[0]),
        tl.where(face == FACE_LOG_EPS, float64(EPS_KINK), theta[1]),
        tl.where(face == FACE_ALPHA_LOW, float64(LOW_KINK), alpha),
    )


@triton.jit
def single_parameter_gain(theta, sums, face):
    """The largest fall of F that the majorising matrix promises when one parameter moves alone."""
    beta = _one_sided_slope(sums[GRAD_B], theta[0] > BETA_KINK, theta[0] >= BETA_KINK)
    eps = _one_sided_slope(-sums[GRAD_E], theta[1] < EPS_KINK, theta[1] <= EPS_KINK)
    low, high = theta[2] <= LOW_KINK, theta[2] >= HIGH_KINK
    left = (theta[2] > HIGH_KINK).to(tl.float64) - low.to(tl.float64)
    right = high.to(tl.float64) - (theta[2] < LOW_KINK).to(tl.float64)
    slope = _one_sided_slope(sums[GRAD_A], left, right)
    beta_gain = tl.where(face == FACE_LOG_BETA, float64(0.0), beta * beta / (sums[INNER_BB] + sums[OUTER_BB] + TINY))
    eps_gain = tl.where(face == FACE_LOG_EPS, float64(0.0), eps * eps / (sums[INNER_EE] + sums[OUTER_EE] + TINY))
    alpha_gain = slope * slope / (sums[INNER_AA] + sums[OUTER_AA] + TINY)
    alpha_gain = tl.where((face == FACE_ALPHA_LOW) | (face == FACE_ALPHA_HIGH), float64(0.0), alpha_gain)
    return tl.maximum(tl.maximum(beta_gain, eps_gain), alpha_gain) * 0.5


@triton.jit
def _one_sided_slope(slope, left, right):
    """The slope along which F falls, where the penalty adds `left` below the parameter and `right` above it; else 0."""
    above, below = slope + left.to(tl.float64), slope + right.to(tl.float64)
    return tl.maximum(above, float64(0.0)) + tl.minimum(below, float64(0.0))


@triton.jit
def model_step(theta, sums, x0, damping, face):
    """(new theta, change): the model's minimum, and the change of F it predicts there; sums from newton_sums."""
    pieces = _pieces()
    beta_state, eps_state, alpha_state = pieces
    vanishing = beta_state == VANISHING
    on_kink = (alpha_state == HELD) | (alpha_state == HELD_HIGH)
    law = _law(theta, x0)
    # Every lane solves its own 3 x 3 system; lanes that are no piece, or not allowed, are left out at the end.
    kink = tl.where(alpha_state == HELD_HIGH, float64(HIGH_KINK), float64(LOW_KINK))
    jacobian = _tangent(pieces, law)
    gradient = (sums[GRAD_B], sums[GRAD_E], sums[GRAD_A])
    a = _transform_matrix(jacobian, _damped(sums, damping))
    g_piece = (
        sums[GRAD_B] + tl.where(beta_state == PAST, 1.0, 0.0),
        sums[GRAD_E] - tl.where(eps_state == PAST, 1.0, 0.0),
        sums[GRAD_A] + tl.where(alpha_state == PAST_HIGH, 1.0, 0.0) - tl.where(alpha_state == PAST_LOW, 1.0, 0.0),
    )
    held = ((beta_state == HELD) | vanishing, eps_state == HELD, on_kink | vanishing)
    # Displacements of held coordinates. To shrink v to SHRINK v is a relative change of SHRINK - 1.
    fixed = (
        tl.where(vanishing, float64(SHRINK - 1.0), tl.where(held[0], -theta[0] + BETA_KINK, 0.0)),
        tl.where(held[1], -theta[1] + EPS_KINK, 0.0),
        tl.where(on_kink, kink - theta[2], 0.0),
    )
    d, positive = _solve_held(a, _transform_gradient(jacobian, g_piece), held, fixed)
    new_alpha = tl.where(on_kink, kink, theta[2] + d[2])  # theta + (kink - theta) may round to beside the kink
    new, d = _retract(pieces, theta, law, new_alpha, d)
    # The smooth gradient alone: the penalty is added exactly, and not by the slope that the piece assumed.
    g = _transform_gradient(jacobian, gradient)
    a00, a01, a02, a11, a12, a22 = a
    value = g[0] * d[0] + g[1] * d[1] + g[2] * d[2] + penalty(new) - penalty(theta)
    value += 0.5 * (a00 * d[0] * d[0] + a11 * d[1] * d[1] + a22 * d[2] * d[2])
    value += a01 * d[0] * d[1] + a02 * d[0] * d[2] + a12 * d[1] * d[2]
    usable = positive & _allowed_pieces(pieces, face) & (value == value)  # NaN from lanes whose system is singular
    value = tl.where(usable, value, float("inf"))
    best = tl.argmin(value, axis=0)
    return (take_lane(new[0], best), take_lane(new[1], best), take_lane(new[2], best)), tl.min(value, axis=0)


@triton.jit
def take_lane(value, lane):
    """The value of one lane, as a scalar: Triton cannot index a tensor by a variable."""
    lanes = tl.arange(0, value.shape[0])
    return tl.sum(tl.where(lanes == lane, value, 0.0), axis=0)


@triton.jit
def _pieces():
    """States (log_beta, log_eps, alpha) of each lane's piece: 45 combinations, then 3 in which the law vanishes."""
    lane = tl.arange(0, LANES)
    free = lane < 45  # 3 x 3 x 5 states; alpha runs fastest, then log_eps
    beta = tl.where(free, lane // 15, VANISHING)
    eps = tl.where(free, lane // 5 % 3, lane - 45)
    return beta, eps, tl.where(free, lane % 5, 0)


@triton.jit
def _allowed_pieces(pieces, face):
    """Which pieces exist and may be used by a search confined to `face`."""
    beta, eps, alpha = pieces
    on_low = (face != FACE_ALPHA_LOW) | (alpha == HELD) | (beta == VANISHING)
    on_high = (face != FACE_ALPHA_HIGH) | (alpha == HELD_HIGH) | (beta == VANISHING)
    exists = tl.arange(0, LANES) < 48
    return (
        exists
        & ((face != FACE_LOG_BETA) | (beta == HELD))
        & ((face != FACE_LOG_EPS) | (eps == HELD))
        & on_low
        & on_high
    )


@triton.jit
def _damped(sums, damping):
    """Entries 00, 01, 02, 11, 12, 22 of H."""
    scale = tl.maximum(damping, 1.0)
    return (
        scale * sums[INNER_BB] + damping * sums[OUTER_BB],
        scale * sums[INNER_BE] + damping * sums[OUTER_BE],
        scale * sums[INNER_BA] + damping * sums[OUTER_BA],
        scale * sums[INNER_EE] + damping * sums[OUTER_EE],
        scale * sums[INNER_EA] + damping * sums[OUTER_EA],
        scale * sums[INNER_AA] + damping * sums[OUTER_AA],
    )


@triton.jit
def _law(theta, x0):
    """(eps, v, v with log_beta on its kink, alpha kept off 0, x0)."""
    alpha = tl.where(tl.abs(theta[2]) > SMALLEST_ALPHA, theta[2], float64(SMALLEST_ALPHA))
    return tl.exp(theta[1]), tl.exp(theta[0] - alpha * x0), tl.exp(-alpha * x0 + BETA_KINK), alpha, x0


@triton.jit
def _tangent(pieces, law):
    """d(log_beta, log_eps) / d(coordinates) of each lane's piece: two rows of three, flat."""
    beta_state, eps_state, _ = pieces
    eps, v, v_held, alpha, x0 = law
    moves_beta = (beta_state != HELD) & (beta_state != VANISHING)
    moves_eps = eps_state != HELD
    both = moves_beta & moves_eps  # coordinates (c, s, alpha); else (log v, -, alpha), or (-, c, alpha) on a kink
    along = tl.where(beta_state == HELD, x0 * v_held / eps, 0.0)
    return (
        tl.where(both, 0.0, 1.0),
        tl.where(both, 1.0 / (alpha * v), 0.0),
        tl.where(both, x0 - 1.0 / alpha, tl.where(moves_beta, x0, 0.0)),
        tl.where(both, 1.0 / eps, 0.0),
        tl.where(both, -1.0 / (alpha * eps), tl.where(moves_eps, 1.0 / eps, 1.0)),
        tl.where(both, v / (alpha * eps), tl.where(moves_eps, along, 0.0)),
    )


@triton.jit
def _transform_matrix(jacobian, h):
    """The six entries of J' H J + TINY, J being the jacobian's two rows and (0, 0, 1)."""
    b0, b1, b2, e0, e1, e2 = jacobian
    p0, q0 = h[0] * b0 + h[1] * e0, h[1] * b0 + h[3] * e0
    p1, q1 = h[0] * b1 + h[1] * e1, h[1] * b1 + h[3] * e1
    p2, q2 = h[0] * b2 + h[1] * e2 + h[2], h[1] * b2 + h[3] * e2 + h[4]
    last = h[2] * b2 + h[4] * e2 + h[5]
    return (
        b0 * p0 + e0 * q0 + TINY,
        b0 * p1 + e0 * q1,
        b0 * p2 + e0 * q2,
        b1 * p1 + e1 * q1 + TINY,
        b1 * p2 + e1 * q2,
        b2 * p2 + e2 * q2 + last + TINY,
    )


@triton.jit
def _transform_gradient(jacobian, g):
    """J' g in each piece's coordinates."""
    b0, b1, b2, e0, e1, e2 = jacobian
    return b0 * g[0] + e0 * g[1], b1 * g[0] + e1 * g[1], b2 * g[0] + e2 * g[1] + g[2]


@triton.jit
def _solve_held(a, g, held, fixed):
    """The minimiser, held coordinates at `fixed` (0 where not held); and where the matrix is positive definite."""
    a00, a01, a02, a11, a12, a22 = a
    # A held coordinate's row and column become the identity's; what they contributed moves to the right-hand side.
    r0 = tl.where(held[0], fixed[0], -g[0] - a01 * fixed[1] - a02 * fixed[2])
    r1 = tl.where(held[1], fixed[1], -g[1] - a01 * fixed[0] - a12 * fixed[2])
    r2 = tl.where(held[2], fixed[2], -g[2] - a02 * fixed[0] - a12 * fixed[1])
    a00, a11, a22 = tl.where(held[0], 1.0, a00), tl.where(held[1], 1.0, a11), tl.where(held[2], 1.0, a22)
    a01 = tl.where(held[0] | held[1], 0.0, a01)
    a02 = tl.where(held[0] | held[2], 0.0, a02)
    a12 = tl.where(held[1] | held[2], 0.0, a12)
    # L D L' by hand; positive definite where all three pivots are.
    l1, l2 = a01 / a00, a02 / a00
    d11, d12 = a11 - l1 * a01, a12 - l1 * a02
    l3 = d12 / d11
    d22 = a22 - l2 * a02 - d12 * l3
    y1 = r1 - l1 * r0
    z2 = (r2 - l2 * r0 - l3 * y1) / d22
    z1 = (y1 - d12 * z2) / d11
    return ((r0 - a01 * z1 - a02 * z2) / a00, z1, z2), (a00 > 0.0) & (d11 > 0.0) & (d22 > 0.0)


@triton.jit
def _retract(pieces, theta, law, new_alpha, d):
    """Parameters at displacement d, and d set to the displacement made where eps or v was clamped."""
    beta_state, eps_state, _ = pieces
    eps, v, v_held, alpha, x0 = law
    moves_beta = (beta_state != HELD) & (beta_state != VANISHING)
    moves_eps = eps_state != HELD
    both, alone = moves_beta & moves_eps, moves_eps & (moves_beta == 0)
    # v = s / alpha may change by SHRINK at most, eps fall to a tenth: the law is not linear that far.
    new_v = tl.minimum(tl.maximum((alpha * v + d[1]) / new_alpha, v * SHRINK), v / SHRINK)
    moved = tl.where(beta_state == HELD, tl.exp(-new_alpha * x0 + BETA_KINK) - v_held, 0.0)
    wanted = tl.where(both, eps + v + d[0] - new_v, eps + d[1] - moved)
    new_eps = tl.maximum(wanted, 0.1 * eps)
    free = tl.where(both, tl.log(new_v) + new_alpha * x0, theta[0] + d[0] + (new_alpha - alpha) * x0)
    stopped = tl.where(beta_state == VANISHING, theta[0] + tl.log(float64(SHRINK)), float64(BETA_KINK))
    new = (tl.where(moves_beta, free, stopped), tl.where(moves_eps, tl.log(new_eps), float64(EPS_KINK)), new_alpha)
    # The displacement that was made, clamped or not: there the model is evaluated.
    d0 = tl.where(both, new_eps + new_v - eps - v, d[0])
    d1 = tl.where(both, new_v * new_alpha - v * alpha, tl.where(alone, new_eps - eps + moved, d[1]))
    return new, (d0, d1, d[2])
