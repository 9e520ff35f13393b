"""linear_cross_entropy on a GPU: cuBLAS matmuls on a few large chunks, one Triton kernel per chunk between them.

For a chunk of rows: logits = x W^T (bf16 for bf16 input) into one reused buffer; a program per row makes loss and
gradient in place, reading the row twice (the second time from the L2 cache: 132 rows of 100 KB); dx = g W;
dW += g^T x into a float32 accumulator inside the matmul. A chunk holds 4096 to 5632 rows (launch table): a multiple of
full waves of 128 x 256 tiles, and only 3 to 4 accumulations at N = 16,384 where 64 cost 9 ms of memory traffic.

The row kernel reads blocks of 4096 with 8 warps; 32,768 with 32 warps, as others do, spills registers. It keeps one
running maximum per block and partial sums per lane, so an element costs one exp per pass.
No value leaves the device and no shape depends on one: capturable in a CUDA graph.
"""

import torch
import triton
import triton.language as tl

from ado_kernels.ops.launch import launch
from ado_kernels.ops.linear_cross_entropy.problem import Problem, Result
from ado_kernels.ops.numba_math import accumulation_dtype

_BLOCK_V = 4096
_SCALE_BLOCK = 2048


def linear_cross_entropy_gpu(problem: Problem) -> Result:
    """Per-token losses and the gradients asked for; NaN loss and zero gradient where a target is outside [0, V)."""
    hidden_NH, weight_VH = problem.hidden_NH.to(problem.compute_dtype), problem.weight_VH.to(problem.compute_dtype)
    targets_N = problem.targets_N.contiguous()
    (num_rows, width), vocabulary, device = hidden_NH.shape, weight_VH.shape[0], hidden_NH.device
    wide = accumulation_dtype(problem.compute_dtype)
    losses_N = torch.empty(num_rows, dtype=wide, device=device)
    squares_N = torch.empty_like(losses_N)
    dhidden_NH = hidden_NH.new_empty(hidden_NH.shape if problem.hidden_grad else 0)
    dweight_VH = hidden_NH.new_zeros(weight_VH.shape if problem.weight_grad else 0, dtype=wide)
    chunk_rows = launch("linear_cross_entropy", chunk_class(width), device).rows
    buffer_CV = hidden_NH.new_empty(min(chunk_rows, num_rows), vocabulary)
    for start in range(0, num_rows, chunk_rows):
        part = slice(start, min(start + chunk_rows, num_rows))
        x_CH = hidden_NH[part]
        logits_CV = torch.mm(x_CH, weight_VH.t(), out=buffer_CV[: x_CH.shape[0]])
        softmax_gradient(logits_CV, targets_N[part], problem, losses_N[part], squares_N[part])
        if problem.hidden_grad:
            torch.mm(logits_CV, weight_VH, out=dhidden_NH[part])
        if problem.weight_grad:
            _accumulate(dweight_VH, logits_CV.t(), x_CH, first=start == 0)
    return Result(losses_N, squares_N, dhidden_NH, dweight_VH)


def chunk_class(width: int) -> int:
    """The size class that decides rows per chunk: widths to 1024, and the rest."""
    return 1024 if width <= 1024 else 0


def _accumulate(sum_VH: torch.Tensor, g_VC: torch.Tensor, x_CH: torch.Tensor, first: bool) -> None:
    """sum += g x with float32 accumulation and output whatever the operands' dtype."""
    if g_VC.dtype == sum_VH.dtype:
        sum_VH.addmm_(g_VC, x_CH, beta=0 if first else 1)
    elif first:
        torch.mm(g_VC, x_CH, out_dtype=sum_VH.dtype, out=sum_VH)
    else:
        torch.addmm(sum_VH, g_VC, x_CH, out_dtype=sum_VH.dtype, out=sum_VH)


def softmax_gradient(
    logits_CV: torch.Tensor,
    targets_C: torch.Tensor,
    problem: Problem,
    losses_C: torch.Tensor,
    squares_C: torch.Tensor,
) -> None:
    """Fills losses and squared log-partition functions; turns logits into their gradients where one is needed."""
    num_rows, vocabulary = logits_CV.shape
    if num_rows:
        softmax_gradient_kernel[(num_rows,)](
            logits_CV,
            targets_C,
            losses_C,
            squares_C,
            vocabulary,
            problem.ignore_index,
            problem.z_loss,
            WITH_GRAD=problem.hidden_grad or problem.weight_grad,
            ACC=tl.float64 if losses_C.dtype == torch.float64 else tl.float32,
            BLOCK_V=min(_BLOCK_V, triton.next_power_of_2(vocabulary)),
            num_warps=launch("softmax_gradient", device=logits_CV.device).warps,
        )


