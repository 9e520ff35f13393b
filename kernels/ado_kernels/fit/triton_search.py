"""The global search of numba_search.py in Triton: three kernels over domains and searches.

Every search starts at the best of its part of the grid and is followed on few binned points by one warp; distinct ends
are refined on all points, each by a program of its own; a last program per domain takes the least and restarts a law
that vanished. A search is held on a kink or starts from one alpha of the grid, in numba_search.py's order.
"""

import triton
import triton.language as tl

from ado_kernels.fit import numba_descent, numba_search
from ado_kernels.fit.triton_points import domain_points, float64, huber, load_points, mean_x, newton_sums, odds
from ado_kernels.fit.triton_step import (
    LOSS,
    LOW_KINK,
    model_step,
    penalty,
    put_on_face,
    single_parameter_gain,
    take_lane,
)

NUM_KINKS = tl.constexpr(numba_search.NUM_FACES - 1)
FIRST_WIDTH, SECOND_WIDTH = tl.constexpr(numba_search.WIDTHS[0]), tl.constexpr(numba_search.WIDTHS[1])
NUM_WIDTHS = tl.constexpr(len(numba_search.WIDTHS))
COARSE_PASSES = tl.constexpr(numba_search.COARSE_PASSES)
COARSE_TOLERANCE = tl.constexpr(numba_search.COARSE_TOLERANCE)
FULL_PASSES = tl.constexpr(numba_search.FULL_PASSES)
TOLERANCE = tl.constexpr(numba_search.TOLERANCE)
SAME = tl.constexpr(numba_search.SAME)
VANISHED = tl.constexpr(numba_search.VANISHED)
SEED = tl.constexpr(numba_search.SEED)
MAX_DAMPING = tl.constexpr(numba_descent.MAX_DAMPING)
RAISE_FROM = tl.constexpr(numba_descent.RAISE_FROM)
RAISE_BY = tl.constexpr(numba_descent.RAISE_BY)
NEGLIGIBLE = tl.constexpr(numba_descent.NEGLIGIBLE)
INFINITY = tl.constexpr(float("inf"))
BINS_AT_A_TIME = tl.constexpr(4)  # for every start at once: enough independent work for one warp
END = tl.constexpr(4)  # numbers that describe where a search ended: theta, F


@triton.jit
def coarse_kernel(bins, start_ptr, end_ptr, DELTA: tl.constexpr, STARTS: tl.constexpr, BLOCK: tl.constexpr):
    """Program (domain, search): follows it on the bins, to end (K, S, END); start (S, STARTS, 3): its starts."""
    domain, which = tl.program_id(0).to(tl.int64), tl.program_id(1)
    own = domain_points(bins, domain)
    face = tl.where(which < NUM_KINKS, which + 1, 0)
    theta = _best_start(own, start_ptr + which * STARTS * 3, STARTS)
    x0 = mean_x(own, BLOCK)
    f = float64(0.0)
    for stage in range(NUM_WIDTHS):
        # WIDTHS[stage]: a constant tuple cannot be indexed by the loop's variable.
        width = tl.where(stage == 0, float64(FIRST_WIDTH), tl.where(stage == 1, float64(SECOND_WIDTH), 0.0))
        width = tl.maximum(width, float64(DELTA))
        theta, f = _minimise(own, theta, (width, x0, face, COARSE_TOLERANCE, COARSE_PASSES), BLOCK)
    _store_end(end_ptr + (domain * tl.num_programs(1) + which) * END, theta, f)


@triton.jit
def refine_kernel(points, coarse_ptr, end_ptr, DELTA: tl.constexpr, SEARCHES: tl.constexpr, BLOCK: tl.constexpr):
    """Program (domain, search): refines a coarse end on all points, to end (K, S, END); F infinite for a duplicate."""
    domain, which = tl.program_id(0).to(tl.int64), tl.program_id(1)
    num_searches = tl.num_programs(1)
    coarse_ptr += domain * num_searches * END
    lane = tl.arange(0, SEARCHES)
    f_of_lane = tl.load(coarse_ptr + lane * END + 3, lane < num_searches, other=0.0)
    own_f = tl.load(coarse_ptr + which * END + 3)
    # An end counts as one minimum with any earlier search's end of nearly its F; the first of them is refined.
    duplicate = (lane < which) & (tl.abs(own_f - f_of_lane) < (own_f + LOW_KINK) * SAME)
    theta = _load_theta(coarse_ptr + which * END)
    f = float64(INFINITY)
    if tl.max(duplicate.to(tl.int32), axis=0) == 0:
        own = domain_points(points, domain)
        settings = (float64(DELTA), mean_x(own, BLOCK), 0, TOLERANCE, FULL_PASSES)
        theta, f = _minimise(own, theta, settings, BLOCK)
    _store_end(end_ptr + (domain * num_searches + which) * END, theta, f)


