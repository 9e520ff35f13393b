"""Per-domain sums and counts of token losses on a CPU.

Adding to one table would wait for the previous addition whenever neighbours share a domain (a store forwarded to
a load, 8 cycles); four tables taken in turn hide that. The tokens are cut into slabs by their number alone, each
with its own tables, added in a fixed order: the same bits for any number of threads.
"""

import numpy as np
import torch
from numba import njit, prange

from ado_kernels.ops.numba_math import FAST_SUMS, array, use_torch_threads

_TABLES = 4
_SLAB_TOKENS = 32768
_MAX_SLABS = 16


def domain_loss_cpu(losses_N: torch.Tensor, ids_B: torch.Tensor, num_domains: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(K,) float64 sums, (K,) int64 counts; `losses_N` float32 or float64, `ids_B` one id per N // B tokens."""
    num_tokens, num_ids = losses_N.numel(), ids_B.numel()
    num_slabs = min(max(num_tokens // _SLAB_TOKENS, 1), _MAX_SLABS)
    sums_SQK = np.zeros((num_slabs, _TABLES, num_domains + 1))
    counts_SQK = np.zeros((num_slabs, _TABLES, num_domains + 1), np.int64)
    if num_tokens:
        use_torch_threads()
        accumulate = _per_token if num_tokens == num_ids else _per_sequence
        accumulate(array(losses_N), array(ids_B), num_domains, sums_SQK, counts_SQK)
    sums_K = sums_SQK.sum(axis=(0, 1))[:num_domains]
    counts_K = counts_SQK.sum(axis=(0, 1))[:num_domains]
    return torch.from_numpy(sums_K), torch.from_numpy(counts_K)


@njit(parallel=True, nogil=True, cache=True, boundscheck=False)
def _per_token(losses_N, ids_N, num_domains, sums_SQK, counts_SQK):
    num_tokens, num_slabs = losses_N.size, sums_SQK.shape[0]
    for s in prange(num_slabs):
        sums_QK, counts_QK = sums_SQK[s], counts_SQK[s]
        start, stop = s * num_tokens // num_slabs, (s + 1) * num_tokens // num_slabs
        for i in range(start, stop):
            domain = ids_N[i]
            k = domain if 0 <= domain < num_domains else num_domains
            sums_QK[i & 3, k] += losses_N[i]
            counts_QK[i & 3, k] += 1


@njit(parallel=True, nogil=True, cache=True, fastmath=FAST_SUMS)
def _per_sequence(losses_N, ids_B, num_domains, sums_SQK, counts_SQK):
    num_ids, num_slabs = ids_B.size, sums_SQK.shape[0]
    tokens_per_id = losses_N.size // num_ids
    for s in prange(num_slabs):
        for b in range(s * num_ids // num_slabs, (s + 1) * num_ids // num_slabs):
            domain = ids_B[b]
            if 0 <= domain < num_domains:
                total = np.float64(0.0)
                for i in range(b * tokens_per_id, (b + 1) * tokens_per_id):
                    total += np.float64(losses_N[i])
                sums_SQK[s, 0, domain] += total
                counts_SQK[s, 0, domain] += tokens_per_id
