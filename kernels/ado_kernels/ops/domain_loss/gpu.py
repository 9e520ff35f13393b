"""Per-domain sums and counts of token losses on a GPU, deterministic and without atomics.

Program (s, j) compares the tokens of slab s with domains [jB, (j + 1) B) and keeps float64 sums and integer counts;
slabs are then added in a fixed order. The number of slabs depends on the number of tokens alone, so the bits do not
depend on the GPU. Column K, behind the last domain, takes every kept token whatever its domain: what a mean loss needs.

An invalid id is written to one word of page-locked memory, which the host reads at the next call: reported without
waiting for the device, at no cost where there is none.
"""

import functools
import warnings

import torch
import triton
import triton.language as tl

from ado_kernels.ops.launch import Launch

_BLOCK_N, _BLOCK_K, _SUM_K = 128, 16, 16
_SLAB_TOKENS, _MAX_SLABS = 1024, 128
_NO_INVALID_ID = -1  # a valid id: a token of no domain
_Pair = tuple[torch.Tensor, torch.Tensor]


def domain_loss_gpu(token_losses: torch.Tensor, domain_ids: torch.Tensor, num_domains: int) -> _Pair:
    """(K,) float64 sums and (K,) int64 counts."""
    sums_K1, counts_K1 = reduce_by_domain(token_losses, domain_ids, num_domains)
    return sums_K1[:num_domains], counts_K1[:num_domains]


def reduce_by_domain(
    token_losses: torch.Tensor,
    domain_ids: torch.Tensor,
    num_domains: int,
    targets_N: torch.Tensor | None = None,
    ignore_index: int = 0,
) -> _Pair:
    """(K + 1,) float64 sums and int64 counts, the last of all tokens. Those of target ignore_index are not counted."""
    losses_N, ids_B = token_losses.reshape(-1).contiguous(), domain_ids.reshape(-1).contiguous()
    num_tokens, device = losses_N.numel(), losses_N.device
    invalid_id = warn_of_invalid_id(device, num_domains)
    num_slabs = min(max(triton.cdiv(num_tokens, _SLAB_TOKENS), 1), _MAX_SLABS)
    sums_SK = torch.empty(num_slabs, num_domains + 1, dtype=torch.float64, device=device)
    counts_SK = torch.empty(num_slabs, num_domains + 1, dtype=torch.int64, device=device)
    domain_loss_kernel[(num_slabs, triton.cdiv(num_domains + 1, _BLOCK_K))](
        losses_N,
        ids_B,
        losses_N if targets_N is None else targets_N,
        sums_SK,
        counts_SK,
        invalid_id,
        num_tokens,
        num_tokens // max(ids_B.numel(), 1),
        triton.cdiv(triton.cdiv(num_tokens, num_slabs), _BLOCK_N) * _BLOCK_N,
        num_domains,
        ignore_index,
        HAS_TARGETS=targets_N is not None,
        BLOCK_N=_BLOCK_N,
        BLOCK_K=_BLOCK_K,
        **Launch().options(),
    )
    sums_K1, counts_K1 = torch.empty_like(sums_SK[0]), torch.empty_like(counts_SK[0])
    sum_slabs_kernel[(triton.cdiv(num_domains + 1, _SUM_K),)](
        sums_SK, counts_SK, sums_K1, counts_K1, num_slabs, num_domains + 1,
        BLOCK_S=_MAX_SLABS, BLOCK_K=_SUM_K, **Launch().options(),
    )  # fmt: skip
    return sums_K1, counts_K1


