"""rms_norm_rope: RMSNorm over each head, then the rotary embedding, forward and backward, in one pass each.

    n = x / sqrt(mean(x^2) + eps) * weight
    y_i = n_i cos_ti - n_(i + Q/2) sin_ti        y_(i + Q/2) = n_(i + Q/2) cos_ti + n_i sin_ti        for i < Q/2

Arithmetic is float32 (float64 for float64 input), rounded once. One after the other, norm and rotation read and write
queries and keys twice; fused, the forward pass moves 2 elements instead of 4, the backward pass 3 instead of 5. In the
124M model these bytes are 2 to 3 % of the floor of a training step. That is a count, printed by `python -m
benchmarks.kernels --smoke --only rms_norm_rope`; on a GPU the same command measures it.
Sources: arXiv 1910.07467 and 2104.09864, in the half-split layout of GPT-NeoX; QK-norm arXiv 2010.04245.
"""

from typing import Any

import torch

from ado_kernels.ops.operands import check_operands, rstd_like
from ado_kernels.ops.registration import register, register_backward
from ado_kernels.ops.rms_norm_rope.cpu import backward_cpu, forward_cpu


def rms_norm_rope(
    x: torch.Tensor, weight: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, eps: float = 1e-6
) -> torch.Tensor:
    """y in x's dtype and shape: each head's channels normed, weighted and rotated by their position's angles.

    x: (B, T, H, Q) floating, Q even, at most 256 on a GPU; weight: (Q,); cos, sin: (T, Q/2) floating. Differentiable
    once in x and weight, not in the tables. Raises ValueError where shapes, dtypes or devices do not fit.
    """
    check_operands("rms_norm_rope", {"x": x, "weight": weight, "cos": cos, "sin": sin})
    if x.dim() != 4 or x.shape[-1] == 0 or x.shape[-1] % 2:
        raise ValueError(f"rms_norm_rope needs x of shape (B, T, H, Q) with Q even, got {tuple(x.shape)}")
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, x's last dimension needs ({x.shape[-1]},)")
    table = (x.shape[1], x.shape[-1] // 2)
    if cos.shape != table or sin.shape != table:
        raise ValueError(f"cos and sin have shapes {tuple(cos.shape)} and {tuple(sin.shape)}, x needs {table}")
    if torch.is_grad_enabled() and (cos.requires_grad or sin.requires_grad):
        raise ValueError("rms_norm_rope has no gradient of cos and sin; use rms_norm_rope_reference to learn them")
    y: torch.Tensor = torch.ops.ado_kernels.rms_norm_rope(x, weight, cos, sin, eps)[0]
    return y


def rms_norm_rope_reference(
    x: torch.Tensor, weight: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, eps: float = 1e-6
) -> torch.Tensor:
    """What `rms_norm_rope` computes, in plain differentiable torch."""
    wide = x if x.dtype == torch.float64 else x.float()
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps) * weight
    first, second = normed.chunk(2, dim=-1)
    cos, sin = cos[:, None].to(wide.dtype), sin[:, None].to(wide.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs[:4], output[1])


def _backward(ctx: Any, dy: torch.Tensor | None, _drstd: None) -> tuple[torch.Tensor | None, ...]:
    if dy is None:
        return None, None, None, None, None
    dx, dweight = torch.ops.ado_kernels.rms_norm_rope_backward(dy, *ctx.saved_tensors)
    return dx, dweight, None, None, None


register(
    "rms_norm_rope", forward_cpu, lambda x, *_: (x.new_empty(x.shape), rstd_like(x)), "rms_norm_rope.forward_gpu"
).register_autograd(_backward, setup_context=_save)
register_backward(
    "rms_norm_rope",
    backward_cpu,
    lambda dy, x, weight, *_: (x.new_empty(x.shape), weight.new_empty(weight.shape)),
    "rms_norm_rope.backward_gpu",
)
