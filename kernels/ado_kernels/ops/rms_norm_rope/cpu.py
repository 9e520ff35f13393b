"""RMSNorm and rotary embedding of heads on a CPU: one pass forward, one backward, threads over rows.

A row is one head of one token. The weight's gradient is summed in fixed slabs of rows, then over slabs: the same bits
for any number of threads.
"""

import numpy as np
import torch
from numba import njit, prange

from ado_kernels.ops.numba_math import FAST_SUMS, Array, array, array_copy, array_rows, set_loop_threads
from ado_kernels.ops.operands import rstd_like

_SLABS = 16
_Constants = tuple[Array, Array, Array]  # weight (Q,), cos and sin (T, Q/2)


def forward_cpu(
    x: torch.Tensor, weight_Q: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """y in x's dtype and shape (B, T, H, Q), and 1 / rms (N,) of its N = B T H rows in the accumulation dtype."""
    rstd_N = rstd_like(x)
    dtype = rstd_N.dtype
    y = torch.empty(x.shape, dtype=dtype)
    set_loop_threads(x.numel())
    _forward(
        array_rows(x, dtype),
        _constants(weight_Q, cos, sin, dtype),
        x.shape[2],
        eps,
        array_rows(y, dtype),
        array(rstd_N),
    )
    return y.to(x.dtype), rstd_N


def backward_cpu(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight_Q: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    rstd_N: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of x and of the weight, in their dtypes."""
    dtype = rstd_N.dtype
    dx = torch.empty(x.shape, dtype=dtype)
    constants = _constants(weight_Q, cos, sin, dtype)
    partial_SQ = np.zeros((_SLABS, x.shape[-1]), constants[0].dtype)
    set_loop_threads(x.numel())
    _backward(
        array_rows(dy, dtype),
        array_rows(x, dtype),
        constants,
        x.shape[2],
        array(rstd_N),
        array_rows(dx, dtype),
        partial_SQ,
    )
    return dx.to(x.dtype), torch.from_numpy(partial_SQ.sum(axis=0)).to(weight_Q.dtype)


def _constants(weight_Q: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, dtype: torch.dtype) -> _Constants:
    return array_copy(weight_Q, dtype), array(cos.to(dtype).contiguous()), array(sin.to(dtype).contiguous())


@njit(parallel=True, nogil=True, cache=True, fastmath=FAST_SUMS)
def _forward(x_NQ: Array, constants: _Constants, num_heads: int, eps: float, y_NQ: Array, rstd_N: Array) -> None:
    weight_Q, cos, sin = constants
    num_rows, width = x_NQ.shape
    num_tokens, half = cos.shape
    scalar = x_NQ.dtype.type
    for n in prange(num_rows):
        t = n // num_heads % num_tokens  # rows run over batch, token, head
        squares = scalar(0)
        for q in range(width):
            squares += x_NQ[n, q] * x_NQ[n, q]
        rstd = scalar(1) / np.sqrt(squares / scalar(width) + scalar(eps))
        rstd_N[n] = rstd
        for q in range(half):
            first = x_NQ[n, q] * rstd * weight_Q[q]
            second = x_NQ[n, half + q] * rstd * weight_Q[half + q]
            y_NQ[n, q] = first * cos[t, q] - second * sin[t, q]
            y_NQ[n, half + q] = second * cos[t, q] + first * sin[t, q]


@njit(parallel=True, nogil=True, cache=True, fastmath=FAST_SUMS)
def _backward(
    dy_NQ: Array, x_NQ: Array, constants: _Constants, num_heads: int, rstd_N: Array, dx_NQ: Array, partial_SQ: Array
) -> None:
    weight_Q, cos, sin = constants
    num_rows, width = x_NQ.shape
    num_tokens, half = cos.shape
    num_slabs = partial_SQ.shape[0]
    scalar = x_NQ.dtype.type
    # The rotation is undone first (by the opposite angle); what is left is rms_norm's backward pass.
    for s in prange(num_slabs):
        partial_Q = partial_SQ[s]
        for n in range(s * num_rows // num_slabs, (s + 1) * num_rows // num_slabs):
            t = n // num_heads % num_tokens
            rstd = rstd_N[n]
            dot = scalar(0)
            for q in range(half):  # dx holds the gradient of the weighted norm until the row's dot product is known
                first = dy_NQ[n, q] * cos[t, q] + dy_NQ[n, half + q] * sin[t, q]
                second = dy_NQ[n, half + q] * cos[t, q] - dy_NQ[n, q] * sin[t, q]
                partial_Q[q] += first * x_NQ[n, q] * rstd
                partial_Q[half + q] += second * x_NQ[n, half + q] * rstd
                dx_NQ[n, q] = first * weight_Q[q]
                dx_NQ[n, half + q] = second * weight_Q[half + q]
                dot += dx_NQ[n, q] * x_NQ[n, q] + dx_NQ[n, half + q] * x_NQ[n, half + q]
            scale = dot * rstd * rstd / scalar(width)
            for q in range(width):
                dx_NQ[n, q] = rstd * (dx_NQ[n, q] - x_NQ[n, q] * scale)
