"""Tensors as the Triton kernels take them: rows of unit inner stride, at addresses that allow 128-bit accesses.

A kernel is compiled for the divisibility of its arguments. A view whose base is no multiple of 16 bytes would have it
compiled again in the middle of a training run, with scalar loads: one copy is cheaper.
"""

import torch
import triton
import triton.language as tl

from ado_kernels.ops.operands import accumulation_dtype

_ALIGNMENT_BYTES = 16


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """(N, D) of any shape (..., D): a view, or a copy where no view exists."""
    x_ND = x[None].flatten(0, -2)
    return x_ND.contiguous() if x_ND.shape[1] > 1 and x_ND.stride(1) != 1 else aligned(x_ND)


def aligned(x_ND: torch.Tensor) -> torch.Tensor:
    """`x_ND`, copied where its base address alone keeps its rows off multiples of 16 bytes."""
    stride_bytes = x_ND.stride(0) * x_ND.element_size()
    misaligned = stride_bytes % _ALIGNMENT_BYTES == 0 and x_ND.data_ptr() % _ALIGNMENT_BYTES
    return x_ND.clone(memory_format=torch.contiguous_format) if misaligned else x_ND


def triton_accumulator(dtype: torch.dtype) -> tl.dtype:
    """Triton's name of `accumulation_dtype(dtype)`, for a kernel's ACC."""
    return tl.float64 if accumulation_dtype(dtype) == torch.float64 else tl.float32


@triton.jit  # type: ignore[untyped-decorator]
def num_blocks(size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # annotations are Triton's
    """Blocks that cover `size`. Not tl.cdiv: size + BLOCK - 1 wraps in 32 bits for sizes within BLOCK of 2^31."""
    return size // BLOCK + (size % BLOCK != 0)
