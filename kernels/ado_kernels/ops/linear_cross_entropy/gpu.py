"""linear_cross_entropy on a GPU: few large chunks of rows, each by cuBLAS matmuls and one Triton pass between them.

logits = x W^T (bf16 for bf16 input) into the buffer; a program per row makes loss and gradient in place; dx = g W and
dW += g^T x into float32 sums. The row is read twice, the second time from the L2 cache if all rows in flight fit it:
with 16 warps two programs fit a multiprocessor, 264 rows of 100 KB on an H200, 27 of its 50 MB; with 8 warps it would
be four, and more than the cache holds. Blocks of 8192: no spill (32,768 with 32 warps, as others do, spills) and as
many bytes in flight as four of 4096. One running maximum per block and partial sums per lane, so an element costs one
exp per pass. Rows are padded to PADDING columns that are read and written like the rest, so that a vocabulary of any
size (GPT-2's 50,257) is accessed 128 bits at a time.

The launch table says how many rows a chunk has: 4096 to 5632, a multiple of full waves of 128 x 256 tiles, and only 3
to 4 accumulations of the weight's gradient at N = 16,384 where 64 cost 9 ms of memory traffic. No host synchronisation,
and no shape depends on a value: a CUDA graph can capture it.
"""

from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl

from ado_kernels.ops.domain_loss.gpu import reduce_by_domain
from ado_kernels.ops.launch import Launch, launch
from ado_kernels.ops.linear_cross_entropy.problem import Outputs, Problem, Result
from ado_kernels.ops.operands import accumulation_dtype
from ado_kernels.ops.triton_operands import num_blocks, triton_accumulator

PADDING = tl.constexpr(16)  # columns: Triton vectorises an access only where 16 is known to divide the bound
_SCALE_BLOCK = 2048


def linear_cross_entropy_gpu(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    domain_ids: torch.Tensor,
    num_domains: int,
    *rest: Any,
) -> Outputs:
    """The operation on a GPU; rest: the fields of Problem that follow `targets`."""
    problem = Problem(hidden, weight, targets.contiguous(), *rest)
    dtype = problem.compute_dtype
    problem = replace(problem, hidden_NH=hidden.to(dtype), weight_VH=weight.to(dtype))
    result = in_chunks(problem)
    targets_N, ignored = problem.targets_N, problem.ignore_index
    sums_K1, counts_K1 = reduce_by_domain(result.losses_N, domain_ids, num_domains, targets_N, ignored)
    return result.outputs(problem, sums_K1[:-1], counts_K1[:-1], sums_K1[-1], counts_K1[-1])


def in_chunks(problem: Problem) -> Result:
    """Per-token losses and the gradients asked for; NaN loss and zero gradient where a target is outside [0, V)."""
    hidden_NH, weight_VH = problem.hidden_NH, problem.weight_VH
    (num_rows, width), vocabulary, device = hidden_NH.shape, weight_VH.shape[0], hidden_NH.device
    wide = accumulation_dtype(problem.compute_dtype)
    losses_N = torch.empty(num_rows, dtype=wide, device=device)
    squares_N = torch.empty_like(losses_N)
    dhidden_NH = hidden_NH.new_empty(hidden_NH.shape if problem.hidden_grad else 0, dtype=wide)
    dweight_VH = hidden_NH.new_empty(weight_VH.shape if problem.weight_grad else 0, dtype=wide)
    if num_rows == 0:
        dweight_VH.zero_()
    rows = launch("linear_cross_entropy", chunk_class(width), device).rows
    buffer_CV = _aligned_rows(min(rows, num_rows), vocabulary, hidden_NH)
    for start in range(0, num_rows, rows):
        part = slice(start, min(start + rows, num_rows))
        x_CH, logits_CV = hidden_NH[part], buffer_CV[: min(rows, num_rows - start)]
        matmul_into(logits_CV, x_CH, weight_VH.t())
        softmax_gradient(logits_CV, problem.targets_N[part], losses_N[part], squares_N[part], problem.options())
        if problem.hidden_grad:  # the buffer now holds the logits' gradients
            matmul_into(dhidden_NH[part], logits_CV, weight_VH)
        if problem.weight_grad:
            matmul_into(dweight_VH, logits_CV.t(), x_CH, add=start > 0)
    return Result(losses_N, squares_N, dhidden_NH, dweight_VH)


def chunk_class(width: int) -> int:
    """The size class that decides rows per chunk: widths to 1024, and the rest."""
    return 1024 if width <= 1024 else 0


def _aligned_rows(num_rows: int, vocabulary: int, like: torch.Tensor) -> torch.Tensor:
    """An empty (C, V) with rows of whole PADDINGs: fast matmuls need 16 bytes, whatever V is."""
    padded = triton.cdiv(vocabulary, PADDING.value) * PADDING.value
    return like.new_empty(num_rows, padded)[:, :vocabulary]


def matmul_into(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, add: bool = False) -> None:
    """out = a b, or out += a b, with float32 sums for narrower operands (which torch offers on a GPU only)."""
    wide: dict[str, Any] = {} if out.dtype == a.dtype else {"out_dtype": out.dtype}
    if add:
        torch.addmm(out, a, b, out=out, **wide)
    else:
        torch.mm(a, b, out=out, **wide)


