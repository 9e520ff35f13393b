"""RMSNorm on a CPU: one pass per row forward, one backward, threads over rows.

torch composes the operation from five to ten elementwise kernels; a row stays in the first-level cache here.
The weight's gradient is summed in fixed slabs of rows, then over slabs: the same bits for any number of threads.
"""

import numpy as np
import torch
from numba import njit, prange

from ado_kernels.ops.numba_math import FAST_SUMS, Array, array, array_copy, array_rows, set_loop_threads
from ado_kernels.ops.operands import rstd_like

_SLABS = 16


def forward_cpu(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y in x's dtype and shape (..., D), 1 / rms of its rows, and x + residual, empty without one."""
    total = x if residual is None else torch.add(x, residual).contiguous()
    rstd_N = rstd_like(total)
    dtype = rstd_N.dtype
    y = torch.empty(x.shape, dtype=dtype)
    set_loop_threads(x.numel())
    _forward(array_rows(total, dtype), _optional(weight, dtype), eps, array_rows(y, dtype), array(rstd_N))
    return y.to(x.dtype), rstd_N, x.new_empty(0) if residual is None else total


def backward_cpu(
    dy: torch.Tensor, dtotal: torch.Tensor | None, x: torch.Tensor, weight: torch.Tensor | None, rstd: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """dx in x's dtype and shape, `dtotal` added, and the weight's gradient in its dtype (empty without a weight)."""
    dtype = rstd.dtype
    dx = torch.empty(x.shape, dtype=dtype)
    weight_D = _optional(weight, dtype)
    partial_SD = np.zeros((_SLABS, weight_D.size), weight_D.dtype)
    set_loop_threads(x.numel())
    _backward(array_rows(dy, dtype), array_rows(x, dtype), weight_D, array(rstd), array_rows(dx, dtype), partial_SD)
    if dtotal is not None:
        dx += dtotal  # in the accumulation dtype: one rounding
    dweight = torch.from_numpy(partial_SD.sum(axis=0))
    return dx.to(x.dtype), dweight if weight is None else dweight.to(weight.dtype)


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
    # y_d = x_d r w_d with r = (mean x^2 + eps)^(-1/2), and dr/dx_d = -r^3 x_d / D. So with g = dy w
    #     dx = r (g - x r^2 (g . x) / D)        dw = sum over rows of dy x r
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
