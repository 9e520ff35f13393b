"""Per-domain sums and counts of token losses on a CPU.

Neighbouring tokens mostly share a domain, so runs of 32 equal ids are summed in registers, at the speed of memory.
Elsewhere each token adds to a table, where an addition would wait for the one before whenever two neighbours share a
domain (a store forwarded to a load, 8 cycles): few domains get four tables, taken in turn; many domains collide
seldom and get one, which fits the cache. Tokens are cut into slabs by their number alone, each with its own tables,
added in a fixed order: the same bits for any number of threads.
"""

import numpy as np
import torch
from numba import njit, prange

from ado_kernels.ops.numba_math import FAST_SUMS, array, use_threads

_RUN = 32
_FEW_DOMAINS = 256
_SLAB_TOKENS = 32768
_MAX_SLABS = 16


def domain_loss_cpu(losses_N: torch.Tensor, ids_B: torch.Tensor, num_domains: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(K,) float64 sums, (K,) int64 counts; `losses_N` float32 or float64, `ids_B` one id per N // B tokens."""
    num_tokens, num_ids = losses_N.numel(), ids_B.numel()
    num_slabs = min(max(num_tokens // _SLAB_TOKENS, 1), _MAX_SLABS)
    num_tables = 4 if num_domains < _FEW_DOMAINS else 1
    # Last axis: sum, count. Counts are exact in float64 to 2^53 and share the sum's cache line.
    tables_SQK2 = np.zeros((num_slabs, num_tables, num_domains + 1, 2))
    if num_tokens:
        use_threads(num_tokens)
        if num_tokens == num_ids:
            _per_token(array(losses_N), array(ids_B), tables_SQK2)
        else:
            _per_sequence(array(losses_N.view(num_ids, -1)), array(ids_B), tables_SQK2)
    totals_K2 = tables_SQK2.sum(axis=(0, 1))[:num_domains]
    return torch.from_numpy(totals_K2[:, 0].copy()), torch.from_numpy(totals_K2[:, 1].astype(np.int64))


@njit(parallel=True, nogil=True, cache=True)
def _per_token(losses_N, ids_N, tables_SQK2):
    num_tokens, num_slabs = losses_N.size, tables_SQK2.shape[0]
    for s in prange(num_slabs):
        start, stop = s * num_tokens // num_slabs, (s + 1) * num_tokens // num_slabs
        _add_slab(losses_N[start:stop], ids_N[start:stop], tables_SQK2[s])


@njit(nogil=True, cache=True, fastmath=FAST_SUMS)
def _add_slab(losses_N, ids_N, tables_QK2):
    last_table, nowhere = np.uint64(tables_QK2.shape[0] - 1), np.uint64(tables_QK2.shape[1] - 1)
    num_runs = losses_N.size // _RUN
    for run in range(num_runs):
        start = run * _RUN
        first = ids_N[start]
        same = first == ids_N[start + _RUN - 1]
        if same:
            for i in range(_RUN):
                same &= ids_N[start + i] == first
        if same:
            total = np.float64(0.0)
            for i in range(_RUN):
                total += np.float64(losses_N[start + i])
            k = min(np.uint64(first), nowhere)  # a negative id is a huge unsigned one
            tables_QK2[0, k, 0] += total
            tables_QK2[0, k, 1] += _RUN
        else:
            for i in range(_RUN):
                k = min(np.uint64(ids_N[start + i]), nowhere)
                table = np.uint64(i) & last_table
                tables_QK2[table, k, 0] += losses_N[start + i]
                tables_QK2[table, k, 1] += 1.0
    for i in range(num_runs * _RUN, losses_N.size):
        k = min(np.uint64(ids_N[i]), nowhere)
        tables_QK2[0, k, 0] += losses_N[i]
        tables_QK2[0, k, 1] += 1.0


@njit(parallel=True, nogil=True, cache=True, fastmath=FAST_SUMS)
def _per_sequence(losses_BT, ids_B, tables_SQK2):
    num_ids, num_slabs = ids_B.size, tables_SQK2.shape[0]
    nowhere = np.uint64(tables_SQK2.shape[2] - 1)
    for s in prange(num_slabs):
        table_K2 = tables_SQK2[s, 0]
        for b in range(s * num_ids // num_slabs, (s + 1) * num_ids // num_slabs):
            k = min(np.uint64(ids_B[b]), nowhere)
            row_T = losses_BT[b]  # a view from 0: an index that might be negative is not vectorised
            total = np.float64(0.0)
            for t in range(row_T.size):
                total += np.float64(row_T[t])
            table_K2[k, 0] += total
            table_K2[k, 1] += row_T.size
