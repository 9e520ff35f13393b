"""The fit's Triton kernels: smoothing, one program per search, choice of the best. Float64 throughout.

`search_kernel` is search.py and descent.py for one (domain, start): the best of the start's grid by a wide Huber loss
on some points, then descents on all of them while the width narrows, at last released from its kink; a law that
vanished into a constant is seeded again. `_model_step` is step.py with every piece of the penalty in a lane.
Python floats are made float64 explicitly: Triton would otherwise round constants to float32.
"""

import triton
import triton.language as tl

from ado_kernels.fit import descent, problem, search, step

HIGH = tl.constexpr(problem.ALPHA_HIGH_KINK)
LOW = tl.constexpr(problem.ALPHA_LOW_KINK)
BETA = tl.constexpr(problem.LOG_BETA_KINK)
EPS = tl.constexpr(problem.LOG_EPS_KINK)
SHRINK = tl.constexpr(step.SHRINK)
LOG_SHRINK = tl.constexpr(-4.605170185988091)  # log(0.01)
TINY = tl.constexpr(step.TINY)
SMALLEST_ALPHA = tl.constexpr(step.SMALLEST_ALPHA)
MAX_DAMPING = tl.constexpr(descent.MAX_DAMPING)
LOG_VANISHED = tl.constexpr(-8.111728083308073)  # log(search.VANISHED)
LOG_SEED = tl.constexpr(-6.907755278982137)  # log(search.SEED)
COARSE_PASSES = tl.constexpr(search.COARSE_PASSES)
FULL_PASSES = tl.constexpr(search.FULL_PASSES)
COARSE_STAGES = tl.constexpr(len(search.WIDTHS))
INFINITY = tl.constexpr(float("inf"))


