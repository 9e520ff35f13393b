"""RMSNorm on a GPU: Triton kernels for forward and backward, each one pass over memory.

A program holds whole rows in registers: forward a tile of a few rows, backward a loop over tiles (row tiles p, p + G,
p + 2G, ... of program p of G), pipelined so that the next rows' loads are under way during this row's reduction.
G comes from the launch table and not from the number of multiprocessors: program p's float32 partial of the weight's
gradient, and the order in which partials are added, are the same on every GPU.
What limits others: one row in flight per multiprocessor (Liger-Kernel's backward) starves the memory; a
separate reduction over rows for the weight (torch.compile) reads x and dy twice.
Widths and row strides that 16 does not divide are right but slower: Triton then accesses 16 bits at a time.
"""

import torch
import triton
import triton.language as tl

from ado_kernels.ops.launch import Launch, launch, shared_memory_bytes, size_class
from ado_kernels.ops.operands import rstd_like
from ado_kernels.ops.triton_operands import as_rows, num_blocks, triton_accumulator

SUM = {"BLOCK_G": 256, "BLOCK_D": 16}  # a few loads of 16 bytes a thread, and programs enough for every multiprocessor


def forward_gpu(
    x: torch.Tensor, residual: torch.Tensor | None, weight_D: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y in x's dtype and shape (..., D), 1 / rms (N,) of its N rows, and x + residual, empty without one."""
    x_ND, residual_ND = as_rows(x), None if residual is None else as_rows(residual)
    num_rows, width = x_ND.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if residual is None:
        total, rstd_N = x.new_empty(0), rstd_like(x)
    else:
        total = torch.empty_like(y, dtype=torch.promote_types(x.dtype, residual.dtype))
        rstd_N = rstd_like(total)
    plan = launch("rms_norm", width, x_ND.device)
    if num_rows:
        rms_norm_forward_kernel[(triton.cdiv(num_rows, plan.rows),)](
            x_ND,
            x_ND if residual_ND is None else residual_ND,
            x_ND if weight_D is None else weight_D.contiguous(),
            y,
            y if residual is None else total,
            rstd_N,
            x_ND.stride(0),
            0 if residual_ND is None else residual_ND.stride(0),
            num_rows,
            width,
            eps,
            HAS_WEIGHT=weight_D is not None,
            HAS_RESIDUAL=residual_ND is not None,
            ACC=triton_accumulator(rstd_N.dtype),
            ROWS=plan.rows,
            BLOCK_D=size_class(width),
            **plan.options(),
        )
    return y, rstd_N, total


def backward_gpu(
    dy: torch.Tensor, dtotal: torch.Tensor | None, x: torch.Tensor, weight_D: torch.Tensor | None, rstd_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """dx in x's dtype and shape, `dtotal` added, and the weight's gradient in its dtype (empty without a weight)."""
    dy_ND, x_ND, dtotal_ND = as_rows(dy), as_rows(x), None if dtotal is None else as_rows(dtotal)
    num_rows, width = x_ND.shape
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    plan = launch("rms_norm_backward", width, x_ND.device)
    partial_GD = torch.empty(
        (plan.programs, width) if weight_D is not None else 0, dtype=rstd_N.dtype, device=x_ND.device
    )
    # Tiles of x, dy and dtotal that are under way must fit the shared memory. Results do not depend on the stages.
    tile_bytes = (2 + (dtotal_ND is not None)) * plan.rows * size_class(width) * x_ND.element_size()
    fits = (plan.stages - 1) * tile_bytes <= shared_memory_bytes(x_ND.device)
    rms_norm_backward_kernel[(plan.programs,)](
        dy_ND,
        dy_ND if dtotal_ND is None else dtotal_ND,
        x_ND,
        x_ND if weight_D is None else weight_D.contiguous(),
        rstd_N,
        dx,
        partial_GD,
        dy_ND.stride(0),
        0 if dtotal_ND is None else dtotal_ND.stride(0),
        x_ND.stride(0),
        num_rows,
        width,
        HAS_WEIGHT=weight_D is not None,
        HAS_DTOTAL=dtotal_ND is not None,
        ACC=triton_accumulator(rstd_N.dtype),
        ROWS=plan.rows,
        BLOCK_D=size_class(width),
        STAGES=plan.stages if fits else 1,
        **plan.options(),
    )
    return dx, partial_GD if weight_D is None else sum_partials(partial_GD, weight_D.dtype)


def sum_partials(partial_GD: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Sum (D,) of the rows, in an order that depends on their number alone."""
    num_partials, width = partial_GD.shape
    out_D = torch.empty(width, dtype=dtype, device=partial_GD.device)
    sum_partials_kernel[(triton.cdiv(width, SUM["BLOCK_D"]),)](
        partial_GD, out_D, num_partials, width, **SUM, **Launch().options()
    )
    return out_D


@triton.jit(do_not_specialize=["num_rows"])
def rms_norm_forward_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    y_ptr,
    total_ptr,
    rstd_ptr,
    x_stride,
    residual_stride,
    num_rows,
    width,
    eps,
    HAS_WEIGHT: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Program (ROWS rows, whole width): x + residual, its norm and 1 / rms in one read."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK_D)
    # Offsets are 64-bit through `rows`. Masked elements are 0: they add nothing to the sum of squares, and the mean
    # divides by the true width.
    in_row, in_column = rows < num_rows, columns < width
    mask = in_row[:, None] & in_column[None, :]
    x = tl.load(x_ptr + rows[:, None] * x_stride + columns[None, :], mask, other=0.0).to(ACC)
    if HAS_RESIDUAL:
        at_residual = residual_ptr + rows[:, None] * residual_stride + columns[None, :]
        rounded = (x + tl.load(at_residual, mask, other=0.0).to(ACC)).to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + rows[:, None] * width + columns[None, :], rounded, mask)
        x = rounded.to(ACC)  # the backward pass sees the rounded sum only
    if HAS_WEIGHT:  # loaded before the reduction, so that its latency is hidden by it
        weight = tl.load(weight_ptr + columns, in_column, other=0.0).to(ACC)
    mean_square = tl.sum(x * x, axis=1) / tl.cast(width, ACC)
    rstd = 1.0 / tl.sqrt(mean_square + tl.cast(eps, ACC))
    tl.store(rstd_ptr + rows, rstd, in_row)
    y = x * rstd[:, None]
    if HAS_WEIGHT:
        y *= weight[None, :]
    tl.store(y_ptr + rows[:, None] * width + columns[None, :], y.to(y_ptr.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["num_rows"])
def rms_norm_backward_kernel(
    dy_ptr,
    dtotal_ptr,
    x_ptr,
    weight_ptr,
    rstd_ptr,
    dx_ptr,
    partial_ptr,
    dy_stride,
    dtotal_stride,
    x_stride,
    num_rows,
    width,
    HAS_WEIGHT: tl.constexpr,
    HAS_DTOTAL: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Program p of a fixed grid: dx of every grid-th group of rows, and one partial row of dweight."""
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    columns = tl.arange(0, BLOCK_D)
    in_column = columns < width
    weight = tl.full((BLOCK_D,), 1.0, ACC)
    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + columns, in_column, other=0.0).to(ACC)
    # One accumulator per row of the tile: rows are added once, after the loop, in an order fixed by ROWS.
    partial = tl.zeros((ROWS, BLOCK_D), ACC)
    for tile in tl.range(program, num_blocks(num_rows, ROWS), num_programs, num_stages=STAGES):
        rows = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        in_row = rows < num_rows
        mask = in_row[:, None] & in_column[None, :]
        x = tl.load(x_ptr + rows[:, None] * x_stride + columns[None, :], mask, other=0.0).to(ACC)
        dy = tl.load(dy_ptr + rows[:, None] * dy_stride + columns[None, :], mask, other=0.0).to(ACC)
        rstd = tl.load(rstd_ptr + rows, in_row, other=0.0)[:, None]
        normed = x * rstd
        dnormed = dy * weight[None, :]
        # dx = rstd (g - n mean(g n)) with g = dy weight and n = x rstd: the part of g along n does not change the norm.
        slope = tl.sum(dnormed * normed, axis=1)[:, None] / tl.cast(width, ACC)
        dx = rstd * (dnormed - normed * slope)
        if HAS_DTOTAL:
            at_dtotal = dtotal_ptr + rows[:, None] * dtotal_stride + columns[None, :]
            dx += tl.load(at_dtotal, mask, other=0.0).to(ACC)
        tl.store(dx_ptr + rows[:, None] * width + columns[None, :], dx.to(dx_ptr.dtype.element_ty), mask)
        if HAS_WEIGHT:
            partial += dy * normed
    if HAS_WEIGHT:
        tl.store(partial_ptr + program.to(tl.int64) * width + columns, tl.sum(partial, axis=0), in_column)


@triton.jit
def sum_partials_kernel(partial_ptr, out_ptr, num_partials, width, BLOCK_G: tl.constexpr, BLOCK_D: tl.constexpr):
    """Program (block of columns): adds the partial rows of dweight in their order."""
    columns = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_column = columns < width
    total = tl.zeros((BLOCK_G, BLOCK_D), partial_ptr.dtype.element_ty)
    for start in range(0, num_partials, BLOCK_G):
        rows = start + tl.arange(0, BLOCK_G)
        mask = (rows < num_partials)[:, None] & in_column[None, :]
        total += tl.load(partial_ptr + rows[:, None] * width + columns[None, :], mask, other=0.0)
    tl.store(out_ptr + columns, tl.sum(total, axis=0).to(out_ptr.dtype.element_ty), in_column)
