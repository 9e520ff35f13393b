"""Shared by the Numba kernels of all operations: a vectorised exp, the number of threads, tensors as arrays.

LLVM turns a loop over `math.exp` into one library call per element; the polynomial here has none, so it becomes
AVX code: 0.3 ns instead of 5 ns per element. Row loops run on as many threads as torch would use, and no result
depends on that number: every parallel index owns its outputs, and partial sums have a fixed layout.

Kernels are compiled once and cached beside their file (`cache=True`, seconds saved at every start; numba_cache.py).

Source of the polynomial: S. Moshier, Cephes `expf` (minimax of degree 5 on [-ln 2 / 2, ln 2 / 2], 2 ulp).
"""

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from numba import types
from numba.core import config
from numba.extending import overload
from numpy.typing import NDArray

from ado_kernels.numba_cache import ensure_compiled

Array = NDArray[Any]  # of float32 or float64, and of integers
# Sums may be reordered and contracted (hence vectorised), but NaN and infinity keep their meaning.
FAST_SUMS = {"reassoc", "contract", "arcp", "nsz"}
_GRAIN_ELEMENTS = 32768  # at::internal::GRAIN_SIZE


def exp(x: float) -> float:
    """e^x of a Numba scalar: vectorisable for float32 (2 ulp; 0 below -87.6, inf above 88.4), libm for float64."""
    return math.exp(x)


@overload(exp, inline="always")
def _exp_overload(x: Any) -> Callable[[float], float]:
    # x is a Numba type here; Numba refuses another annotation than the implementations'.
    return _exp_float32 if x == types.float32 else _exp_float64  # type: ignore[comparison-overlap]


def _exp_float64(x: Any) -> float:
    return math.exp(x)


def _exp_float32(x: Any) -> float:
    # Comparisons, not min and max: NaN fails both and stays. The bounds give exponent fields of 0 (zero) and 255 (inf).
    raised = np.float32(-88.0) if x < np.float32(-88.0) else x
    clamped = np.float32(88.8) if raised > np.float32(88.8) else raised
    k = np.rint(clamped * np.float32(1.44269504088896341))
    # ln 2 in two parts, the first exact in few bits: k times it has no rounding error.
    r = clamped - k * np.float32(0.693359375) + k * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    power = np.int32((np.int32(k) + np.int32(127)) << np.int32(23)).view(np.float32)
    return p * power  # type: ignore[no-any-return]  # a float to Numba


def set_loop_threads(num_elements: int) -> None:
    """Sets how many threads this thread's next Numba loop uses; first waits until the loops are compiled and on disk.

    At most torch's number, so that torchrun's limit per rank holds here too; one per torch's own grain of 32,768
    elements, because waking and joining a thread costs 10 us, and milliseconds where another process holds its core.
    """
    ensure_compiled("ops")
    num_threads = torch.get_num_threads()
    most = min(num_threads, config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    numba.set_num_threads(max(min(most, num_elements // _GRAIN_ELEMENTS), 1))
    # Both libraries may share one OpenMP runtime, whose number of threads Numba sets to the machine's cores when its
    # pool starts: torch's own number is restored.
    if torch.get_num_threads() != num_threads:
        torch.set_num_threads(num_threads)


def array(tensor: torch.Tensor) -> Array:
    """The tensor's memory as a NumPy array; the tensor must be contiguous for the kernels to be vectorised."""
    return tensor.detach().numpy()


def array_rows(x: torch.Tensor, dtype: torch.dtype) -> Array:
    """(N, D) of any shape (..., D): its memory where that is contiguous and of this dtype, else a copy."""
    return array(x.to(dtype).contiguous().view(-1, x.shape[-1]))


def array_copy(parameter: torch.Tensor, dtype: torch.dtype) -> Array:
    """A contiguous copy: a NumPy view of a parameter would hold a storage that FSDP must resize."""
    return array(parameter.to(dtype, copy=True, memory_format=torch.contiguous_format))
