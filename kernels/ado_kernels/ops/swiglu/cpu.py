"""SwiGLU on a CPU: one pass forward, one backward, with a vectorised exp; threads over blocks of elements."""

import torch
from numba import njit, prange

from ado_kernels.ops.numba_math import FAST_SUMS, Array, array, exp, set_loop_threads
from ado_kernels.ops.operands import accumulation_dtype

_BLOCK = 4096


def forward_cpu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up in gate's dtype and shape."""
    dtype = accumulation_dtype(gate.dtype)
    out = torch.empty(gate.shape, dtype=dtype)
    set_loop_threads(gate.numel())
    _forward(_flat(gate, dtype), _flat(up, dtype), _flat(out, dtype))
    return out.to(gate.dtype)


def backward_cpu(dout: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of gate and up, in their dtype and shape."""
    dtype = accumulation_dtype(gate.dtype)
    dgate, dup = torch.empty(gate.shape, dtype=dtype), torch.empty(gate.shape, dtype=dtype)
    set_loop_threads(gate.numel())
    _backward(_flat(dout, dtype), _flat(gate, dtype), _flat(up, dtype), _flat(dgate, dtype), _flat(dup, dtype))
    return dgate.to(gate.dtype), dup.to(up.dtype)


def _flat(tensor: torch.Tensor, dtype: torch.dtype) -> Array:
    return array(tensor.to(dtype).contiguous().view(-1))


@njit(parallel=True, nogil=True, cache=True, fastmath=FAST_SUMS)
def _forward(gate: Array, up: Array, out: Array) -> None:
    one = gate.dtype.type(1)
    for block in prange((gate.size + _BLOCK - 1) // _BLOCK):
        for i in range(block * _BLOCK, min((block + 1) * _BLOCK, gate.size)):
            out[i] = gate[i] * up[i] / (one + exp(-gate[i]))


@njit(parallel=True, nogil=True, cache=True, fastmath=FAST_SUMS)
def _backward(dout: Array, gate: Array, up: Array, dgate: Array, dup: Array) -> None:
    one = gate.dtype.type(1)
    for block in prange((gate.size + _BLOCK - 1) // _BLOCK):
        for i in range(block * _BLOCK, min((block + 1) * _BLOCK, gate.size)):
            sigmoid = one / (one + exp(-gate[i]))
            silu = gate[i] * sigmoid  # whose derivative is sigmoid + silu (1 - sigmoid)
            dup[i] = dout[i] * silu
            dgate[i] = dout[i] * up[i] * (sigmoid + silu * (one - sigmoid))
