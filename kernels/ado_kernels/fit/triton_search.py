"""The global search of search.py on a GPU: three kernels over domains and searches.

Every search starts at the best of its part of the grid and is followed on few binned points by one warp; ends that
differ are refined on all points, each by a program of its own; a last one per domain takes the least and restarts a law
that vanished. A search is held on a kink or starts from one alpha of the grid, in search.py's order.
"""

import triton
import triton.language as tl

from ado_kernels.fit import descent, search
from ado_kernels.fit.triton_points import huber, load, mean_x, newton_sums, odds, of_domain, wide
from ado_kernels.fit.triton_step import LOW_KINK, gain_of_one, model_step, on_face, penalty, pick

NUM_KINKS = tl.constexpr(search.NUM_FACES - 1)
FIRST_WIDTH, SECOND_WIDTH = tl.constexpr(search.WIDTHS[0]), tl.constexpr(search.WIDTHS[1])
NUM_WIDTHS = tl.constexpr(len(search.WIDTHS))
COARSE_PASSES = tl.constexpr(search.COARSE_PASSES)
COARSE_TOLERANCE = tl.constexpr(search.COARSE_TOLERANCE)
FULL_PASSES = tl.constexpr(search.FULL_PASSES)
TOLERANCE = tl.constexpr(search.TOLERANCE)
SAME = tl.constexpr(search.SAME)
VANISHED = tl.constexpr(search.VANISHED)
SEED = tl.constexpr(search.SEED)
MAX_DAMPING = tl.constexpr(descent.MAX_DAMPING)
LEAST_RAISED = tl.constexpr(descent.LEAST_RAISED)
RAISE = tl.constexpr(descent.RAISE)
NEGLIGIBLE = tl.constexpr(descent.NEGLIGIBLE)
INFINITY = tl.constexpr(float("inf"))
AT_ONCE = tl.constexpr(4)  # bins that the starts are judged on at a time: enough independent work for one warp
END = tl.constexpr(4)  # numbers of a search's end: theta, F


@triton.jit
def coarse_kernel(bins, start_ptr, end_ptr, DELTA: tl.constexpr, STARTS: tl.constexpr, BLOCK: tl.constexpr):
    """Every search on the bins, to end (K, S, END); start (S, STARTS, 3): its part of the grid. Grid (K, S)."""
    domain, which = tl.program_id(0).to(tl.int64), tl.program_id(1)
    own = of_domain(bins, domain)
    face = tl.where(which < NUM_KINKS, which + 1, 0)
    theta = _best_start(own, start_ptr + which * STARTS * 3, STARTS)
    x0 = mean_x(own, BLOCK)
    f = wide(0.0)
    for stage in range(NUM_WIDTHS):
        width = tl.where(stage == 0, wide(FIRST_WIDTH), tl.where(stage == 1, wide(SECOND_WIDTH), 0.0))
        width = tl.maximum(width, wide(DELTA))
        theta, f = _minimise(own, theta, (width, x0, face, COARSE_TOLERANCE, COARSE_PASSES), BLOCK)
    _store_end(end_ptr + (domain * tl.num_programs(1) + which) * END, theta, f)


@triton.jit
def refine_kernel(points, coarse_ptr, end_ptr, DELTA: tl.constexpr, SEARCHES: tl.constexpr, BLOCK: tl.constexpr):
    """Coarse ends that are not an earlier one's twin, refined on all points, to end (K, S, END). Grid (K, S)."""
    domain, which = tl.program_id(0).to(tl.int64), tl.program_id(1)
    num_searches = tl.num_programs(1)
    coarse_ptr += domain * num_searches * END
    lane = tl.arange(0, SEARCHES)
    f_of_lane = tl.load(coarse_ptr + lane * END + 3, lane < num_searches, other=0.0)
    own_f = tl.load(coarse_ptr + which * END + 3)
    twin = (lane < which) & (tl.abs(own_f - f_of_lane) < (own_f + LOW_KINK) * SAME)
    theta = _load_theta(coarse_ptr + which * END)
    f = wide(INFINITY)
    if tl.max(twin.to(tl.int32), axis=0) == 0:
        own = of_domain(points, domain)
        how = (wide(DELTA), mean_x(own, BLOCK), 0, TOLERANCE, FULL_PASSES)
        theta, f = _minimise(own, theta, how, BLOCK)
    _store_end(end_ptr + (domain * num_searches + which) * END, theta, f)