def warn_of_invalid_id(device: torch.device, num_domains: int) -> torch.Tensor:
    """The word where kernels leave an invalid id; warns (RuntimeWarning) of one left by an earlier call.

    The first call ever may be recorded into a CUDA graph, where no page-locked memory can be allocated: that graph
    writes to a word of its own, which is never read.
    """
    if (
        device.type == "cuda"
        and torch.cuda.is_current_stream_capturing()
        and not _invalid_id_word.cache_info().currsize
    ):
        return torch.full((), _NO_INVALID_ID, dtype=torch.int64, device=device)
    word = _invalid_id_word(device.type)
    invalid_id = int(word)
    if invalid_id != _NO_INVALID_ID:
        word.fill_(_NO_INVALID_ID)
        warnings.warn(
            f"an earlier call on the GPU had domain ids outside [0, K), among them {invalid_id} (K is {num_domains} "
            "now): their tokens are counted in no domain; give -1 where that is meant",
            RuntimeWarning,
            stacklevel=2,
        )
    return word


@functools.cache
def _invalid_id_word(device_type: str) -> torch.Tensor:
    with torch.inference_mode(False):  # it outlives the first caller's modes, a default device among them
        return torch.full((), _NO_INVALID_ID, dtype=torch.int64, device="cpu", pin_memory=device_type == "cuda")


@triton.jit(do_not_specialize=["num_tokens", "slab_tokens", "ignore_index"])
def domain_loss_kernel(
    losses_ptr,
    ids_ptr,
    targets_ptr,
    sums_ptr,
    counts_ptr,
    invalid_id_ptr,
    num_tokens,
    tokens_per_id,
    slab_tokens,
    num_domains,
    ignore_index,
    HAS_TARGETS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Program (slab, block of domains): sums and counts of the slab's tokens, to row `slab` of the partial results."""
    slab = tl.program_id(0)
    domains = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    sums = tl.zeros((BLOCK_N, BLOCK_K), tl.float64)
    counts = tl.zeros((BLOCK_N, BLOCK_K), tl.int32)
    invalid = tl.full((BLOCK_N,), -1, tl.int64)
    for start in range(0, slab_tokens, BLOCK_N):
        tokens = slab * slab_tokens + start + tl.arange(0, BLOCK_N)
        kept = tokens < num_tokens
        if HAS_TARGETS:
            kept &= tl.load(targets_ptr + tokens, kept, other=0) != ignore_index
        losses = tl.load(losses_ptr + tokens, kept, other=0.0).to(tl.float64)
        ids = tl.load(ids_ptr + tokens // tokens_per_id, kept, other=0).to(tl.int64)
        # tl.where and not a product: a NaN loss must not reach other domains.
        own = kept[:, None] & ((ids[:, None] == domains[None, :]) | (domains == num_domains)[None, :])
        sums += tl.where(own, losses[:, None], 0.0)
        counts += own.to(tl.int32)
        invalid = tl.where(kept & ((ids < -1) | (ids >= num_domains)), ids, invalid)
    # One racing store of any program's id is enough: the host names one.
    highest, lowest = tl.max(invalid, axis=0), tl.min(invalid, axis=0)
    if (highest > -1) | (lowest < -1):
        tl.store(invalid_id_ptr, tl.where(highest > -1, highest, lowest))
    place = slab.to(tl.int64) * (num_domains + 1) + domains
    tl.store(sums_ptr + place, tl.sum(sums, axis=0), domains <= num_domains)
    tl.store(counts_ptr + place, tl.sum(counts.to(tl.int64), axis=0), domains <= num_domains)


@triton.jit(do_not_specialize=["num_slabs"])
def sum_slabs_kernel(
    slab_sums_ptr, slab_counts_ptr, sums_ptr, counts_ptr, num_slabs, width, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr
):
    """Program (block of domains): adds the slabs' partial results in an order that their number alone decides."""
    slabs = tl.arange(0, BLOCK_S)
    domains = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    place = slabs[:, None] * width + domains[None, :]
    mask = (slabs < num_slabs)[:, None] & (domains < width)[None, :]
    tl.store(sums_ptr + domains, tl.sum(tl.load(slab_sums_ptr + place, mask, other=0.0), axis=0), domains < width)
    tl.store(counts_ptr + domains, tl.sum(tl.load(slab_counts_ptr + place, mask, other=0), axis=0), domains < width)