@triton.jit
def choose_kernel(
    points, end_ptr, alpha_ptr, best_ptr, num_searches, num_alphas,
    DELTA: tl.constexpr, SEARCHES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (domain): its least end, or a lower one found by a restart where the law vanished, to best (K, END)."""
    domain = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, SEARCHES)
    row = end_ptr + domain * num_searches * END
    f_of_lane = tl.load(row + lane * END + 3, lane < num_searches, other=INFINITY)
    theta, f = _load_theta(row + tl.argmin(f_of_lane, axis=0) * END), tl.min(f_of_lane, axis=0)
    own = domain_points(points, domain)
    x0 = mean_x(own, BLOCK)
    if theta[0] - theta[2] * x0 - theta[1] < tl.log(float64(VANISHED)):
        seed, fall = _restart_vanished(own, theta, float64(DELTA), x0, alpha_ptr, num_alphas, BLOCK)
        if fall > 0.0:
            other, other_f = _minimise(own, seed, (float64(DELTA), x0, 0, TOLERANCE, FULL_PASSES), BLOCK)
            if other_f < f:
                theta, f = other, other_f
    _store_end(best_ptr + domain * END, theta, f)


@triton.jit
def _minimise(points, theta, settings, BLOCK: tl.constexpr):
    """numba_descent.minimise: (theta, F); settings: (Huber width, x0, face, tolerance, most passes)."""
    delta, x0, face, tolerance, max_passes = settings
    theta = put_on_face(theta, face)
    sums = newton_sums(points, theta, delta, BLOCK)
    f = sums[LOSS] + penalty(theta)
    damping, passes, small, going = float64(1.0), 1, 0, 1
    while going == 1:  # Triton has no break: the condition is computed in the body, and nothing follows where it is 0
        new, change = model_step(theta, sums, x0, damping, face)
        least_gain = tolerance * (f + LOW_KINK)
        gains = -change > least_gain * NEGLIGIBLE
        within = (damping < MAX_DAMPING) & (small < 2) & (passes < max_passes)
        gains_alone = single_parameter_gain(theta, sums, face) > least_gain * NEGLIGIBLE
        going = (within & (gains | gains_alone)).to(tl.int32)
        damped = tl.maximum(damping, float64(RAISE_FROM)) * RAISE_BY
        if within & gains:  # the only pass over the points in the body
            trial = newton_sums(points, new, delta, BLOCK)
            passes += 1
            gain = f - trial[LOSS] - penalty(new)
            if gain > 0.0:
                # Trust-region rule of numba_descent.minimise; `change` is negative.
                small = tl.where((gain < least_gain) & (gain > -0.25 * change), small + 1, 0)
                damping *= tl.where(gain > -0.75 * change, 0.1, tl.where(gain < -0.25 * change, 4.0, 1.0))
                theta, sums, f = new, trial, f - gain
            else:
                damping = damped
        else:
            damping = damped
    return theta, f


@triton.jit
def _best_start(bins, start_ptr, STARTS: tl.constexpr):
    """The best of the starts by a float64 Huber loss on the bins; every start a lane, a few bins at a time."""
    lane = tl.arange(0, STARTS) * 3
    log_beta, log_eps, alpha = tl.load(start_ptr + lane), tl.load(start_ptr + lane + 1), tl.load(start_ptr + lane + 2)
    theta = (log_beta[:, None], log_eps[:, None], alpha[:, None])
    total = tl.zeros([STARTS, BINS_AT_A_TIME], tl.float64)
    for first in range(0, bins.size, BINS_AT_A_TIME):
        x, y, w = load_points(bins, first + tl.arange(0, BINS_AT_A_TIME))
        size = tl.abs(y[None, :] - theta[1] - tl.log(1.0 + odds(theta, x[None, :])))
        total += w[None, :] * huber(size, float64(FIRST_WIDTH))
    best = tl.argmin(tl.sum(total, axis=1), axis=0)
    return take_lane(log_beta, best), take_lane(log_eps, best), take_lane(alpha, best)


@triton.jit
def _restart_vanished(points, theta, delta, x0, alpha_ptr, num_alphas, BLOCK: tl.constexpr):
    """(theta with a small reducible part along the alpha where F falls fastest, that fall); 0: F falls along none."""
    most, chosen = float64(0.0), float64(0.0)
    for k in range(num_alphas):
        alpha = tl.load(alpha_ptr + k)
        fall, curve = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
        for first in range(0, points.size, BLOCK):
            x, y, w = load_points(points, first + tl.arange(0, BLOCK))
            r = y - theta[1]
            shape = tl.exp(-alpha * (x - x0))  # may overflow where there is no point, hence tl.where and not w *
            fall += tl.where(w > 0.0, tl.minimum(tl.maximum(r, -delta), delta) * shape, 0.0)
            curve += tl.where(w > 0.0, delta / tl.maximum(tl.abs(r), delta) * shape * shape, 0.0)
        slope = tl.sum(fall) / tl.sqrt(tl.sum(curve))  # the parabola's fall is slope^2 / 2
        chosen = tl.where(slope > most, alpha, chosen)
        most = tl.where(slope > most, slope, most)
    return (theta[1] + tl.log(float64(SEED)) + chosen * x0, theta[1], chosen), most


@triton.jit
def _load_theta(ptr):
    return tl.load(ptr), tl.load(ptr + 1), tl.load(ptr + 2)


@triton.jit
def _store_end(ptr, theta, f):
    tl.store(ptr, theta[0])
    tl.store(ptr + 1, theta[1])
    tl.store(ptr + 2, theta[2])
    tl.store(ptr + 3, f)
