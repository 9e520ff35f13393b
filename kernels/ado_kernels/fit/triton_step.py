"""The step of step.py on a GPU: one search's step, every piece of the penalty a lane.

The formulas stand in step.py, and without branches, as here, in torch_step.py, function by function. theta is
(log_beta, log_eps, alpha), scalars; a law is (eps, v, v_held, alpha, x0); pieces are (beta, eps, alpha) states.
A constant alone would be float32, hence `wide`; and it stands right of a tensor, for the interpreter takes
`constant - tensor` for a constant.
"""

import triton
import triton.language as tl

from ado_kernels.fit import problem, step
from ado_kernels.fit.triton_points import wide

LANES = tl.constexpr(64)  # 48 pieces, in a power of two
BETA_KINK = tl.constexpr(problem.LOG_BETA_KINK)
EPS_KINK = tl.constexpr(problem.LOG_EPS_KINK)
LOW_KINK = tl.constexpr(problem.ALPHA_LOW_KINK)
HIGH_KINK = tl.constexpr(problem.ALPHA_HIGH_KINK)
HELD = tl.constexpr(step.HELD)
HELD_HIGH = tl.constexpr(step.HELD_HIGH)
PULLED = tl.constexpr(step.PULLED)
PULLED_LOW = tl.constexpr(step.PULLED_LOW)
PULLED_HIGH = tl.constexpr(step.PULLED_HIGH)
VANISHING = tl.constexpr(step.VANISHING)
ON_BETA = tl.constexpr(step.FACE_LOG_BETA)
ON_EPS = tl.constexpr(step.FACE_LOG_EPS)
ON_HIGH = tl.constexpr(step.FACE_ALPHA_HIGH)
ON_LOW = tl.constexpr(step.FACE_ALPHA_LOW)
SHRINK = tl.constexpr(step.SHRINK)
SMALLEST_ALPHA = tl.constexpr(step.SMALLEST_ALPHA)
TINY = tl.constexpr(step.TINY)


@triton.jit
def penalty(theta):
    """The four penalty terms of F."""
    high = tl.maximum(theta[2] - HIGH_KINK, 0.0) + tl.maximum(theta[0] - BETA_KINK, 0.0)
    return high - tl.minimum(theta[2], wide(LOW_KINK)) - tl.minimum(theta[1] - EPS_KINK, 0.0)


@triton.jit
def on_face(theta, face):
    """theta with the parameter that the face holds put onto its kink."""
    alpha = tl.where(face == ON_HIGH, wide(HIGH_KINK), theta[2])
    return (
        tl.where(face == ON_BETA, wide(BETA_KINK), theta[0]),
        tl.where(face == ON_EPS, wide(EPS_KINK), theta[1]),
        tl.where(face == ON_LOW, wide(LOW_KINK), alpha),
    )


@triton.jit
def gain_of_one(theta, sums, face):
    """The most that F can fall, by the majorising matrix, when one parameter moves alone."""
    beta = _pull_left(sums[1], theta[0] > BETA_KINK, theta[0] >= BETA_KINK)
    eps = _pull_left(-sums[2], theta[1] < EPS_KINK, theta[1] <= EPS_KINK)
    low, high = theta[2] <= LOW_KINK, theta[2] >= HIGH_KINK
    left = (theta[2] > HIGH_KINK).to(tl.float64) - low.to(tl.float64)
    right = high.to(tl.float64) - (theta[2] < LOW_KINK).to(tl.float64)
    slope = _pull_left(sums[3], left, right)
    of_beta = tl.where(face == ON_BETA, wide(0.0), beta * beta / (sums[4] + sums[10] + TINY))
    of_eps = tl.where(face == ON_EPS, wide(0.0), eps * eps / (sums[7] + sums[13] + TINY))
    of_alpha = slope * slope / (sums[9] + sums[15] + TINY)
    of_alpha = tl.where((face == ON_LOW) | (face == ON_HIGH), wide(0.0), of_alpha)
    return tl.maximum(tl.maximum(of_beta, of_eps), of_alpha) * 0.5