def scale_gradient_gpu(
    gradient: torch.Tensor, dloss: torch.Tensor, inverse: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """gradient * dloss * inverse in `dtype`, one pass, the scalars read on the device."""
    out = torch.empty(gradient.shape, dtype=dtype, device=gradient.device)
    if out.numel():
        scale_gradient_kernel[(triton.cdiv(out.numel(), _SCALE_BLOCK),)](
            gradient.contiguous(), dloss, inverse, out, out.numel(), BLOCK=_SCALE_BLOCK, num_warps=4
        )
    return out


@triton.jit
def softmax_gradient_kernel(
    logits_ptr,
    targets_ptr,
    losses_ptr,
    squares_ptr,
    vocabulary,
    ignore_index,
    z_loss,
    WITH_GRAD: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Program (row): loss, log-partition squared and, in place of the logits, the unscaled gradient; online softmax."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * vocabulary
    lanes = tl.arange(0, BLOCK_V)
    target = tl.load(targets_ptr + row)
    ignored = target == ignore_index
    in_range = (target >= 0) & (target < vocabulary)
    usable = in_range & (ignored == 0)
    if usable:
        at_target = tl.load(row_ptr + target).to(ACC)
        highest = tl.cast(float("-inf"), ACC)
        sums = tl.zeros((BLOCK_V,), ACC)
        for start in range(0, vocabulary, BLOCK_V):
            mask = start + lanes < vocabulary
            logits = tl.load(row_ptr + start + lanes, mask, other=float("-inf")).to(ACC)
            raised = tl.maximum(highest, tl.max(logits, axis=0))
            sums = sums * tl.exp(highest - raised) + tl.exp(logits - raised)
            highest = raised
        total = tl.sum(sums, axis=0)
        log_total = tl.log(total)
        log_partition = highest + log_total
        tl.store(losses_ptr + row, log_total - (at_target - highest))
        tl.store(squares_ptr + row, log_partition * log_partition)
        if WITH_GRAD:
            tl.debug_barrier()  # every warp has read the target's logit before any overwrites it
            scale = (1.0 + 2.0 * tl.cast(z_loss, ACC) * log_partition) / total
            for start in range(0, vocabulary, BLOCK_V):
                columns = start + lanes
                mask = columns < vocabulary
                logits = tl.load(row_ptr + columns, mask, other=float("-inf")).to(ACC)
                gradient = tl.exp(logits - highest) * scale - tl.where(columns == target, 1.0, 0.0).to(ACC)
                tl.store(row_ptr + columns, gradient.to(logits_ptr.dtype.element_ty), mask)
    else:
        nothing = tl.where(ignored, 0.0, float("nan")).to(ACC)
        tl.store(losses_ptr + row, nothing)
        tl.store(squares_ptr + row, nothing)
        if WITH_GRAD:
            zeros = tl.zeros((BLOCK_V,), logits_ptr.dtype.element_ty)
            for start in range(0, vocabulary, BLOCK_V):
                tl.store(row_ptr + start + lanes, zeros, start + lanes < vocabulary)


@triton.jit
def scale_gradient_kernel(gradient_ptr, dloss_ptr, inverse_ptr, out_ptr, size, BLOCK: tl.constexpr):
    """out = gradient x dloss x inverse, rounded once."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = places < size
    scale = (tl.load(dloss_ptr).to(tl.float64) * tl.load(inverse_ptr)).to(tl.float32)
    gradient = tl.load(gradient_ptr + places, mask, other=0.0)
    if gradient_ptr.dtype.element_ty == tl.float64:
        scaled = gradient * tl.load(dloss_ptr).to(tl.float64) * tl.load(inverse_ptr)
    else:
        scaled = gradient.to(tl.float32) * scale
    tl.store(out_ptr + places, scaled.to(out_ptr.dtype.element_ty), mask)
