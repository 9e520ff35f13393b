"""A domain's points on a GPU: smoothed and thinned from its history, binned, and the sums over them.

The Triton counterparts of numba_smoothing.py, of numba_search.bin_points and of numba_points.py; float64 throughout.
Points of all domains lie in (K, M) arrays; a weight of 0 marks a missing one, where every formula stays finite.

The Savitzky-Golay filter is a least-squares cubic, here computed from the four Gram polynomials of a window of 2 h + 1
positions i = -h..h, which are orthogonal to each other:

    1      i      3 i^2 - h (h + 1)      5 i^3 - (3 h^2 + 3 h - 1) i

so no table of weights is made or read, whatever window fits a domain. Source: Gram; Savitzky, Golay 1964.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ado_kernels.fit import numba_search

NUM_BINS = tl.constexpr(numba_search.NUM_BINS)
_Field = Any  # a tensor or number on the host, a pointer or scalar of Triton in a kernel


class History(NamedTuple):
    """Losses and counts of all domains, K rows of num_steps.

    value (K, num_steps + 1): present losses, moved together. rank (K, num_steps) int64: a step's place among those,
    from 1; 0 where its loss is missing. num_present (K,) int64. count: cumulative samples, rows count_stride apart.
    """

    value: _Field
    rank: _Field
    num_present: _Field
    count: _Field
    count_stride: _Field
    num_steps: _Field


class Points(NamedTuple):
    """x = log n, y = log loss, w = weight, each (K, size); within a kernel those of one domain."""

    x: _Field
    y: _Field
    w: _Field
    size: _Field


@triton.jit
def smooth_kernel(history, points, first, every, window, BLOCK: tl.constexpr):
    """Fills `points` at the steps first, first + every, ...; grid (K, blocks of kept steps)."""
    domain = tl.program_id(0).to(tl.int64)  # K times T may exceed 2^31
    kept = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = kept < points.size
    step = tl.where(inside, first + kept * every, 0)
    rank = tl.load(history.rank + domain * history.num_steps + step, inside, other=0)
    num_present = tl.load(history.num_present + domain)
    width = tl.minimum(num_present - 1 + num_present % 2, window)  # the largest odd window that fits
    half = tl.where(width > 3, width // 2, 0)  # no cubic through fewer: not smoothed
    place = tl.maximum(rank - 1, 0)
    # Near the ends the window stops moving, and the point is read off-centre from the last full window's cubic.
    start = tl.minimum(tl.maximum(place - half, 0), num_present - 1 - 2 * half)
    values = history.value + domain * (history.num_steps + 1) + start
    smooth = _cubic_at(values, place - start - half, half, inside & (rank > 0), BLOCK)
    usable = (rank > 0) & (smooth > 0.0)
    row = domain * points.size + kept
    count = tl.load(history.count + domain * history.count_stride + step)
    tl.store(points.x + row, tl.log(count), inside)
    tl.store(points.y + row, tl.log(tl.where(usable, smooth, 1.0)), inside)
    tl.store(points.w + row, usable.to(tl.float64), inside)


@triton.jit
def _cubic_at(value_ptrs, position, half, mask, BLOCK: tl.constexpr):
    """At `position` in -half..half the cubic fitted to the 2 half + 1 values from value_ptrs on."""
    h = half.to(tl.float64)
    zeros = tl.zeros([BLOCK], tl.float64)
    dot0, dot1, dot2, dot3 = zeros, zeros, zeros, zeros
    for i in range(2 * half + 1):
        value = tl.load(value_ptrs + i, mask, other=0.0)
        _, p1, p2, p3 = _gram(i - half, h)
        dot0 += value
        dot1 += value * p1
        dot2 += value * p2
        dot3 += value * p3
    _, p1, p2, p3 = _gram(position, h)
    # The polynomials' squared norms over the window: n, pairs / 3, spread / 5, spread (h - 1) (h + 2) / 7.
    n = 2.0 * h + 1.0
    pairs = h * (h + 1.0) * n
    spread = pairs * (2.0 * h - 1.0) * (2.0 * h + 3.0)
    fitted = dot0 / n
    if half > 0:
        fitted += dot1 * p1 * 3.0 / pairs + dot2 * p2 * 5.0 / spread
        fitted += dot3 * p3 * 7.0 / (spread * (h - 1.0) * (h + 2.0))
    return fitted


@triton.jit
def _gram(position, h):
    """The four polynomials at a position."""
    i = position.to(tl.float64)
    return 1.0, i, 3.0 * i * i - h * (h + 1.0), i * (5.0 * i * i - (3.0 * h * h + 3.0 * h - 1.0))


@triton.jit
def bin_kernel(points, bins, BLOCK: tl.constexpr):
    """numba_search.bin_points: means of x and y over equal widths of x, and counts; program (domain, bin)."""
    domain = tl.program_id(0).to(tl.int64)
    which = tl.program_id(1)
    own = domain_points(points, domain)
    zeros = tl.zeros([BLOCK], tl.float64)
    lows, highs = zeros + float("inf"), zeros + float("-inf")
    for first in range(0, own.size, BLOCK):
        x, _, w = load_points(own, first + tl.arange(0, BLOCK))
        lows = tl.where(w > 0.0, tl.minimum(lows, x), lows)
        highs = tl.where(w > 0.0, tl.maximum(highs, x), highs)
    low, high = tl.min(lows), tl.max(highs)
    scale = tl.where(high > low, NUM_BINS / (high - low), 0.0)
    sum_x, sum_y, number = zeros, zeros, zeros
    for first in range(0, own.size, BLOCK):
        x, y, w = load_points(own, first + tl.arange(0, BLOCK))
        inside = (w > 0.0) & (tl.minimum(((x - low) * scale).to(tl.int32), NUM_BINS - 1) == which)
        sum_x += tl.where(inside, x, 0.0)
        sum_y += tl.where(inside, y, 0.0)
        number += inside.to(tl.float64)
    num = tl.sum(number)
    # An empty bin has weight 0; its x and y are 0, which every formula takes.
    place = domain * NUM_BINS + which
    tl.store(bins.x + place, tl.sum(sum_x) / tl.maximum(num, 1.0))
    tl.store(bins.y + place, tl.sum(sum_y) / tl.maximum(num, 1.0))
    tl.store(bins.w + place, num)


@triton.jit
def float64(constant: tl.constexpr):
    """A constant as float64; a bare one within tl.where, tl.minimum or tl.maximum would be rounded to float32."""
    return tl.full((), constant, tl.float64)


@triton.jit
def domain_points(points, domain):
    """The points of one domain."""
    first = domain * points.size
    return Points(points.x + first, points.y + first, points.w + first, points.size)


@triton.jit
def load_points(points, at):
    """x, y, w of one domain's points; weight 0 beyond the last."""
    mask = at < points.size
    x = tl.load(points.x + at, mask, other=0.0)
    y = tl.load(points.y + at, mask, other=0.0)
    return x, y, tl.load(points.w + at, mask, other=0.0)


