"""Which domain fills which slot of a step's global batch: a pure function of (mixture, seed, step).

Systematic resampling (MATH.md section 7; Carpenter, Clifford, Fearnhead 1999): one u in [0, 1) a step; point j of B
takes the domain whose interval of the cumulative mixture holds (u + j) / B. So E[c_k] = B p_k and |c_k - B p_k| < 1 at
every step. The points are then dealt to the slots by a permutation. `multinomial` draws each slot on its own.
Cost O(B + K).
"""

import numpy as np
from numba import njit

from ado_stream.errors import ConfigError
from ado_stream.stream.randomness import key_of, permute, uniform

SAMPLINGS = ("systematic", "multinomial")


@njit(cache=True, nogil=True)
def _systematic(mixture_K, u, key, domain_B):
    num_slots = domain_B.size
    total = 0.0
    last = 0
    for k in range(mixture_K.size):
        total += mixture_K[k]
        if mixture_K[k] > 0.0:
            last = k
    cumulative = 0.0
    start = 0
    for k in range(last + 1):
        cumulative += mixture_K[k]
        end = num_slots if k == last else min(num_slots, int(np.ceil(num_slots * (cumulative / total) - u)))
        for j in range(start, end):
            domain_B[permute(j, num_slots, key)] = k
        start = max(start, end)


@njit(cache=True, nogil=True)
def _multinomial(mixture_K, key, domain_B):
    cumulative_K = np.cumsum(mixture_K)
    total = cumulative_K[-1]
    last = 0
    for k in range(mixture_K.size):
        if mixture_K[k] > 0.0:
            last = k
    for slot in range(domain_B.size):
        point = uniform(key, np.uint64(slot)) * total
        domain_B[slot] = min(last, np.searchsorted(cumulative_K, point, side="right"))


@njit(cache=True, nogil=True)
def _advance(domain_B, cursors_KC, position_B):
    num_lanes = cursors_KC.shape[1]
    num_slots = domain_B.size
    for slot in range(num_slots):
        k = domain_B[slot]
        lane = slot * num_lanes // num_slots
        position_B[slot] = cursors_KC[k, lane]
        cursors_KC[k, lane] += 1


def draw_domains(mixture_K: np.ndarray, num_slots: int, seed: int, step: int, sampling: str) -> np.ndarray:
    """(B,) int32: the domain of every slot of step `step`'s global batch.

    mixture_K: (K,) float64 >= 0, not all 0; its sum is divided out. Raises ConfigError for an unknown `sampling`.
    """
    domain_B = np.empty(num_slots, np.int32)
    if sampling == "systematic":
        u = uniform(key_of("draw", seed, step), np.uint64(0))
        _systematic(mixture_K, u, key_of("slots", seed, step), domain_B)
    elif sampling == "multinomial":
        _multinomial(mixture_K, key_of("draw", seed, step), domain_B)
    else:
        raise ConfigError(f"sampling '{sampling}'; expected one of {', '.join(SAMPLINGS)}.")
    return domain_B


def advance(domain_B: np.ndarray, cursors_KC: np.ndarray) -> np.ndarray:
    """(B,) int64: each slot's position in its domain's order, in its lane; moves `cursors_KC` (int64) in place.

    Slot j belongs to lane floor(j C / B), so lane c fills the slots [c B / C, (c + 1) B / C) when C divides B. Within
    a lane, slots are served in ascending order: any run of slots of one domain reads consecutive positions.
    """
    position_B = np.empty(domain_B.size, np.int64)
    _advance(domain_B, cursors_KC, position_B)
    return position_B
