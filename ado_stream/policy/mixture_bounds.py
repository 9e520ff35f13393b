"""Lower and upper bounds on mixtures: pure functions on (K,) float64 shares that sum to one.

There are two floors. `reference_clip` reproduces the reference implementation of arXiv 2410.11820: after its last
division an entry can lie below the floor. `raise_to_floor` is exact water-filling, p_k = max(d, s p_k) with the one s
that makes the sum 1; `lower_to_ceiling` is its mirror, with a bound for each domain. docs/math.md section 4.
"""

import numpy as np

from ado_stream.errors import ConfigError
from ado_stream.option_checks import number
from ado_stream.value_types import Floats


def reference_clip(share_K: Floats, floor: float) -> Floats:
    """p scaled by (1 - max(K d - sum p, 0)) / sum p, raised to at least d, divided by its sum."""
    total = share_K.sum()
    raised_K: Floats = np.maximum(share_K * ((1.0 - max(len(share_K) * floor - total, 0.0)) / total), floor)
    return raised_K / float(raised_K.sum())


def check_floor(floor: float, num_domains: int, what: str = "floor") -> float:
    """`floor` if K floors sum to at most 1. Raises ConfigError with the greatest floor that works."""
    floor = number(what, floor, 0.0)
    if floor * num_domains > 1.0 + 1e-12:
        scale = 10 ** (len(str(num_domains)) + 1)
        at_most = scale // num_domains / scale
        raise ConfigError(f"{what}: {floor:g} x {num_domains} = {floor * num_domains:g} > 1; at most {at_most:g}.")
    return floor


def raise_to_floor(share_K: Floats, floor: float) -> Floats:
    """p_k = max(d, s p_k), s such that the sum is 1; `share_K` itself when nothing is below the floor.

    Needs K d <= 1 (check_floor). Every entry is at least d exactly; entries above it keep their proportions.
    """
    ascending_K = np.sort(share_K)
    if ascending_K[0] >= floor:
        return share_K
    # the smallest m entries are at the floor, and s = (1 - d m) / (sum of the others): the right m is the first for
    # which the next entry is not raised, s p >= d
    rest = float(np.add.reduce(ascending_K))  # of this entry and all greater ones
    for num_bound, value in enumerate(ascending_K.tolist()):  # Python floats: twice as fast as arrays for 22 domains
        if value * (1.0 - floor * num_bound) >= floor * rest:
            scale = (1.0 - floor * num_bound) / float(np.add.reduce(ascending_K[num_bound:]))
            return np.maximum(share_K * scale, floor)
        rest -= value
    return np.full(len(share_K), 1.0 / len(share_K))  # K d = 1


def lower_to_ceiling(share_K: Floats, ceiling_K: float | Floats) -> Floats:
    """p_k <= u_k, the excess shared over the others in proportion, repeated until none exceeds.

    `share_K` itself when nothing exceeds. When the others have no share of their own, they take the excess in
    proportion to their ceilings; when all ceilings together are below 1, the mixture is proportional to them.
    """
    high_K = share_K > ceiling_K
    if not high_K.any():
        return share_K
    ceiling_K = np.broadcast_to(ceiling_K, share_K.shape)
    if ceiling_K.sum() <= 1.0:
        return ceiling_K / float(ceiling_K.sum())
    while True:  # each round adds a domain to the bound ones, so at most K rounds
        left = 1.0 - ceiling_K[high_K].sum()
        base_K = np.where(high_K, 0.0, share_K if share_K[~high_K].sum() > 0.0 else ceiling_K)
        lowered_K = left * (base_K / base_K.sum())  # this order: left / sum overflows when all the rest is tiny
        still_high_K = high_K | (lowered_K > ceiling_K)
        if still_high_K.sum() == high_K.sum():
            return np.where(high_K, ceiling_K, lowered_K)
        high_K = still_high_K


def raise_to_floors(share_K: Floats, floor_K: Floats) -> Floats:
    """p_k >= d_k, what is lacking taken from the others in proportion, repeated until none is below its floor.

    `share_K` itself when nothing is below. Needs sum d <= 1.
    """
    low_K = share_K < floor_K
    while low_K.any():
        raised_K = np.where(low_K, floor_K, share_K * ((1.0 - floor_K[low_K].sum()) / share_K[~low_K].sum()))
        still_low_K = low_K | (raised_K < floor_K)
        if still_low_K.sum() == low_K.sum():
            return raised_K
        low_K = still_low_K
    return share_K


def bring_within(share_K: Floats, low_K: Floats, high_K: Floats) -> Floats:
    """p_k = min(max(l_k, s p_k), u_k), s such that the sum is 1; `share_K` itself when no bound is passed.

    Domains without a share take, in proportion to their room, what the others' upper bounds leave. Bounds that no
    mixture has (sum l > 1 or sum u < 1) are themselves scaled to the sum 1; where all u are 0, nothing is bounded.
    """
    if ((low_K <= share_K) & (share_K <= high_K)).all() or not high_K.any():  # of a run's only domain left
        return share_K
    if low_K.sum() >= 1.0 or high_K.sum() <= 1.0:
        nearest_K = low_K if low_K.sum() >= 1.0 else high_K
        return nearest_K if abs(nearest_K.sum() - 1.0) < 1e-12 else nearest_K / nearest_K.sum()
    drawn_K = share_K > 0.0
    most_K = np.where(drawn_K, high_K, low_K)  # as s grows
    lacking, room_K = 1.0 - most_K.sum(), high_K - most_K
    if lacking >= 0.0:
        return most_K + (room_K * (lacking / room_K.sum()) if lacking > 0.0 else 0.0)
    # The sum is piecewise linear in s, with breaks where a share meets a bound.
    breaks = np.unique(np.concatenate([bound_K[drawn_K] / share_K[drawn_K] for bound_K in (low_K, high_K)]))
    sums = np.clip(breaks[:, None] * share_K, low_K, high_K).sum(axis=1)
    # The sum rises from that of low_K, under 1, to that of most_K, over 1: it crosses 1 between two breaks.
    within_K: Floats = np.clip(np.interp(1.0, sums, breaks) * share_K, low_K, high_K)
    return within_K
