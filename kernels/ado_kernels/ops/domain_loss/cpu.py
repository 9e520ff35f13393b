"""Per-domain sums and counts of token losses on a CPU.

Adding to one table would wait for the previous addition whenever neighbours share a domain (a store forwarded to
a load, 8 cycles); four tables taken in turn hide that. The tokens are cut into slabs by their number alone, each
with its own tables, added in a fixed order: the same bits for any number of threads.
"""

import numpy as np
import torch
from numba import njit, prange

from ado_kernels.ops.numba_math import FAST_SUMS, array, use_threads

_TABLES = 4
_SLAB_TOKENS = 32768
_MAX_SLABS = 16


def domain_loss_cpu(losses_N: torch.Tensor, ids_B: torch.Tensor, num_domains: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(K,) float64 sums, (K,) int64 counts; `losses_N` float32 or float64, `ids_B` one id per N // B tokens."""
    num_tokens, num_ids = losses_N.numel(), ids_B.numel()
    num_slabs = min(max(num_tokens // _SLAB_TOKENS, 1), _MAX_SLABS)
    # Last axis: sum, count. Counts are exact in float64 to 2^53 and share the sum's cache line.
    tables_SQK2 = np.zeros((num_slabs, _TABLES, num_domains + 1, 2))
    if num_tokens:
        use_threads(num_tokens)
        accumulate = _per_token if num_tokens == num_ids else _per_sequence
        accumulate(array(losses_N), array(ids_B), tables_SQK2)
    totals_K2 = tables_SQK2.sum(axis=(0, 1))[:num_domains]
    return torch.from_numpy(totals_K2[:, 0].copy()), torch.from_numpy(totals_K2[:, 1].astype(np.int64))


@njit(parallel=True, nogil=True, cache=True)
def _per_token(losses_N, ids_N, tables_SQK2):
    num_tokens, num_slabs = losses_N.size, tables_SQK2.shape[0]
    nowhere = np.uint64(tables_SQK2.shape[2] - 1)
    for s in prange(num_slabs):
        tables_QK2 = tables_SQK2[s]
        for i in range(s * num_tokens // num_slabs, (s + 1) * num_tokens // num_slabs):
            k = min(np.uint64(ids_N[i]), nowhere)  # a negative id is a huge unsigned one
            table = np.uint64(i) & np.uint64(_TABLES - 1)
            tables_QK2[table, k, 0] += losses_N[i]
            tables_QK2[table, k, 1] += 1.0


@njit(parallel=True, nogil=True, cache=True, fastmath=FAST_SUMS)
def _per_sequence(losses_N, ids_B, tables_SQK2):
    num_ids, num_slabs = ids_B.size, tables_SQK2.shape[0]
    nowhere = np.uint64(tables_SQK2.shape[2] - 1)
    tokens_per_id = losses_N.size // num_ids
    for s in prange(num_slabs):
        table_K2 = tables_SQK2[s, 0]
        for b in range(s * num_ids // num_slabs, (s + 1) * num_ids // num_slabs):
            k = min(np.uint64(ids_B[b]), nowhere)
            total = np.float64(0.0)
            for i in range(b * tokens_per_id, (b + 1) * tokens_per_id):
                total += np.float64(losses_N[i])
            table_K2[k, 0] += total
            table_K2[k, 1] += tokens_per_id
