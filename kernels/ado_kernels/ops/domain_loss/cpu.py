"""Per-domain sums and counts of token losses on a CPU.

Neighbouring tokens mostly share a domain, so runs of 32 equal ids are summed in registers, at the speed of memory.
Elsewhere each token adds to a table of sums and to one of counts, four tokens at a time, so that their loads do not
wait for each other's stores: 4,096 domains are 48 KB, a first-level cache. Tokens are cut into slabs by their number
alone, each with its own tables, added in a fixed order: the same bits for any number of threads.
"""

import warnings

import numpy as np
import torch
from numba import njit, prange

from ado_kernels.ops.numba_math import FAST_SUMS, Array, array, set_loop_threads
from ado_kernels.ops.operands import accumulation_dtype

_RUN = 32
_SLAB_TOKENS = 32768
_MAX_SLABS = 16


def domain_loss_cpu(
    token_losses: torch.Tensor, domain_ids: torch.Tensor, num_domains: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(K,) float64 sums, (K,) int64 counts."""
    losses_N = token_losses.to(accumulation_dtype(token_losses.dtype)).reshape(-1).contiguous()
    ids_B = (domain_ids if domain_ids.dtype == torch.int32 else domain_ids.long()).reshape(-1).contiguous()
    num_tokens, num_ids = losses_N.numel(), ids_B.numel()
    num_slabs = min(max(num_tokens // _SLAB_TOKENS, 1), _MAX_SLABS)
    # One more column, behind the last domain, for tokens of none.
    sums_SK1, counts_SK1 = np.zeros((num_slabs, num_domains + 1)), np.zeros((num_slabs, num_domains + 1), np.int32)
    if num_tokens:
        set_loop_threads(num_tokens)
        if num_tokens == num_ids:
            _per_token(array(losses_N), array(ids_B), sums_SK1, counts_SK1)
        else:
            _per_sequence(array(losses_N.view(num_ids, -1)), array(ids_B), sums_SK1, counts_SK1)
    sums_K1, counts_K1 = sums_SK1.sum(axis=0), counts_SK1.sum(axis=0, dtype=np.int64)
    if counts_K1[-1]:
        _warn_of_invalid_ids(ids_B, num_domains)
    return torch.from_numpy(sums_K1[:-1]), torch.from_numpy(counts_K1[:-1])


def _warn_of_invalid_ids(ids_B: torch.Tensor, num_domains: int) -> None:
    invalid = ids_B[(ids_B < -1) | (ids_B >= num_domains)]
    if invalid.numel():
        warnings.warn(
            f"{invalid.numel()} of {ids_B.numel()} domain ids lie outside [0, {num_domains}), the first is "
            f"{int(invalid[0])}: their tokens are counted in no domain; give -1 where that is meant",
            RuntimeWarning,
            stacklevel=2,
        )


@njit(nogil=True, cache=True)
def _place(id_: int, num_domains: int) -> np.uint64:
    return min(np.uint64(id_), np.uint64(num_domains))  # a negative id is a huge unsigned one


@njit(parallel=True, nogil=True, cache=True)
def _per_token(losses_N: Array, ids_N: Array, sums_SK1: Array, counts_SK1: Array) -> None:
    num_tokens, num_slabs = losses_N.size, sums_SK1.shape[0]
    for s in prange(num_slabs):
        start, stop = s * num_tokens // num_slabs, (s + 1) * num_tokens // num_slabs
        _add_slab(losses_N[start:stop], ids_N[start:stop], sums_SK1[s], counts_SK1[s])


@njit(nogil=True, cache=True, fastmath=FAST_SUMS)
def _add_slab(losses_N: Array, ids_N: Array, sums_K1: Array, counts_K1: Array) -> None:
    num_domains = sums_K1.size - 1
    num_runs = losses_N.size // _RUN
    one = np.int32(1)
    for run in range(num_runs):
        start = run * _RUN
        first = ids_N[start]
        same = first == ids_N[start + _RUN - 1]  # cheap: mixed runs mostly end in another id
        if same:
            for i in range(_RUN):
                same &= ids_N[start + i] == first
        if same:
            total = np.float64(0.0)
            for i in range(_RUN):
                total += np.float64(losses_N[start + i])
            sums_K1[_place(first, num_domains)] += total
            counts_K1[_place(first, num_domains)] += np.int32(_RUN)
        else:
            for i in range(start, start + _RUN, 4):
                a, b = _place(ids_N[i], num_domains), _place(ids_N[i + 1], num_domains)
                c, d = _place(ids_N[i + 2], num_domains), _place(ids_N[i + 3], num_domains)
                sums_K1[a] += losses_N[i]
                sums_K1[b] += losses_N[i + 1]
                sums_K1[c] += losses_N[i + 2]
                sums_K1[d] += losses_N[i + 3]
                counts_K1[a] += one
                counts_K1[b] += one
                counts_K1[c] += one
                counts_K1[d] += one
    for i in range(num_runs * _RUN, losses_N.size):
        sums_K1[_place(ids_N[i], num_domains)] += losses_N[i]
        counts_K1[_place(ids_N[i], num_domains)] += one


@njit(parallel=True, nogil=True, cache=True, fastmath=FAST_SUMS)
def _per_sequence(losses_BT: Array, ids_B: Array, sums_SK1: Array, counts_SK1: Array) -> None:
    num_ids, num_slabs = ids_B.size, sums_SK1.shape[0]
    num_domains = sums_SK1.shape[1] - 1
    for s in prange(num_slabs):
        for b in range(s * num_ids // num_slabs, (s + 1) * num_ids // num_slabs):
            row_T = losses_BT[b]  # a view from 0: an index that might be negative is not vectorised
            total = np.float64(0.0)
            for t in range(row_T.size):
                total += np.float64(row_T[t])
            k = _place(ids_B[b], num_domains)
            sums_SK1[s, k] += total
            counts_SK1[s, k] += np.int32(row_T.size)
