"""RMSNorm on a CPU: one pass per row forward, one backward, threads over rows.

torch composes the operation from five to ten elementwise kernels; a row stays in the first-level cache here.
The weight's gradient is summed in fixed slabs of rows, then over slabs: the same bits for any number of threads.
"""

import numpy as np
import torch
from numba import njit, prange

from ado_kernels.ops.numba_math import FAST_SUMS, Array, array, array_copy, set_loop_threads
from ado_kernels.ops.operands import accumulation_dtype

_SLABS = 16


def forward_cpu(x_ND: torch.Tensor, weight_D: torch.Tensor | None, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """y (N, D) in x's dtype and 1 / rms (N,) in the accumulation dtype."""
    dtype = accumulation_dtype(x_ND.dtype)
    y_ND = torch.empty(x_ND.shape, dtype=dtype)
    rstd_N = torch.empty(x_ND.shape[0], dtype=dtype)
    set_loop_threads(x_ND.numel())
    _forward(array(x_ND.to(dtype)), _optional(weight_D, dtype), eps, array(y_ND), array(rstd_N))
    return y_ND.to(x_ND.dtype), rstd_N


def backward_cpu(
    dy_ND: torch.Tensor, x_ND: torch.Tensor, weight_D: torch.Tensor | None, rstd_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """dx (N, D) in the accumulation dtype and the weight's gradient (D,), empty where there is no weight."""
    dtype = rstd_N.dtype
    dx_ND = torch.empty(x_ND.shape, dtype=dtype)
    weight = _optional(weight_D, dtype)
    partial_SD = np.zeros((_SLABS, weight.size), weight.dtype)
    set_loop_threads(x_ND.numel())
    _backward(array(dy_ND.to(dtype)), array(x_ND.to(dtype)), weight, array(rstd_N), array(dx_ND), partial_SD)
    return dx_ND, torch.from_numpy(partial_SD.sum(axis=0))


def _optional(weight_D: torch.Tensor | None, dtype: torch.dtype) -> Array:
    return array_copy(torch.empty(0) if weight_D is None else weight_D, dtype)


@njit(parallel=True, nogil=True, cache=True, fastmath=FAST_SUMS)
def _forward(x_ND: Array, weight_D: Array, eps: float, y_ND: Array, rstd_N: Array) -> None:
    num_rows, width = x_ND.shape
    scalar = x_ND.dtype.type
    for n in prange(num_rows):
        squares = scalar(0)
        for d in range(width):
            squares += x_ND[n, d] * x_ND[n, d]
        rstd = scalar(1) / np.sqrt(squares / scalar(width) + scalar(eps))
        rstd_N[n] = rstd
        if weight_D.size:
            for d in range(width):
                y_ND[n, d] = x_ND[n, d] * rstd * weight_D[d]
        else:
            for d in range(width):
                y_ND[n, d] = x_ND[n, d] * rstd


@njit(parallel=True, nogil=True, cache=True, fastmath=FAST_SUMS)
def _backward(dy_ND: Array, x_ND: Array, weight_D: Array, rstd_N: Array, dx_ND: Array, partial_SD: Array) -> None:
    num_rows, width = x_ND.shape
    num_slabs = partial_SD.shape[0]
    scalar = x_ND.dtype.type
    for s in prange(num_slabs):  # a slab owns its partial sums: no atomics, and no order that threads decide
        partial_D = partial_SD[s]
        for n in range(s * num_rows // num_slabs, (s + 1) * num_rows // num_slabs):
            rstd = rstd_N[n]
            dot = scalar(0)
            if weight_D.size:
                for d in range(width):
                    dot += dy_ND[n, d] * weight_D[d] * x_ND[n, d]
                scale = dot * rstd * rstd / scalar(width)
                for d in range(width):
                    dx_ND[n, d] = rstd * (dy_ND[n, d] * weight_D[d] - x_ND[n, d] * scale)
                    partial_D[d] += dy_ND[n, d] * x_ND[n, d] * rstd
            else:
                for d in range(width):
                    dot += dy_ND[n, d] * x_ND[n, d]
                scale = dot * rstd * rstd / scalar(width)
                for d in range(width):
                    dx_ND[n, d] = rstd * (dy_ND[n, d] - x_ND[n, d] * scale)