@triton.jit
def smooth_kernel(
    loss_ptr, count_ptr, weight_ptr, x_ptr, y_ptr, w_ptr, num_steps, num_kept, first, every, count_stride,
    WINDOW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x = log n, y = log smoothed loss, w = 1 (0: not positive) at the kept steps; grid (K, blocks of kept steps)."""
    domain = tl.program_id(0).to(tl.int64)
    kept = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = kept < num_kept
    position = tl.where(inside, first + kept * every, 0)
    start = tl.minimum(tl.maximum(position - WINDOW // 2, 0), num_steps - WINDOW)
    total = tl.zeros([BLOCK], tl.float64)
    for i in range(WINDOW):
        weight = tl.load(weight_ptr + (position - start) * WINDOW + i)
        total += weight * tl.load(loss_ptr + domain * num_steps + start + i)
    usable = total > 0.0
    row = domain * num_kept + kept
    tl.store(x_ptr + row, tl.log(tl.load(count_ptr + domain * count_stride + position)), mask=inside)
    tl.store(y_ptr + row, tl.log(tl.where(usable, total, 1.0)), mask=inside)
    tl.store(w_ptr + row, usable.to(tl.float64), mask=inside)


@triton.jit
def _penalty(a, e, al):
    high = tl.maximum(al - HIGH, 0.0) + tl.maximum(a - BETA, 0.0)
    return high - tl.minimum(al, LOW) - tl.minimum(e - EPS, 0.0)


@triton.jit
def _sums(x_ptr, y_ptr, w_ptr, num_points, a, e, al, delta, BLOCK: tl.constexpr):
    """points.newton_sums: (huber, 3 gradient, 6 inner, 6 outer) as scalars."""
    zero = tl.zeros([BLOCK], tl.float64)
    f, ga, ge, gx = zero, zero, zero, zero
    i0, i1, i2, i3, i4, i5 = zero, zero, zero, zero, zero, zero
    o0, o1, o2, o3, o4, o5 = zero, zero, zero, zero, zero, zero
    for first in range(0, num_points, BLOCK):
        at = first + tl.arange(0, BLOCK)
        mask = at < num_points
        x = tl.load(x_ptr + at, mask=mask, other=1.0)
        y = tl.load(y_ptr + at, mask=mask, other=0.0)
        w = tl.load(w_ptr + at, mask=mask, other=0.0)
        u = tl.exp(tl.minimum(tl.maximum(a - e - al * x, -700.0), 700.0))
        q = 1.0 / (1.0 + u)
        p = u * q
        r = y - e - tl.log(1.0 + u)
        size = tl.abs(r)
        inner = tl.minimum(size, delta)
        f += w * inner * (size - 0.5 * inner)
        slope = w * tl.minimum(tl.maximum(r, -delta), delta)
        inside = tl.where(size <= delta, w, 0.0)
        outside = w * delta / tl.maximum(size, delta) - inside
        xp = x * p
        ga -= slope * p
        ge -= slope * q
        gx += slope * xp
        i0 += inside * p * p
        i1 += inside * p * q
        i2 -= inside * p * xp
        i3 += inside * q * q
        i4 -= inside * q * xp
        i5 += inside * xp * xp
        o0 += outside * p * p
        o1 += outside * p * q
        o2 -= outside * p * xp
        o3 += outside * q * q
        o4 -= outside * q * xp
        o5 += outside * xp * xp
    return (
        tl.sum(f), tl.sum(ga), tl.sum(ge), tl.sum(gx),
        tl.sum(i0), tl.sum(i1), tl.sum(i2), tl.sum(i3), tl.sum(i4), tl.sum(i5),
        tl.sum(o0), tl.sum(o1), tl.sum(o2), tl.sum(o3), tl.sum(o4), tl.sum(o5),
    )  # fmt: skip


@triton.jit
def _tangent(moves_beta, moves_eps, holds_beta, eps, v, v_held, al, x0):
    """Rows d log_beta and d log_eps over the coordinates of each lane's piece."""
    both = moves_beta & moves_eps
    b0 = tl.where(both, 0.0, 1.0 + 0.0 * v)
    b1 = tl.where(both, 1.0 / (al * v), 0.0)
    b2 = tl.where(both, x0 - 1.0 / al, tl.where(moves_beta, x0, 0.0))
    e0 = tl.where(both, 1.0 / eps, 0.0)
    e1 = tl.where(both, -1.0 / (al * eps), tl.where(moves_eps, 1.0 / eps, 1.0))
    along = tl.where(holds_beta, x0 * v_held / eps, 0.0)
    e2 = tl.where(both, v / (al * eps), tl.where(moves_eps, along, 0.0))
    return b0, b1, b2, e0, e1, e2


@triton.jit
def _solve_held(a00, a01, a02, a11, a12, a22, g0, g1, g2, h0, h1, h2, s0, s1, s2):
    """step.solve_held in lanes: the minimiser, held coordinates at s; and where the matrix is positive."""
    f0, f1, f2 = tl.where(h0, s0, 0.0), tl.where(h1, s1, 0.0), tl.where(h2, s2, 0.0)
    r0 = tl.where(h0, s0, -g0 - a01 * f1 - a02 * f2)
    r1 = tl.where(h1, s1, -g1 - a01 * f0 - a12 * f2)
    r2 = tl.where(h2, s2, -g2 - a02 * f0 - a12 * f1)
    a00, a11, a22 = tl.where(h0, 1.0, a00), tl.where(h1, 1.0, a11), tl.where(h2, 1.0, a22)
    a01 = tl.where(h0 | h1, 0.0, a01)
    a02 = tl.where(h0 | h2, 0.0, a02)
    a12 = tl.where(h1 | h2, 0.0, a12)
    l1, l2 = a01 / a00, a02 / a00
    d11, d12 = a11 - l1 * a01, a12 - l1 * a02
    d22 = a22 - l2 * a02 - d12 * d12 / d11
    y1 = r1 - l1 * r0
    z2 = (r2 - l2 * r0 - d12 / d11 * y1) / d22
    z1 = (y1 - d12 * z2) / d11
    return (r0 - a01 * z1 - a02 * z2) / a00, z1, z2, (a00 > 0.0) & (d11 > 0.0) & (d22 > 0.0)


@triton.jit
def _pick(lane, best, value):
    return tl.sum(tl.where(lane == best, value, 0.0))


@triton.jit
def _model_step(a, e, al, sums, x0, damping, face):
    """step.model_step: (log_beta, log_eps, alpha, predicted change) as scalars."""
    _, ga, ge, gx, i0, i1, i2, i3, i4, i5, o0, o1, o2, o3, o4, o5 = sums
    scale = tl.maximum(damping, 1.0)
    h00, h01, h02 = scale * i0 + damping * o0, scale * i1 + damping * o1, scale * i2 + damping * o2
    h11, h12, h22 = scale * i3 + damping * o3, scale * i4 + damping * o4, scale * i5 + damping * o5
    lane = tl.arange(0, 64)
    nothing = tl.zeros([64], tl.float64)
    beta_state = tl.where(lane < 45, lane // 15, 3)
    eps_state = tl.where(lane < 45, lane // 5 % 3, lane - 45)
    alpha_state = tl.where(lane < 45, lane % 5, 0)
    vanishing = beta_state == 3
    on_low, on_high = alpha_state == 1, alpha_state == 2
    usable = (lane < 48) & ((face != 1) | (beta_state == 1)) & ((face != 2) | (eps_state == 1))
    usable = usable & ((face != 3) | on_high | vanishing) & ((face != 4) | on_low | vanishing)
    bent = tl.where(tl.abs(al) > SMALLEST_ALPHA, al, SMALLEST_ALPHA) + nothing
    eps = tl.exp(e) + nothing
    v = tl.exp(a - bent * x0)
    v_held = tl.exp(-(bent * x0 - BETA))
    moves_beta = (beta_state == 0) | (beta_state == 2)
    moves_eps = eps_state != 1
    b0, b1, b2, e0, e1, e2 = _tangent(moves_beta, moves_eps, beta_state == 1, eps, v, v_held, bent, x0 + nothing)
    p0, q0 = h00 * b0 + h01 * e0, h01 * b0 + h11 * e0
    p1, q1 = h00 * b1 + h01 * e1, h01 * b1 + h11 * e1
    p2, q2 = h00 * b2 + h01 * e2 + h02, h01 * b2 + h11 * e2 + h12
    a00, a01, a02 = b0 * p0 + e0 * q0 + TINY, b0 * p1 + e0 * q1, b0 * p2 + e0 * q2
    a11, a12 = b1 * p1 + e1 * q1 + TINY, b1 * p2 + e1 * q2
    a22 = b2 * p2 + e2 * q2 + h02 * b2 + h12 * e2 + h22 + TINY
    pa = ga + tl.where(beta_state == 2, nothing + 1.0, 0.0)
    pe = ge - tl.where(eps_state == 2, nothing + 1.0, 0.0)
    px = gx + tl.where(alpha_state == 4, nothing + 1.0, 0.0) - tl.where(alpha_state == 3, nothing + 1.0, 0.0)
    s0 = tl.where(vanishing, nothing + SHRINK - 1.0, nothing - (a - BETA))
    kink = tl.where(on_high, nothing + HIGH, nothing + LOW)
    s2 = tl.where(on_low | on_high, kink - al, 0.0)
    d0, d1, d2, positive = _solve_held(
        a00, a01, a02, a11, a12, a22,
        b0 * pa + e0 * pe, b1 * pa + e1 * pe, b2 * pa + e2 * pe + px,
        (beta_state == 1) | vanishing, eps_state == 1, on_low | on_high | vanishing,
        s0, nothing - (e - EPS), s2,
    )  # fmt: skip
    new_al = tl.where(on_low | on_high, kink, al + d2)
    both, alone = moves_beta & moves_eps, moves_eps & (beta_state % 2 == 1)
    new_v = tl.minimum(tl.maximum((bent * v + d1) / new_al, v * SHRINK), v / SHRINK)
    eps_both = tl.maximum(eps + v + d0 - new_v, 0.1 * eps)
    moved = tl.where(beta_state == 1, tl.exp(-(new_al * x0 - BETA)) - v_held, 0.0)
    eps_alone = tl.maximum(eps + d1 - moved, 0.1 * eps)
    free_a = tl.where(both, tl.log(new_v) + new_al * x0, a + d0 + (new_al - bent) * x0)
    new_a = tl.where(moves_beta, free_a, tl.where(vanishing, a + LOG_SHRINK + nothing, nothing + BETA))
    new_e = tl.where(both, tl.log(eps_both), tl.where(alone, tl.log(eps_alone), nothing + EPS))
    d0 = tl.where(both, eps_both + new_v - eps - v, d0)
    d1 = tl.where(both, new_v * new_al - v * bent, tl.where(alone, eps_alone - eps + moved, d1))
    value = (b0 * ga + e0 * ge) * d0 + (b1 * ga + e1 * ge) * d1 + (b2 * ga + e2 * ge + gx) * d2
    value += 0.5 * (a00 * d0 * d0 + a11 * d1 * d1 + a22 * d2 * d2) + a01 * d0 * d1 + a02 * d0 * d2 + a12 * d1 * d2
    value += _penalty(new_a, new_e, new_al) - _penalty(a, e, al)
    value = tl.where(usable & positive & (value == value), value, INFINITY)
    best = tl.argmin(value, axis=0)
    return _pick(lane, best, new_a), _pick(lane, best, new_e), _pick(lane, best, new_al), tl.min(value, axis=0)


@triton.jit
def _on_face(a, e, al, face):
    fixed = 0.0 * a
    a = tl.where(face == 1, fixed + BETA, a)
    e = tl.where(face == 2, fixed + EPS, e)
    al = tl.where(face == 3, fixed + HIGH, al)
    return a, e, tl.where(face == 4, fixed + LOW, al)


@triton.jit
def _screen(x_ptr, y_ptr, w_ptr, start_ptr, num_points, stride, width, STARTS: tl.constexpr):
    """The least of STARTS starts by the Huber loss of `width` on every stride-th point."""
    lane = tl.arange(0, STARTS)
    a, e, al = tl.load(start_ptr + lane * 3), tl.load(start_ptr + lane * 3 + 1), tl.load(start_ptr + lane * 3 + 2)
    total = tl.zeros([STARTS], tl.float64)
    for t in range(0, num_points, stride):
        x, y, w = tl.load(x_ptr + t), tl.load(y_ptr + t), tl.load(w_ptr + t)
        size = tl.abs(y - e - tl.log(1.0 + tl.exp(a - e - al * x)))
        inner = tl.minimum(size, width)
        total += w * inner * (size - 0.5 * inner)
    best = tl.argmin(total, axis=0)
    return _pick(lane, best, a), _pick(lane, best, e), _pick(lane, best, al)


@triton.jit
def _seed(x_ptr, y_ptr, w_ptr, alpha_ptr, num_points, e, x0, delta, ALPHAS: tl.constexpr):
    """search._escape: (log_beta, alpha, fall): the alpha along which a small reducible part lowers F fastest."""
    lane = tl.arange(0, ALPHAS)
    al = tl.load(alpha_ptr + lane)
    fall = tl.zeros([ALPHAS], tl.float64)
    curve = tl.zeros([ALPHAS], tl.float64)
    for t in range(num_points):
        x, r, w = tl.load(x_ptr + t), tl.load(y_ptr + t) - e, tl.load(w_ptr + t)
        shape = tl.exp(-al * (x - x0))
        fall += w * tl.minimum(tl.maximum(r, -delta), delta) * shape
        curve += w * delta / tl.maximum(tl.abs(r), delta) * shape * shape
    fall = fall / tl.sqrt(curve)
    best = tl.argmax(fall, axis=0)
    alpha = _pick(lane, best, al)
    return e + LOG_SEED + alpha * x0, alpha, tl.max(fall, axis=0)


@triton.jit
def search_kernel(
    x_ptr, y_ptr, w_ptr, x0_ptr, start_ptr, face_ptr, alpha_ptr, stage_ptr, found_ptr, num_points, num_searches, stride,
    STARTS: tl.constexpr, ALPHAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One search per program, grid (K * num_searches,): found (K, num_searches, 4) = log_beta, log_eps, alpha, F.

    start (num_searches, STARTS, 3); face (num_searches,) int32; stage (COARSE_STAGES + 2, 2): Huber width, tolerance.
    """
    program = tl.program_id(0).to(tl.int64)
    domain, which = program // num_searches, program % num_searches
    x_ptr += domain * num_points
    y_ptr += domain * num_points
    w_ptr += domain * num_points
    x0 = tl.load(x0_ptr + domain)
    own_face = tl.load(face_ptr + which)
    a, e, al = _screen(
        x_ptr, y_ptr, w_ptr, start_ptr + which * STARTS * 3, num_points, stride, tl.load(stage_ptr), STARTS
    )
    best_a, best_e, best_al, best_f = a, e, al, 0.0 * a + INFINITY
    for stage in range(COARSE_STAGES + 2):
        delta, tolerance = tl.load(stage_ptr + stage * 2), tl.load(stage_ptr + stage * 2 + 1)
        face = tl.where(stage < COARSE_STAGES, own_face, 0)
        max_passes = tl.where(stage < COARSE_STAGES, COARSE_PASSES, FULL_PASSES)
        if stage == COARSE_STAGES + 1:
            vanished = a - al * x0 - e < LOG_VANISHED
            seed_a, seed_al, fall = _seed(x_ptr, y_ptr, w_ptr, alpha_ptr, num_points, e, x0, delta, ALPHAS)
            a, al = tl.where(vanished & (fall > 0.0), seed_a, a), tl.where(vanished & (fall > 0.0), seed_al, al)
        a, e, al = _on_face(a, e, al, face)
        sums = _sums(x_ptr, y_ptr, w_ptr, num_points, a, e, al, delta, BLOCK)
        f = sums[0] + _penalty(a, e, al)
        damping, passes, small, going = 1.0 + 0.0 * f, 1, 0, 1
        while going == 1:
            new_a, new_e, new_al, change = _model_step(a, e, al, sums, x0, damping, face)
            goal = tolerance * (f + LOW)
            worth = -change > 0.01 * goal
            within = (damping < MAX_DAMPING) & (small < 2) & (passes < max_passes)
            going = (within & (worth | (a > BETA) | (e < EPS))).to(tl.int32)  # descent.bends
            if within & worth:
                trial = _sums(x_ptr, y_ptr, w_ptr, num_points, new_a, new_e, new_al, delta, BLOCK)
                passes += 1
                gain = f - trial[0] - _penalty(new_a, new_e, new_al)
                if gain > 0.0:
                    small = tl.where((gain < goal) & (gain > -0.25 * change), small + 1, 0)
                    damping *= tl.where(gain > -0.75 * change, 0.1, tl.where(gain < -0.25 * change, 4.0, 1.0))
                    a, e, al, f, sums = new_a, new_e, new_al, f - gain, trial
                else:
                    damping = tl.maximum(damping, 1e-4) * 8.0
            else:
                damping = tl.maximum(damping, 1e-4) * 8.0
        if (stage >= COARSE_STAGES) & (f < best_f):
            best_a, best_e, best_al, best_f = a, e, al, f
    found_ptr += program * 4
    tl.store(found_ptr, best_a)
    tl.store(found_ptr + 1, best_e)
    tl.store(found_ptr + 2, best_al)
    tl.store(found_ptr + 3, best_f)


@triton.jit
def choose_kernel(found_ptr, best_ptr, num_searches, BLOCK: tl.constexpr):
    """Of each domain's searches the one of least F; grid (K,): best (K, 4)."""
    domain = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    mask = lane < num_searches
    row = found_ptr + (domain * num_searches + lane) * 4
    f = tl.load(row + 3, mask=mask, other=INFINITY)
    best = tl.argmin(tl.where(f == f, f, INFINITY), axis=0)
    for p in tl.static_range(4):
        value = tl.load(row + p, mask=mask, other=0.0)
        tl.store(best_ptr + domain * 4 + p, _pick(lane, best, value))
