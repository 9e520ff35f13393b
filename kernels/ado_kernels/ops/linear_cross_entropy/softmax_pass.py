"""One chunk by cuBLAS matmuls and one Triton pass over the logits between them.

logits = x W^T (bf16 for bf16 input) into the buffer; a program per row makes loss and gradient in place; dx = g W and
dW += g^T x into float32 sums. The row is read twice, the second time from the L2 cache if all rows in flight fit it:
with 16 warps two programs fit a multiprocessor, 264 rows of 100 KB on an H200, 27 of its 50 MB; with 8 warps it would
be four, and more than the cache holds. Blocks of 8192: no spill (32,768 with 32 warps, as others do, spills) and as
many bytes in flight as four of 4096. One running maximum per block and partial sums per lane, so an element costs one
exp per pass. Rows are padded to PADDING columns that are read and written like the rest, so that a vocabulary of any
size (GPT-2's 50,257) is accessed 128 bits at a time.
"""

import triton
import triton.language as tl

from ado_kernels.ops.launch import launch
from ado_kernels.ops.linear_cross_entropy.problem import Chunk, matmul_into
from ado_kernels.ops.triton_operands import triton_accumulator

PADDING = tl.constexpr(16)  # columns: Triton keeps an access whole only where it knows that 16 divides the bound


def run_chunk(chunk: Chunk) -> None:
    """Fills the chunk's losses, squares and gradients, through logits in the chunk's buffer."""
    logits_CV = chunk.buffer_CV
    matmul_into(logits_CV, chunk.x_CH, chunk.weight_VH.t())
    softmax_gradient(chunk)
    if chunk.problem.hidden_grad:
        matmul_into(chunk.dhidden_CH, logits_CV, chunk.weight_VH)
    if chunk.problem.weight_grad:
        matmul_into(chunk.dweight_VH, logits_CV.t(), chunk.x_CH, add=not chunk.first)


def softmax_gradient(chunk: Chunk) -> None:
    """Losses and squares of the logits in the buffer; the logits become their gradients where one is needed.

    The buffer's rows must lie in memory of the vocabulary rounded up to PADDING, whatever stands there.
    """
    logits_CV, (num_rows, vocabulary) = chunk.buffer_CV, chunk.buffer_CV.shape
    ignore_index, z_loss, with_grad = chunk.problem.options()
    plan = launch("softmax_gradient", device=logits_CV.device)
    softmax_gradient_kernel[(num_rows,)](
        logits_CV,
        chunk.targets_C,
        chunk.losses_C,
        chunk.squares_C,
        logits_CV.stride(0),
        vocabulary,
        ignore_index,
        z_loss,
        WITH_GRAD=with_grad,
        ACC=triton_accumulator(chunk.losses_C.dtype),
        BLOCK_V=min(plan.block, triton.next_power_of_2(vocabulary)),
        **plan.options(),
    )


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
    padded = tl.cdiv(vocabulary, PADDING) * PADDING
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