@triton.jit
def _pull_left(slope, left, right):
    above, below = slope + left.to(tl.float64), slope + right.to(tl.float64)
    return tl.maximum(above, wide(0.0)) + tl.minimum(below, wide(0.0))


@triton.jit
def model_step(theta, sums, x0, damping, face):
    """(new theta, change): the model's minimum, and the change of F it predicts there; sums from newton_sums."""
    pieces = _pieces()
    beta_state, eps_state, alpha_state = pieces
    vanishing = beta_state == VANISHING
    on_kink = (alpha_state == HELD) | (alpha_state == HELD_HIGH)
    law = _law(theta, x0)
    kink = tl.where(alpha_state == HELD_HIGH, wide(HIGH_KINK), wide(LOW_KINK))
    jacobian = _tangent(pieces, law)
    gradient = (sums[1], sums[2], sums[3])
    a = _pulled_back(jacobian, _damped(sums, damping))
    pulled = (
        sums[1] + tl.where(beta_state == PULLED, 1.0, 0.0),
        sums[2] - tl.where(eps_state == PULLED, 1.0, 0.0),
        sums[3] + tl.where(alpha_state == PULLED_HIGH, 1.0, 0.0) - tl.where(alpha_state == PULLED_LOW, 1.0, 0.0),
    )
    held = ((beta_state == HELD) | vanishing, eps_state == HELD, on_kink | vanishing)
    fixed = (
        tl.where(vanishing, wide(SHRINK - 1.0), tl.where(held[0], -theta[0] + BETA_KINK, 0.0)),
        tl.where(held[1], -theta[1] + EPS_KINK, 0.0),
        tl.where(on_kink, kink - theta[2], 0.0),
    )
    d, positive = _solve_held(a, _transposed(jacobian, pulled), held, fixed)
    new_alpha = tl.where(on_kink, kink, theta[2] + d[2])
    new, d = _retract(pieces, theta, law, new_alpha, d)
    g = _transposed(jacobian, gradient)
    value = g[0] * d[0] + g[1] * d[1] + g[2] * d[2] + penalty(new) - penalty(theta)
    value += 0.5 * (a[0] * d[0] * d[0] + a[3] * d[1] * d[1] + a[5] * d[2] * d[2])
    value += a[1] * d[0] * d[1] + a[2] * d[0] * d[2] + a[4] * d[1] * d[2]
    usable = positive & _allowed(pieces, face) & (value == value)
    value = tl.where(usable, value, float("inf"))
    best = tl.argmin(value, axis=0)
    return (pick(new[0], best), pick(new[1], best), pick(new[2], best)), tl.min(value, axis=0)


@triton.jit
def pick(value, lane):
    """The value of one lane, as a scalar."""
    lanes = tl.arange(0, value.shape[0])
    return tl.sum(tl.where(lanes == lane, value, 0.0), axis=0)


