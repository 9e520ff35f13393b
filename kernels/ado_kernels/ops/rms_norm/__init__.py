"""rms_norm: y = x / sqrt(mean(x^2) + eps) * weight, with an optional residual added first, forward and backward.

Statistics and products are float32 (float64 for float64 input) and y is rounded once, after the weight; Llama's code
rounds x / rms before the weight as well. With a residual, s = x + residual is rounded to its own dtype first, and
the norm is that of the rounded s, so that forward and backward see the same numbers.

Memory decides the speed: forward reads x and writes y, backward reads x and dy and writes dx (one pass; the
composed form reads x and dy twice). The weight's gradient is summed from float32 partials in a fixed order.
Source: Zhang, Sennrich, "Root Mean Square Layer Normalization", arXiv 1910.07467. Local tensors only: under FSDP
call it on the unsharded weight, as module forward does.
"""

from typing import Any, overload

import torch

from ado_kernels.ops.operands import check_operands, rstd_like
from ado_kernels.ops.registration import register, register_backward
from ado_kernels.ops.rms_norm.cpu import backward_cpu, forward_cpu

_Pair = tuple[torch.Tensor, torch.Tensor]


@overload
def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None = ..., eps: float = ..., residual: None = ...
) -> torch.Tensor:
    """y alone, without a residual."""


@overload
def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float, residual: torch.Tensor) -> _Pair:
    """(y, x + residual), with a residual."""


@overload
def rms_norm(x: torch.Tensor, weight: torch.Tensor | None = ..., eps: float = ..., *, residual: torch.Tensor) -> _Pair:
    """The same, with the residual by its name."""


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None = None, eps: float = 1e-6, residual: torch.Tensor | None = None
) -> torch.Tensor | _Pair:
    """y in x's dtype and shape; with a residual (y, x + residual).

    x: (..., D) floating, D at most 16,384 on a GPU; weight: (D,) or None for ones; residual: x's shape, the sum has the
    promoted dtype. Differentiable once in x, weight and residual. Raises ValueError where shapes, dtypes or devices do
    not fit.
    """
    optional = {"weight": weight, "residual": residual}
    check_operands("rms_norm", {"x": x} | {name: each for name, each in optional.items() if each is not None})
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"rms_norm needs x of shape (..., D) with D > 0, got {tuple(x.shape)}")
    if weight is not None and weight.shape != x.shape[-1:]:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, x's last dimension needs ({x.shape[-1]},)")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual has shape {tuple(residual.shape)}, x has {tuple(x.shape)}")
    y: torch.Tensor
    y, _, total = torch.ops.ado_kernels.rms_norm(x, residual, weight, eps)
    return y if residual is None else (y, total)


def rms_norm_reference(
    x: torch.Tensor, weight: torch.Tensor | None = None, eps: float = 1e-6, residual: torch.Tensor | None = None
) -> torch.Tensor | _Pair:
    """What `rms_norm` computes, in plain differentiable torch."""
    total = x if residual is None else x + residual
    wide = total if total.dtype == torch.float64 else total.float()
    y = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    if weight is not None:
        y = y * weight
    y = y.to(x.dtype)
    return y if residual is None else (y, total)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    x, residual, weight, _ = inputs
    _, rstd, total = output
    ctx.set_materialize_grads(False)  # absent gradients come as None, not as tensors of zeros to be read
    ctx.mark_non_differentiable(rstd, *([total] if residual is None else []))
    ctx.save_for_backward(x if residual is None else total, weight, rstd)
    ctx.dtypes = x.dtype, None if residual is None else residual.dtype


def _backward(
    ctx: Any, dy: torch.Tensor | None, _drstd: None, dtotal: torch.Tensor | None
) -> tuple[torch.Tensor | None, ...]:
    normed, weight, rstd = ctx.saved_tensors
    dweight = None
    if dy is not None:
        dtotal, dweight = torch.ops.ado_kernels.rms_norm_backward(dy, dtotal, normed, weight, rstd)
    if dtotal is None:
        return None, None, None, None
    x_dtype, residual_dtype = ctx.dtypes
    dresidual = None if residual_dtype is None else dtotal.to(residual_dtype)
    return dtotal.to(x_dtype), dresidual, None if weight is None else dweight, None


def _forward_fake(x: torch.Tensor, residual: torch.Tensor | None, *_: object) -> tuple[torch.Tensor, ...]:
    if residual is None:
        return x.new_empty(x.shape), rstd_like(x), x.new_empty(0)
    total = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, residual.dtype))
    return x.new_empty(x.shape), rstd_like(total), total


def _backward_fake(
    dy: torch.Tensor, dtotal: torch.Tensor | None, x: torch.Tensor, weight: torch.Tensor | None, rstd: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    return x.new_empty(x.shape), rstd.new_empty(0) if weight is None else weight.new_empty(weight.shape)


register("rms_norm", forward_cpu, _forward_fake, "rms_norm.forward_gpu").register_autograd(
    _backward, setup_context=_save
)
register_backward("rms_norm", backward_cpu, _backward_fake, "rms_norm.backward_gpu")
