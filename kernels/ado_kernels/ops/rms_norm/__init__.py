"""rms_norm: y = x / sqrt(mean(x^2) + eps) * weight, with an optional residual added first, forward and backward.

Statistics and products are float32 (float64 for float64 input) and y is rounded once, after the weight; Llama's code
rounds x / rms before the weight as well. With a residual, s = x + residual is rounded to its own dtype first, and
the norm is that of the rounded s, so that forward and backward see the same numbers.

Memory decides the speed: forward reads x and writes y, backward reads x and dy and writes dx (one pass; the
composed form reads x and dy twice). The weight's gradient is summed from float32 partials in a fixed order.
Source: Zhang, Sennrich, "Root Mean Square Layer Normalization", arXiv 1910.07467. Local tensors only: under FSDP
call it on the unsharded weight, as module forward does.
"""

import math
from typing import Any, overload

import torch

from ado_kernels.ops.gpu_dispatch import register_gpu
from ado_kernels.ops.operands import accumulation_dtype, check_operands
from ado_kernels.ops.rms_norm.cpu import backward_cpu, forward_cpu

_Pair = tuple[torch.Tensor, torch.Tensor]


@overload
def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None = ..., eps: float = ..., residual: None = ...
) -> torch.Tensor: ...
@overload
def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float, residual: torch.Tensor) -> _Pair: ...
@overload
def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None = ..., eps: float = ..., *, residual: torch.Tensor
) -> _Pair: ...
def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None = None, eps: float = 1e-6, residual: torch.Tensor | None = None
) -> torch.Tensor | _Pair:
    """y in x's dtype and shape; with a residual (y, x + residual).

    x: (..., D) floating, D at most 16,384 on a GPU; weight: (D,) or None for ones; residual: x's shape, the sum has the
    promoted dtype. Differentiable once in x, weight and residual. Raises ValueError where shapes, dtypes or devices do
    not fit.
    """
    check_operands("rms_norm", {"x": x, "weight": weight, "residual": residual})
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"rms_norm needs x of shape (..., D) with D > 0, got {tuple(x.shape)}")
    if weight is not None and weight.shape != x.shape[-1:]:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, x's last dimension needs ({x.shape[-1]},)")
    y: torch.Tensor
    if residual is None:
        y, _ = torch.ops.ado_kernels.rms_norm(x, weight, eps)
        return y
    if residual.shape != x.shape:
        raise ValueError(f"residual has shape {tuple(residual.shape)}, x has {tuple(x.shape)}")
    y, _, total = torch.ops.ado_kernels.add_rms_norm(x, residual, weight, eps)
    return y, total


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


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])


@torch.library.custom_op("ado_kernels::rms_norm", mutates_args=(), device_types="cpu")
def _rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> _Pair:
    y_ND, rstd_N = forward_cpu(_rows(x).contiguous(), weight, eps)
    return y_ND.view(x.shape), rstd_N


@torch.library.custom_op("ado_kernels::add_rms_norm", mutates_args=(), device_types="cpu")
def _add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    total = torch.add(x, residual).contiguous()
    y_ND, rstd_N = forward_cpu(_rows(total), weight, eps)
    return y_ND.view(x.shape).to(x.dtype), rstd_N, total


@torch.library.custom_op("ado_kernels::rms_norm_backward", mutates_args=(), device_types="cpu")
def _rms_norm_backward(
    dy: torch.Tensor, dtotal: torch.Tensor | None, x: torch.Tensor, weight: torch.Tensor | None, rstd: torch.Tensor
) -> _Pair:
    dx_ND, dweight_D = backward_cpu(_rows(dy).contiguous(), _rows(x).contiguous(), weight, rstd)
    dx = dx_ND.view(x.shape)  # in the accumulation dtype until dtotal is added: one rounding
    if dtotal is not None:
        dx += dtotal
    return dx.to(x.dtype), dweight_D if weight is None else dweight_D.to(weight.dtype)


for _operation, _function in (
    (_rms_norm, "rms_norm_gpu"),
    (_add_rms_norm, "forward_gpu"),
    (_rms_norm_backward, "backward_gpu"),
):
    register_gpu(_operation, "ado_kernels.ops.rms_norm.gpu", _function)


@_rms_norm.register_fake
def _rms_norm_fake(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> _Pair:
    return x.new_empty(x.shape), _rstd_fake(x)


@_add_rms_norm.register_fake
def _add_rms_norm_fake(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    total = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, residual.dtype))
    return x.new_empty(x.shape), _rstd_fake(total), total


@_rms_norm_backward.register_fake
def _rms_norm_backward_fake(
    dy: torch.Tensor, dtotal: torch.Tensor | None, x: torch.Tensor, weight: torch.Tensor | None, rstd: torch.Tensor
) -> _Pair:
    return x.new_empty(x.shape), rstd.new_empty(0) if weight is None else weight.new_empty(weight.shape)


def _rstd_fake(x: torch.Tensor) -> torch.Tensor:
    # math.prod and not Size.numel(), which turns a symbolic shape into a number: a graph per length.
    return x.new_empty(math.prod(x.shape[:-1]), dtype=accumulation_dtype(x.dtype))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, _ = inputs
    ctx.set_materialize_grads(False)  # absent gradients come as None, not as tensors of zeros to be read
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, weight, output[1])


def _backward(ctx: Any, dy: torch.Tensor | None, _drstd: None) -> tuple[torch.Tensor | None, ...]:
    if dy is None:
        return None, None, None
    x, weight, rstd = ctx.saved_tensors
    dx, dweight = torch.ops.ado_kernels.rms_norm_backward(dy, None, x, weight, rstd)
    return dx, None if weight is None else dweight, None


def _save_add(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, residual, weight, _ = inputs
    _, rstd, total = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(rstd)
    ctx.save_for_backward(total, weight, rstd)
    ctx.dtypes = x.dtype, residual.dtype


def _backward_add(
    ctx: Any, dy: torch.Tensor | None, _drstd: None, dtotal: torch.Tensor | None
) -> tuple[torch.Tensor | None, ...]:
    total, weight, rstd = ctx.saved_tensors
    dweight = None
    if dy is not None:
        dtotal, dweight = torch.ops.ado_kernels.rms_norm_backward(dy, dtotal, total, weight, rstd)
    if dtotal is None:
        return None, None, None, None
    x_dtype, residual_dtype = ctx.dtypes
    return dtotal.to(x_dtype), dtotal.to(residual_dtype), None if weight is None else dweight, None


_rms_norm.register_autograd(_backward, setup_context=_save)
_add_rms_norm.register_autograd(_backward_add, setup_context=_save_add)
