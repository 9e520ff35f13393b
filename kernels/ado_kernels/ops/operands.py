"""What every operation asks of its tensors: dense ones of one device and of dtypes that the kernels compute with.

Without the check a tensor of another device would be read as if it lay on the first one's: arbitrary memory on a CPU,
an illegal access on a GPU. Shapes are checked by each operation. Accumulators, too, are the same for all of them.
"""

import math

import torch
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor, is_gradtrackingtensor
from torch.autograd.forward_ad import unpack_dual

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGER = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


def check_operands(op: str, floating: dict[str, torch.Tensor], integer: dict[str, torch.Tensor] | None = None) -> None:
    """Raises ValueError unless all are dense local tensors on one device, of dtypes of their kind.

    RuntimeError where torch.func differentiates: torch would drop a forward-mode derivative silently, and has no
    reverse mode of a custom operation.
    """
    first = ""
    for tensors, dtypes, kind in ((floating, FLOATING, "floating-point"), (integer or {}, INTEGER, "integers")):
        for name, tensor in tensors.items():
            if not isinstance(tensor, torch.Tensor):
                raise ValueError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
            if tensor.is_nested or tensor.layout != torch.strided or hasattr(tensor, "to_local"):
                raise ValueError(
                    f"{op}: {name} must be a dense local tensor, got a {type(tensor).__name__} "
                    f"({'nested' if tensor.is_nested else tensor.layout}); convert it first (to_dense, full_tensor)"
                )
            if tensor.dtype not in dtypes:
                supported = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
                raise ValueError(f"{op}: {name} must be {kind} ({supported}), got {tensor.dtype}")
            if not first:
                first, device = name, tensor.device
            elif tensor.device != device:
                raise ValueError(
                    f"{op}: all tensors must be on one device, but {first} is on {device} and {name} on {tensor.device}"
                )
            if not torch.compiler.is_compiling():
                _refuse_functional_derivatives(op, tensor)


def _refuse_functional_derivatives(op: str, tensor: torch.Tensor) -> None:
    if unpack_dual(tensor).tangent is not None:
        raise RuntimeError(f"{op} has no forward-mode derivative; use {op}_reference where one is needed")
    while is_functorch_wrapped_tensor(tensor):  # one wrapper for each transform around the call
        if is_gradtrackingtensor(tensor) and tensor.requires_grad:
            raise RuntimeError(
                f"{op} has no derivative by torch.func; use torch.autograd.grad, or {op}_reference where one is needed"
            )
        tensor = get_unwrapped(tensor)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of arithmetic and sums: float64 for float64, float32 for the rest (bf16 and fp16 are storage)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rstd_like(x: torch.Tensor) -> torch.Tensor:
    """An empty (N,) for 1 / rms of the N rows of x (..., D), in the accumulation dtype."""
    # math.prod and not Size.numel(), which turns a symbolic shape into a number: a graph per length.
    return x.new_empty(math.prod(x.shape[:-1]), dtype=accumulation_dtype(x.dtype))