@triton.jit
def _pieces():
    """States (log_beta, log_eps, alpha) of each lane's piece: 45 combinations, then 3 in which the law vanishes."""
    lane = tl.arange(0, LANES)
    free = lane < 45
    beta = tl.where(free, lane // 15, VANISHING)
    eps = tl.where(free, lane // 5 % 3, lane - 45)
    return beta, eps, tl.where(free, lane % 5, 0)


@triton.jit
def _allowed(pieces, face):
    """Which pieces exist, and may be used by a search held on a face."""
    beta, eps, alpha = pieces
    on_low = (face != ON_LOW) | (alpha == HELD) | (beta == VANISHING)
    on_high = (face != ON_HIGH) | (alpha == HELD_HIGH) | (beta == VANISHING)
    exists = tl.arange(0, LANES) < 48
    return exists & ((face != ON_BETA) | (beta == HELD)) & ((face != ON_EPS) | (eps == HELD)) & on_low & on_high


@triton.jit
def _damped(sums, damping):
    """Entries 00, 01, 02, 11, 12, 22 of the damped matrix."""
    scale = tl.maximum(damping, 1.0)
    return (
        scale * sums[4] + damping * sums[10],
        scale * sums[5] + damping * sums[11],
        scale * sums[6] + damping * sums[12],
        scale * sums[7] + damping * sums[13],
        scale * sums[8] + damping * sums[14],
        scale * sums[9] + damping * sums[15],
    )


@triton.jit
def _law(theta, x0):
    alpha = tl.where(tl.abs(theta[2]) > SMALLEST_ALPHA, theta[2], wide(SMALLEST_ALPHA))
    return tl.exp(theta[1]), tl.exp(theta[0] - alpha * x0), tl.exp(-alpha * x0 + BETA_KINK), alpha, x0


@triton.jit
def _tangent(pieces, law):
    """Rows d log_beta and d log_eps over the coordinates of each lane's piece, flat."""
    beta_state, eps_state, _ = pieces
    eps, v, v_held, alpha, x0 = law
    moves_beta = (beta_state != HELD) & (beta_state != VANISHING)
    moves_eps = eps_state != HELD
    both = moves_beta & moves_eps
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
def _pulled_back(jacobian, h):
    """Entries 00, 01, 02, 11, 12, 22 of J' H J + tiny, J being the jacobian's two rows and (0, 0, 1)."""
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
def _transposed(jacobian, g):
    b0, b1, b2, e0, e1, e2 = jacobian
    return b0 * g[0] + e0 * g[1], b1 * g[0] + e1 * g[1], b2 * g[0] + e2 * g[1] + g[2]


@triton.jit
def _solve_held(a, g, held, fixed):
    """step.solve_held: the minimiser, held coordinates at `fixed` (0 where not held); where the matrix is positive."""
    a00, a01, a02, a11, a12, a22 = a
    r0 = tl.where(held[0], fixed[0], -g[0] - a01 * fixed[1] - a02 * fixed[2])
    r1 = tl.where(held[1], fixed[1], -g[1] - a01 * fixed[0] - a12 * fixed[2])
    r2 = tl.where(held[2], fixed[2], -g[2] - a02 * fixed[0] - a12 * fixed[1])
    a00, a11, a22 = tl.where(held[0], 1.0, a00), tl.where(held[1], 1.0, a11), tl.where(held[2], 1.0, a22)
    a01 = tl.where(held[0] | held[1], 0.0, a01)
    a02 = tl.where(held[0] | held[2], 0.0, a02)
    a12 = tl.where(held[1] | held[2], 0.0, a12)
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
    """Parameters at displacement d, and d corrected to what eps and v were really allowed to move."""
    beta_state, eps_state, _ = pieces
    eps, v, v_held, alpha, x0 = law
    moves_beta = (beta_state != HELD) & (beta_state != VANISHING)
    moves_eps = eps_state != HELD
    both, alone = moves_beta & moves_eps, moves_eps & (moves_beta == 0)
    new_v = tl.minimum(tl.maximum((alpha * v + d[1]) / new_alpha, v * SHRINK), v / SHRINK)
    moved = tl.where(beta_state == HELD, tl.exp(-new_alpha * x0 + BETA_KINK) - v_held, 0.0)
    wanted = tl.where(both, eps + v + d[0] - new_v, eps + d[1] - moved)
    new_eps = tl.maximum(wanted, 0.1 * eps)
    free = tl.where(both, tl.log(new_v) + new_alpha * x0, theta[0] + d[0] + (new_alpha - alpha) * x0)
    stopped = tl.where(beta_state == VANISHING, theta[0] + tl.log(wide(SHRINK)), wide(BETA_KINK))
    new = (tl.where(moves_beta, free, stopped), tl.where(moves_eps, tl.log(new_eps), wide(EPS_KINK)), new_alpha)
    d0 = tl.where(both, new_eps + new_v - eps - v, d[0])
    d1 = tl.where(both, new_v * new_alpha - v * alpha, tl.where(alone, new_eps - eps + moved, d[1]))
    return new, (d0, d1, d[2])
