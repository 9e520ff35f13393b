"""Per-domain sums and counts of token losses on a GPU, deterministic and without atomics.

Program (s, j) compares the tokens of slab s with domains [jB, (j+1)B) and keeps float64 sums and integer counts;
slabs are then added in a fixed order. The number of slabs depends on the number of tokens alone, so the bits do not
depend on the GPU.
"""

import torch
import triton
import triton.language as tl

from ado_kernels.ops.launch import Launch

_BLOCK_N, _BLOCK_K = 128, 16
_SLAB_TOKENS, _MAX_SLABS = 1024, 128


def domain_loss_gpu(losses_N: torch.Tensor, ids_B: torch.Tensor, num_domains: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(K,) float64 sums and (K,) int64 counts; one id per N // B tokens; both inputs contiguous."""
    num_tokens, device = losses_N.numel(), losses_N.device
    num_slabs = min(max(triton.cdiv(num_tokens, _SLAB_TOKENS), 1), _MAX_SLABS)
    sums_SK = torch.empty(num_slabs, num_domains, dtype=torch.float64, device=device)
    counts_SK = torch.empty(num_slabs, num_domains, dtype=torch.int64, device=device)
    slab_tokens = triton.cdiv(triton.cdiv(num_tokens, num_slabs), _BLOCK_N) * _BLOCK_N
    domain_loss_kernel[(num_slabs, triton.cdiv(num_domains, _BLOCK_K))](
        losses_N,
        ids_B,
        sums_SK,
        counts_SK,
        num_tokens,
        num_tokens // max(ids_B.numel(), 1),
        slab_tokens,
        num_domains,
        BLOCK_N=_BLOCK_N,
        BLOCK_K=_BLOCK_K,
        **Launch().options(),
    )
    sums_K = torch.empty(num_domains, dtype=torch.float64, device=device)
    counts_K = torch.empty(num_domains, dtype=torch.int64, device=device)
    sum_slabs_kernel[(triton.cdiv(num_domains, 64),)](
        sums_SK, counts_SK, sums_K, counts_K, num_slabs, num_domains, BLOCK_K=64, **Launch(warps=2).options()
    )
    return sums_K, counts_K


@triton.jit
def domain_loss_kernel(
    losses_ptr,
    ids_ptr,
    sums_ptr,
    counts_ptr,
    num_tokens,
    tokens_per_id,
    slab_tokens,
    num_domains,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Program (slab, block of domains): sums and counts of the slab's tokens, to row `slab` of the partial results."""
    slab = tl.program_id(0).to(tl.int64)
    domains = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    sums = tl.zeros((BLOCK_K,), tl.float64)
    counts = tl.zeros((BLOCK_K,), tl.int64)
    for start in range(0, slab_tokens, BLOCK_N):
        tokens = slab * slab_tokens + start + tl.arange(0, BLOCK_N)
        mask = tokens < num_tokens
        losses = tl.load(losses_ptr + tokens, mask, other=0.0).to(tl.float64)
        ids = tl.load(ids_ptr + tokens // tokens_per_id, mask, other=-1)
        own = ids[:, None] == domains[None, :]
        sums += tl.sum(tl.where(own, losses[:, None], 0.0), axis=0)
        counts += tl.sum(own.to(tl.int64), axis=0)
    place = slab * num_domains + domains
    tl.store(sums_ptr + place, sums, domains < num_domains)
    tl.store(counts_ptr + place, counts, domains < num_domains)


@triton.jit
def sum_slabs_kernel(
    slab_sums_ptr, slab_counts_ptr, sums_ptr, counts_ptr, num_slabs, num_domains, BLOCK_K: tl.constexpr
):
    """Program (block of domains): adds the slabs' partial results in their order."""
    domains = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    mask = domains < num_domains
    sums = tl.zeros((BLOCK_K,), tl.float64)
    counts = tl.zeros((BLOCK_K,), tl.int64)
    for slab in range(num_slabs):
        sums += tl.load(slab_sums_ptr + slab * num_domains + domains, mask, other=0.0)
        counts += tl.load(slab_counts_ptr + slab * num_domains + domains, mask, other=0)
    tl.store(sums_ptr + domains, sums, mask)
    tl.store(counts_ptr + domains, counts, mask)