def softmax_gradient(
    logits_CV: torch.Tensor,
    targets_C: torch.Tensor,
    losses_C: torch.Tensor,
    squares_C: torch.Tensor,
    options: tuple[int, float, bool],
) -> None:
    """Fills losses and squares; the logits become their gradients where one is needed. options: of a Problem.

    The logits' rows must lie in memory of the vocabulary rounded up to PADDING, with any content there.
    """
    num_rows, vocabulary = logits_CV.shape
    ignore_index, z_loss, with_grad = options
    plan = launch("softmax_gradient", device=logits_CV.device)
    softmax_gradient_kernel[(num_rows,)](
        logits_CV,
        targets_C,
        losses_C,
        squares_C,
        logits_CV.stride(0),
        vocabulary,
        ignore_index,
        z_loss,
        WITH_GRAD=with_grad,
        ACC=triton_accumulator(losses_C.dtype),
        BLOCK_V=min(plan.block, triton.next_power_of_2(vocabulary)),
        **plan.options(),
    )


def scale_gradient_gpu(
    gradient: torch.Tensor, dloss: torch.Tensor, inverse: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """gradient x dloss x inverse in `dtype`: scaling and the one rounding in a single pass."""
    out = torch.empty(gradient.shape, dtype=dtype, device=gradient.device)
    if out.numel():
        scale_gradient_kernel[(triton.cdiv(out.numel(), _SCALE_BLOCK),)](
            gradient.contiguous(), dloss, inverse, out, out.numel(), BLOCK=_SCALE_BLOCK, **Launch().options()
        )
    return out


@triton.jit(do_not_specialize=["ignore_index"])
def softmax_gradient_kernel(
    logits_ptr,
    targets_ptr,
    losses_ptr,
    squares_ptr,
    row_stride,
    vocabulary,
    ignore_index,
    z_loss,
    WITH_GRAD: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Program (row): loss, log-partition squared and, in place of the logits, the unscaled gradient; online softmax."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * row_stride
    lanes = tl.arange(0, BLOCK_V)
    padded = num_blocks(vocabulary, PADDING) * PADDING
    target = tl.load(targets_ptr + row)
    ignored = target == ignore_index
    in_range = (target >= 0) & (target < vocabulary)
    usable = in_range & (ignored == 0)
    if usable:
        at_target = tl.load(row_ptr + target).to(ACC)
        # Online softmax: sums are relative to the highest logit so far and rescaled when it rises. A block has at least
        # one real column, so the maximum is finite after the first and -inf - -inf does not occur.
        highest = tl.cast(float("-inf"), ACC)
        sums = tl.zeros((BLOCK_V,), ACC)
        for start in range(0, vocabulary, BLOCK_V):
            columns = start + lanes
            logits = tl.load(row_ptr + columns, columns < padded).to(ACC)
            logits = tl.where(columns < vocabulary, logits, float("-inf"))
            raised = tl.maximum(highest, tl.max(logits, axis=0))
            sums = sums * tl.exp(highest - raised) + tl.exp(logits - raised)
            highest = raised
        total = tl.sum(sums, axis=0)
        log_total = tl.log(total)
        log_partition = highest + log_total
        tl.store(losses_ptr + row, log_total - (at_target - highest))
        tl.store(squares_ptr + row, log_partition * log_partition)
        if WITH_GRAD:
            tl.debug_barrier()  # every warp must have read the target's logit before one overwrites it
            scale = (1.0 + 2.0 * tl.cast(z_loss, ACC) * log_partition) / total
            for start in range(0, vocabulary, BLOCK_V):
                columns = start + lanes
                logits = tl.load(row_ptr + columns, columns < padded, eviction_policy="evict_first").to(ACC)
                # The one-hot is subtracted before the only rounding.
                gradient = tl.exp(logits - highest) * scale - tl.where(columns == target, 1.0, 0.0).to(ACC)
                tl.store(row_ptr + columns, gradient.to(logits_ptr.dtype.element_ty), columns < padded)
    else:
        # The device cannot raise for a target outside the vocabulary: the loss is NaN, the gradient row 0.
        missing = tl.where(ignored, 0.0, float("nan")).to(ACC)
        tl.store(losses_ptr + row, missing)
        tl.store(squares_ptr + row, missing)
        if WITH_GRAD:
            zeros = tl.zeros((BLOCK_V,), logits_ptr.dtype.element_ty)
            for start in range(0, vocabulary, BLOCK_V):
                tl.store(row_ptr + start + lanes, zeros, start + lanes < padded)


@triton.jit
def scale_gradient_kernel(gradient_ptr, dloss_ptr, inverse_ptr, out_ptr, size, BLOCK: tl.constexpr):
    """out = gradient x dloss x inverse, rounded once."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = places < size
    # The factors are multiplied in float64, the dtype of `inverse`, and rounded once.
    scale = (tl.load(dloss_ptr).to(tl.float64) * tl.load(inverse_ptr)).to(tl.float32)
    gradient = tl.load(gradient_ptr + places, mask, other=0.0)
    if gradient_ptr.dtype.element_ty == tl.float64:
        scaled = gradient * tl.load(dloss_ptr).to(tl.float64) * tl.load(inverse_ptr)
    else:
        scaled = gradient.to(tl.float32) * scale
    tl.store(out_ptr + places, scaled.to(out_ptr.dtype.element_ty), mask)
