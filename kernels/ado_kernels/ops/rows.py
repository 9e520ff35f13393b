"""Tensors as the Triton kernels take them: rows of unit inner stride, at addresses that allow 128-bit accesses.

A kernel is compiled for what it is called with. A view whose base is no multiple of 16 bytes would have it compiled
again in the middle of a training, with scalar loads: one copy is cheaper.
"""

import torch

_ALIGNMENT_BYTES = 16


def rows_of(x: torch.Tensor) -> torch.Tensor:
    """(N, D) of any shape (..., D): a view, or a copy where no view will do."""
    x_ND = x[None].flatten(0, -2)
    return x_ND.contiguous() if x_ND.shape[1] > 1 and x_ND.stride(1) != 1 else aligned(x_ND)


def aligned(x_ND: torch.Tensor) -> torch.Tensor:
    """`x_ND`, copied where its first element alone keeps its rows from multiples of 16 bytes."""
    stride_bytes = x_ND.stride(0) * x_ND.element_size()
    misplaced = stride_bytes % _ALIGNMENT_BYTES == 0 and x_ND.data_ptr() % _ALIGNMENT_BYTES
    return x_ND.clone(memory_format=torch.contiguous_format) if misplaced else x_ND
