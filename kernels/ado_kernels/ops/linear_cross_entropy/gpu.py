"""linear_cross_entropy on a GPU: few large chunks of rows, each by one of two methods, and the scaling of gradients.

softmax_pass.py: torch's matmuls, and between them one Triton kernel that turns logits into their gradient in place.
exponentials.py: the first matmul is Triton's and writes exponentials, so that no pass over logits is needed.
The launch table chooses by width and architecture, and says how many rows a chunk has: 4096 to 5632, a multiple of
full waves of 128 x 256 tiles, and only 3 to 4 accumulations of the weight's gradient at N = 16,384 where 64 cost 9 ms
of memory traffic. No host synchronisation, and no shape depends on a value: a CUDA graph can capture it.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

from ado_kernels.ops.domain_loss.gpu import reduce_by_domain
from ado_kernels.ops.launch import Launch, launch
from ado_kernels.ops.linear_cross_entropy import exponentials, softmax_pass
from ado_kernels.ops.linear_cross_entropy.problem import Chunk, Outputs, Problem, Result
from ado_kernels.ops.operands import accumulation_dtype

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
    problem = Problem(hidden, weight, targets, *rest).cast()
    result = in_chunks(problem)
    targets_N, ignored = problem.targets_N, problem.ignore_index
    sums_K1, counts_K1 = reduce_by_domain(result.losses_N, domain_ids, num_domains, targets_N, ignored)
    return result.outputs(problem, sums_K1[:-1], counts_K1[:-1], sums_K1[-1], counts_K1[-1])


def in_chunks(problem: Problem) -> Result:
    """Per-token losses and the gradients asked for; NaN loss and zero gradient where a target is outside [0, V)."""
    hidden_NH, weight_VH, targets_N = problem.hidden_NH, problem.weight_VH, problem.targets_N
    (num_rows, width), vocabulary, device = hidden_NH.shape, weight_VH.shape[0], hidden_NH.device
    wide = accumulation_dtype(problem.compute_dtype)
    losses_N = torch.empty(num_rows, dtype=wide, device=device)
    squares_N = torch.empty_like(losses_N)
    dhidden_NH = hidden_NH.new_empty(hidden_NH.shape if problem.hidden_grad else 0, dtype=wide)
    dweight_VH = hidden_NH.new_empty(weight_VH.shape if problem.weight_grad else 0, dtype=wide)
    if num_rows == 0:
        dweight_VH.zero_()
    plan = launch("linear_cross_entropy", chunk_class(width), device)
    run_chunk = _method(plan, problem)
    buffer_CV = _aligned_rows(min(plan.rows, num_rows), vocabulary, hidden_NH)
    for start in range(0, num_rows, plan.rows):
        part = slice(start, min(start + plan.rows, num_rows))
        run_chunk(
            Chunk(
                problem,
                hidden_NH[part],
                weight_VH,
                targets_N[part],
                buffer_CV[: part.stop - start],
                losses_N[part],
                squares_N[part],
                dhidden_NH[part],
                dweight_VH,
                first=start == 0,
            )
        )
    return Result(losses_N, squares_N, dhidden_NH, dweight_VH)


def chunk_class(width: int) -> int:
    """The size class that decides method and rows per chunk: widths to 1024, and the rest."""
    return 1024 if width <= 1024 else 0


def _method(plan: Launch, problem: Problem) -> Callable[[Chunk], None]:
    use_exponentials = plan.method == "exponentials" and exponentials.can_take(problem)
    return exponentials.run_chunk if use_exponentials else softmax_pass.run_chunk


def _aligned_rows(num_rows: int, vocabulary: int, like: torch.Tensor) -> torch.Tensor:
    """An empty (C, V) with rows of whole PADDINGs: matmuls and descriptors need 16 bytes, whatever V is."""
    padding = softmax_pass.PADDING.value
    return like.new_empty(num_rows, triton.cdiv(vocabulary, padding) * padding)[:, :vocabulary]


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