@triton.jit
def mean_x(points, BLOCK: tl.constexpr):
    """The weighted mean of log n."""
    total, weight = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    for first in range(0, points.size, BLOCK):
        x, _, w = load_points(points, first + tl.arange(0, BLOCK))
        total += w * x
        weight += w
    return tl.sum(total) / tl.maximum(tl.sum(weight), 1.0)


@triton.jit
def odds(theta, x):
    """u = (L - eps) / eps of the law at log n = x, kept finite."""
    return tl.exp(tl.minimum(tl.maximum(theta[0] - theta[1] - theta[2] * x, -700.0), 700.0))


@triton.jit
def huber(size, delta):
    """The Huber loss: size^2 / 2 up to delta, a straight line beyond."""
    inner = tl.minimum(size, delta)
    return inner * (size - 0.5 * inner)


@triton.jit
def newton_sums(points, theta, delta, BLOCK: tl.constexpr):
    """The sums of step_algebra.py in their slots, as a tuple of scalars."""
    zeros = tl.zeros([BLOCK], tl.float64)
    f, gb, ge, ga = zeros, zeros, zeros, zeros
    in_bb, in_be, in_ba, in_ee, in_ea, in_aa = zeros, zeros, zeros, zeros, zeros, zeros
    out_bb, out_be, out_ba, out_ee, out_ea, out_aa = zeros, zeros, zeros, zeros, zeros, zeros
    for first in range(0, points.size, BLOCK):
        x, y, w = load_points(points, first + tl.arange(0, BLOCK))
        u = odds(theta, x)
        q = 1.0 / (1.0 + u)
        p = u * q
        r = y - theta[1] - tl.log(1.0 + u)
        size = tl.abs(r)
        f += w * huber(size, delta)
        slope = w * tl.minimum(tl.maximum(r, -delta), delta)
        inside = tl.where(size <= delta, w, 0.0)
        outside = w * delta / tl.maximum(size, delta) - inside
        xp = x * p
        gb -= slope * p
        ge -= slope * q
        ga += slope * xp
        bb, be, ba, ee, ea, aa = p * p, p * q, p * xp, q * q, q * xp, xp * xp
        in_bb += inside * bb
        in_be += inside * be
        in_ba -= inside * ba  # J's last entry is -x p
        in_ee += inside * ee
        in_ea -= inside * ea
        in_aa += inside * aa
        out_bb += outside * bb
        out_be += outside * be
        out_ba -= outside * ba
        out_ee += outside * ee
        out_ea -= outside * ea
        out_aa += outside * aa
    # Lanes are added once, after the last block: a reduction in the loop would be a chain of shuffles in each step.
    return (
        tl.sum(f), tl.sum(gb), tl.sum(ge), tl.sum(ga),
        tl.sum(in_bb), tl.sum(in_be), tl.sum(in_ba), tl.sum(in_ee), tl.sum(in_ea), tl.sum(in_aa),
        tl.sum(out_bb), tl.sum(out_be), tl.sum(out_ba), tl.sum(out_ee), tl.sum(out_ea), tl.sum(out_aa),
    )  # fmt: skip