@triton.jit
def choose_kernel(
    points, end_ptr, alpha_ptr, best_ptr, num_searches, num_alphas,
    DELTA: tl.constexpr, SEARCHES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each domain's least end, or a lower one from a seed where the law vanished, to best (K, END). Grid (K,)."""
    domain = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, SEARCHES)
    row = end_ptr + domain * num_searches * END
    f_of_lane = tl.load(row + lane * END + 3, lane < num_searches, other=INFINITY)
    theta, f = _load_theta(row + tl.argmin(f_of_lane, axis=0) * END), tl.min(f_of_lane, axis=0)
    own = of_domain(points, domain)
    x0 = mean_x(own, BLOCK)
    if theta[0] - theta[2] * x0 - theta[1] < tl.log(wide(VANISHED)):
        seed, fall = _seed(own, theta, (wide(DELTA), x0), alpha_ptr, num_alphas, BLOCK)
        if fall > 0.0:
            other, other_f = _minimise(own, seed, (wide(DELTA), x0, 0, TOLERANCE, FULL_PASSES), BLOCK)
            if other_f < f:
                theta, f = other, other_f
    _store_end(best_ptr + domain * END, theta, f)


@triton.jit
def _minimise(points, theta, how, BLOCK: tl.constexpr):
    """descent.minimise: (theta, F); how: (Huber width, x0, face, tolerance, most passes)."""
    delta, x0, face, tolerance, max_passes = how
    theta = on_face(theta, face)
    sums = newton_sums(points, theta, delta, BLOCK)
    f = sums[0] + penalty(theta)
    damping, passes, small, going = wide(1.0), 1, 0, 1
    while going == 1:
        new, change = model_step(theta, sums, x0, damping, face)
        goal = tolerance * (f + LOW_KINK)
        worth = -change > goal * NEGLIGIBLE
        within = (damping < MAX_DAMPING) & (small < 2) & (passes < max_passes)
        alone = gain_of_one(theta, sums, face) > goal * NEGLIGIBLE
        going = (within & (worth | alone)).to(tl.int32)
        damped = tl.maximum(damping, wide(LEAST_RAISED)) * RAISE
        if within & worth:
            trial = newton_sums(points, new, delta, BLOCK)
            passes += 1
            gain = f - trial[0] - penalty(new)
            if gain > 0.0:
                small = tl.where((gain < goal) & (gain > -0.25 * change), small + 1, 0)
                damping *= tl.where(gain > -0.75 * change, 0.1, tl.where(gain < -0.25 * change, 4.0, 1.0))
                theta, sums, f = new, trial, f - gain
            else:
                damping = damped
        else:
            damping = damped
    return theta, f


@triton.jit
def _best_start(bins, start_ptr, STARTS: tl.constexpr):
    """The best of the starts by a wide Huber loss on the bins; every start a lane, a few bins at a time."""
    lane = tl.arange(0, STARTS) * 3
    log_beta, log_eps, alpha = tl.load(start_ptr + lane), tl.load(start_ptr + lane + 1), tl.load(start_ptr + lane + 2)
    theta = (log_beta[:, None], log_eps[:, None], alpha[:, None])
    total = tl.zeros([STARTS, AT_ONCE], tl.float64)
    for first in range(0, bins.size, AT_ONCE):
        x, y, w = load(bins, first + tl.arange(0, AT_ONCE))
        size = tl.abs(y[None, :] - theta[1] - tl.log(1.0 + odds(theta, x[None, :])))
        total += w[None, :] * huber(size, wide(FIRST_WIDTH))
    best = tl.argmin(tl.sum(total, axis=1), axis=0)
    return pick(log_beta, best), pick(log_eps, best), pick(alpha, best)


@triton.jit
def _seed(points, theta, how, alpha_ptr, num_alphas, BLOCK: tl.constexpr):
    """search._escape: (theta with a small reducible part along the alpha where F falls fastest, that fall)."""
    delta, x0 = how
    most, chosen = wide(0.0), wide(0.0)
    for k in range(num_alphas):
        alpha = tl.load(alpha_ptr + k)
        fall, curve = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
        for first in range(0, points.size, BLOCK):
            x, y, w = load(points, first + tl.arange(0, BLOCK))
            r = y - theta[1]
            shape = tl.exp(-alpha * (x - x0))
            fall += tl.where(w > 0.0, tl.minimum(tl.maximum(r, -delta), delta) * shape, 0.0)
            curve += tl.where(w > 0.0, delta / tl.maximum(tl.abs(r), delta) * shape * shape, 0.0)
        slope = tl.sum(fall) / tl.sqrt(tl.sum(curve))
        chosen = tl.where(slope > most, alpha, chosen)
        most = tl.where(slope > most, slope, most)
    return (theta[1] + tl.log(wide(SEED)) + chosen * x0, theta[1], chosen), most


@triton.jit
def _load_theta(ptr):
    return tl.load(ptr), tl.load(ptr + 1), tl.load(ptr + 2)


@triton.jit
def _store_end(ptr, theta, f):
    tl.store(ptr, theta[0])
    tl.store(ptr + 1, theta[1])
    tl.store(ptr + 2, theta[2])
    tl.store(ptr + 3, f)
