"""RMSNorm and rotary embedding of heads on a GPU: Triton kernels for forward and backward, each one pass over memory.

A row is one head of one token; its two halves are loaded apart, because channel i is rotated with channel i + Q/2. The
backward pass has the form of rms_norm's: a fixed grid of programs, each over every grid-th tile of rows, pipelined;
partial weight gradients in float32, added in a fixed order.
"""

import math

import torch
import triton
import triton.language as tl

from ado_kernels.ops.launch import launch
from ado_kernels.ops.operands import rstd_like
from ado_kernels.ops.rms_norm.gpu import sum_partials
from ado_kernels.ops.triton_operands import aligned, num_blocks, triton_accumulator


def forward_gpu(
    x: torch.Tensor, weight_Q: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """y in x's dtype and shape (B, T, H, Q), and 1 / rms (N,) of its N = B T H rows, float32."""
    (_, num_tokens, num_heads, width), num_rows = x.shape, math.prod(x.shape[:-1])
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rstd_N = rstd_like(x)
    plan = launch("rms_norm_rope", width, x.device)
    if num_rows:
        rms_norm_rope_forward_kernel[(triton.cdiv(num_rows, plan.rows),)](
            aligned(x.contiguous()),
            weight_Q.contiguous(),
            cos.contiguous(),
            sin.contiguous(),
            y,
            rstd_N,
            num_rows,
            num_heads,
            num_tokens,
            width,
            eps,
            ACC=triton_accumulator(rstd_N.dtype),
            ROWS=plan.rows,
            HALF=triton.next_power_of_2(width // 2),
            **plan.options(),
        )
    return y, rstd_N


def backward_gpu(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight_Q: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    rstd_N: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of x and of the weight, in their dtypes."""
    (_, num_tokens, num_heads, width), num_rows = x.shape, math.prod(x.shape[:-1])
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    plan = launch("rms_norm_rope_backward", width, x.device)
    partial_GQ = torch.empty((plan.programs, width), dtype=rstd_N.dtype, device=x.device)
    rms_norm_rope_backward_kernel[(plan.programs,)](
        aligned(dy.contiguous()),
        aligned(x.contiguous()),
        weight_Q.contiguous(),
        cos.contiguous(),
        sin.contiguous(),
        rstd_N,
        dx,
        partial_GQ,
        num_rows,
        num_heads,
        max(num_tokens, 1),
        width,
        ACC=triton_accumulator(rstd_N.dtype),
        ROWS=plan.rows,
        HALF=triton.next_power_of_2(width // 2),
        STAGES=plan.stages,
        **plan.options(),
    )
    return dx, sum_partials(partial_GQ, weight_Q.dtype)


@triton.jit
def _places(rows, in_row, num_heads, num_tokens, width, HALF: tl.constexpr):
    """Offsets of the first half of each row and of its token's angles, and the mask of those that exist."""
    channels = tl.arange(0, HALF)
    half = width // 2
    mask = in_row[:, None] & (channels < half)[None, :]
    # A row's number fits 32 bits, in which division is several times cheaper; offsets of elements need 64.
    token = (rows.to(tl.int32) // num_heads % num_tokens).to(tl.int64)
    return rows[:, None] * width + channels[None, :], token[:, None] * half + channels[None, :], mask


@triton.jit
def _halves(ptr, places, half, mask, ACC: tl.constexpr):
    return tl.load(ptr + places, mask, other=0.0).to(ACC), tl.load(ptr + half + places, mask, other=0.0).to(ACC)


@triton.jit(do_not_specialize=["num_rows"])
def rms_norm_rope_forward_kernel(
    x_ptr,
    weight_ptr,
    cos_ptr,
    sin_ptr,
    y_ptr,
    rstd_ptr,
    num_rows,
    num_heads,
    num_tokens,
    width,
    eps,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    HALF: tl.constexpr,
):
    """Program (ROWS rows): normed, weighted and rotated."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    in_row = rows < num_rows
    places, angles, mask = _places(rows, in_row, num_heads, num_tokens, width, HALF)
    half = width // 2
    channels = tl.arange(0, HALF)
    first, second = _halves(x_ptr, places, half, mask, ACC)
    weight_first, weight_second = _halves(weight_ptr, channels, half, channels < half, ACC)
    mean_square = tl.sum(first * first + second * second, axis=1) / tl.cast(width, ACC)
    rstd = 1.0 / tl.sqrt(mean_square + tl.cast(eps, ACC))
    tl.store(rstd_ptr + rows, rstd, in_row)
    first *= rstd[:, None] * weight_first[None, :]
    second *= rstd[:, None] * weight_second[None, :]
    cos = tl.load(cos_ptr + angles, mask, other=0.0).to(ACC)
    sin = tl.load(sin_ptr + angles, mask, other=0.0).to(ACC)
    tl.store(y_ptr + places, (first * cos - second * sin).to(y_ptr.dtype.element_ty), mask)
    tl.store(y_ptr + half + places, (second * cos + first * sin).to(y_ptr.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["num_rows"])
def rms_norm_rope_backward_kernel(
    dy_ptr,
    x_ptr,
    weight_ptr,
    cos_ptr,
    sin_ptr,
    rstd_ptr,
    dx_ptr,
    partial_ptr,
    num_rows,
    num_heads,
    num_tokens,
    width,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    HALF: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Program p of a fixed grid: dx of every grid-th group of rows, and one partial row of dweight."""
    program = tl.program_id(0)
    half = width // 2
    channels = tl.arange(0, HALF)
    weight_first, weight_second = _halves(weight_ptr, channels, half, channels < half, ACC)
    partial_first = tl.zeros((ROWS, HALF), ACC)
    partial_second = tl.zeros((ROWS, HALF), ACC)
    for tile in tl.range(program, num_blocks(num_rows, ROWS), tl.num_programs(0), num_stages=STAGES):
        rows = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        in_row = rows < num_rows
        places, angles, mask = _places(rows, in_row, num_heads, num_tokens, width, HALF)
        dy_first, dy_second = _halves(dy_ptr, places, half, mask, ACC)
        x_first, x_second = _halves(x_ptr, places, half, mask, ACC)
        cos = tl.load(cos_ptr + angles, mask, other=0.0).to(ACC)
        sin = tl.load(sin_ptr + angles, mask, other=0.0).to(ACC)
        rstd = tl.load(rstd_ptr + rows, in_row, other=0.0)[:, None]
        # The transpose of a rotation is the rotation by the opposite angle.
        first, second = dy_first * cos + dy_second * sin, dy_second * cos - dy_first * sin
        x_first *= rstd
        x_second *= rstd
        partial_first += first * x_first
        partial_second += second * x_second
        first *= weight_first[None, :]
        second *= weight_second[None, :]
        # As in rms_norm_backward_kernel, the row's two halves in two registers: dx = rstd (g - n mean(g n)).
        slope = tl.sum(first * x_first + second * x_second, axis=1)[:, None] / tl.cast(width, ACC)
        tl.store(dx_ptr + places, (rstd * (first - x_first * slope)).to(dx_ptr.dtype.element_ty), mask)
        tl.store(dx_ptr + half + places, (rstd * (second - x_second * slope)).to(dx_ptr.dtype.element_ty), mask)
    at_partial = partial_ptr + program.to(tl.int64) * width + channels
    tl.store(at_partial, tl.sum(partial_first, axis=0), channels < half)
    tl.store(at_partial + half, tl.sum(partial_second, axis=0), channels < half)
