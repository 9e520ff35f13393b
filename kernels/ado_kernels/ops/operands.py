"""What every operation asks of its tensors: one device, dtypes that the kernels compute with; and their accumulators.

Without the check a tensor of another device would be read as if it lay on the first one's: arbitrary memory on a CPU,
an illegal access on a GPU. Shapes are checked by each operation.
"""

import math

import torch
from torch.autograd.forward_ad import unpack_dual

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGER = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


def check_operands(
    op: str, floating: dict[str, torch.Tensor | None], integer: dict[str, torch.Tensor] | None = None
) -> None:
    """Raises ValueError unless all tensors lie on one device and have dtypes of their kind; None is skipped.

    RuntimeError in forward-mode differentiation (torch.func.jvp): torch would drop the derivative silently.
    """
    first = ""
    for tensors, dtypes, kind in ((floating, FLOATING, "floating-point"), (integer or {}, INTEGER, "integers")):
        for name, tensor in tensors.items():
            if tensor is None:
                continue
            if tensor.dtype not in dtypes:
                supported = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
                raise ValueError(f"{op}: {name} must be {kind} ({supported}), got {tensor.dtype}")
            if not first:
                first, device = name, tensor.device
            elif tensor.device != device:
                raise ValueError(
                    f"{op}: all tensors must be on one device, but {first} is on {device} and {name} on {tensor.device}"
                )
            if not torch.compiler.is_compiling() and unpack_dual(tensor).tangent is not None:
                raise RuntimeError(f"{op} has no forward-mode derivative; use {op}_reference where one is needed")


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of arithmetic and sums: float64 for float64, float32 for the rest (bf16 and fp16 are storage)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rstd_like(x: torch.Tensor) -> torch.Tensor:
    """An empty (N,) for 1 / rms of the N rows of x (..., D), in the accumulation dtype."""
    # math.prod and not Size.numel(), which turns a symbolic shape into a number: a graph per length.
    return x.new_empty(math.prod(x.shape[:-1]), dtype=accumulation_dtype(x.dtype))
