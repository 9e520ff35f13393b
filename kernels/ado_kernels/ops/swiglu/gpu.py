"""SwiGLU on a GPU: Triton kernels over blocks of 2048 elements, 128-bit accesses, offsets in 64 bits.

Contiguous tensors are one long row, without idle lanes; the two halves of a fused projection are rows with a stride.
A program never spans rows, so the only division of an index is that of the program's number. Halves whose width is no
multiple of 16 are right but slower: Triton then accesses 16 bits at a time.
"""

import torch
import triton
import triton.language as tl

from ado_kernels.ops.launch import launch
from ado_kernels.ops.triton_operands import as_rows, num_blocks, triton_accumulator

BLOCK = 2048


def forward_gpu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, contiguous, in gate's dtype and shape."""
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    (gate_NF, up_NF), num_rows, width = _as_rows(gate, up)
    if out.numel():
        swiglu_forward_kernel[(num_rows * triton.cdiv(width, BLOCK),)](
            gate_NF,
            up_NF,
            out,
            gate_NF.stride(0),
            up_NF.stride(0),
            width,
            ACC=triton_accumulator(gate.dtype),
            BLOCK=BLOCK,
            **launch("swiglu", device=gate.device).options(),
        )
    return out


def backward_gpu(dout: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of gate and up, contiguous."""
    dgate = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    dup = torch.empty_like(dgate)
    (dout_NF, gate_NF, up_NF), num_rows, width = _as_rows(dout, gate, up)
    if dgate.numel():
        swiglu_backward_kernel[(num_rows * triton.cdiv(width, BLOCK),)](
            dout_NF,
            gate_NF,
            up_NF,
            dgate,
            dup,
            dout_NF.stride(0),
            gate_NF.stride(0),
            up_NF.stride(0),
            width,
            ACC=triton_accumulator(gate.dtype),
            BLOCK=BLOCK,
            **launch("swiglu", device=gate.device).options(),
        )
    return dgate, dup


def _as_rows(*tensors: torch.Tensor) -> tuple[list[torch.Tensor], int, int]:
    """Two-dimensional views (copies where there is no such view) of unit inner stride, and their common shape."""
    if all(tensor.is_contiguous() for tensor in tensors):
        rows = [as_rows(tensor.view(1, -1)) for tensor in tensors]
    else:
        rows = [as_rows(tensor) for tensor in tensors]
    return rows, *rows[0].shape


@triton.jit
def _position(program, width, BLOCK: tl.constexpr):
    """The row and the columns of a program, and the mask of the columns that exist."""
    blocks = num_blocks(width, BLOCK)
    columns = (program % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return (program // blocks).to(tl.int64), columns, columns < width


@triton.jit
def swiglu_forward_kernel(
    gate_ptr, up_ptr, out_ptr, gate_stride, up_stride, width, ACC: tl.constexpr, BLOCK: tl.constexpr
):
    """out = silu(gate) * up, one block of one row."""
    row, columns, mask = _position(tl.program_id(0), width, BLOCK)
    gate = tl.load(gate_ptr + row * gate_stride + columns, mask, other=0.0).to(ACC)
    up = tl.load(up_ptr + row * up_stride + columns, mask, other=0.0).to(ACC)
    out = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + row * width + columns, out.to(out_ptr.dtype.element_ty), mask)


@triton.jit
def swiglu_backward_kernel(
    dout_ptr,
    gate_ptr,
    up_ptr,
    dgate_ptr,
    dup_ptr,
    dout_stride,
    gate_stride,
    up_stride,
    width,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients of gate and up, one block of one row; silu is computed again."""
    row, columns, mask = _position(tl.program_id(0), width, BLOCK)
    dout = tl.load(dout_ptr + row * dout_stride + columns, mask, other=0.0).to(ACC)
    gate = tl.load(gate_ptr + row * gate_stride + columns, mask, other=0.0).to(ACC)
    up = tl.load(up_ptr + row * up_stride + columns, mask, other=0.0).to(ACC)
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))  # exp overflows to infinity, sigmoid to its limit 0
    silu = gate * sigmoid  # whose derivative is sigmoid + silu (1 - sigmoid)
    dgate = dout * up * (sigmoid + silu * (1.0 - sigmoid))
    tl.store(dgate_ptr + row * width + columns, dgate.to(dgate_ptr.dtype.element_ty), mask)
    tl.store(dup_ptr + row * width + columns, (dout * silu).to(dup_ptr.dtype.element_ty), mask)
