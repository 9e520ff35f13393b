"""linear_cross_entropy: hidden states and vocabulary weight to mean loss, per-domain sums, gradients; no logits held.

    logits = hidden weight^T     loss_i = logsumexp(logits_i) - logits_i[target_i]     loss = mean over kept i
    with z_loss: loss = mean(loss_i + z_loss logsumexp(logits_i)^2); the per-domain sums are of loss_i alone

Logits exist for a few large chunks of rows only, in one reused buffer, and become their own gradient in place; both
gradients are formed in the forward pass (three matmuls in all, none repeated) and scaled in the backward pass. Few
large chunks, because each one after the first reads and writes the float32 sum that is the weight's gradient. Sums are
float32 for every dtype and rounded once, after scaling: rounding them to bf16 per chunk makes other chunked
implementations diverge (Liger-Kernel issues 512, 827).

Numbers: no host synchronisation on a GPU. All tokens ignored: loss 0, gradients 0. A target outside the vocabulary
raises on a CPU and makes the loss NaN on a GPU (its gradient rows are 0). Domain ids outside [0, K) are counted
nowhere: -1 on purpose, any other is invalid and domain_loss warns of it, on a GPU at the next call.
Under autocast, matmul operands take autocast's dtype inside; the weight's gradient keeps the weight's dtype.
Idea of chunking with gradients in the forward pass: malek, efficient_cross_entropy; Liger-Kernel, arXiv 2410.10989.
Local tensors only: under FSDP the weight must be unsharded when this is called.
"""

from typing import Any

import torch

from ado_kernels.ops.domain_loss import check_domains, domain_loss_reference
from ado_kernels.ops.linear_cross_entropy.cpu import linear_cross_entropy_cpu, scale_gradient_cpu
from ado_kernels.ops.linear_cross_entropy.problem import Outputs
from ado_kernels.ops.operands import accumulation_dtype, check_operands
from ado_kernels.ops.registration import register


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    domain_ids: torch.Tensor,
    num_domains: int,
    ignore_index: int = -100,
    z_loss: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """loss (), domain_sums (K,) float64 in nats, domain_counts (K,) int64 of kept tokens.

    hidden: (N, H), weight: (V, H), floating; targets: (N,) int64 in [0, V) or ignore_index; domain_ids: (N,) integers,
    or (b,) with one id per N / b consecutive rows (a sequence), -1: of no domain. loss is float32 (float64 for float64
    input) and differentiable in hidden and weight, once: a second derivative raises RuntimeError, for the gradients are
    formed in the forward pass. Sums and counts carry no gradient.
    Raises ValueError where shapes, dtypes or devices do not fit, and on a CPU for a target outside the vocabulary;
    warns (RuntimeWarning) of domain ids outside [-1, K).
    """
    check_operands(
        "linear_cross_entropy", {"hidden": hidden, "weight": weight}, {"targets": targets, "domain_ids": domain_ids}
    )
    _check_shapes(hidden, weight, targets)
    check_domains(hidden.shape[0], domain_ids, num_domains)
    recording = torch.is_grad_enabled()
    outputs = torch.ops.ado_kernels.linear_cross_entropy(
        hidden,
        weight,
        targets,
        domain_ids,
        num_domains,
        ignore_index,
        z_loss,
        recording and hidden.requires_grad,
        recording and weight.requires_grad,
        _compute_dtype(hidden, weight),
    )
    return outputs[0], outputs[1], outputs[2]


def linear_cross_entropy_reference(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    domain_ids: torch.Tensor,
    num_domains: int,
    ignore_index: int = -100,
    z_loss: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `linear_cross_entropy` computes, in plain differentiable torch on full logits."""
    kept_N = targets != ignore_index
    logits_NV = hidden @ weight.t()
    log_partition_N = torch.logsumexp(logits_NV, dim=-1)
    at_target_N = logits_NV.gather(1, torch.where(kept_N, targets, 0)[:, None])[:, 0]
    losses_N = torch.where(kept_N, log_partition_N - at_target_N, 0.0)
    penalties_N = torch.where(kept_N, z_loss * log_partition_N.square(), 0.0)
    loss = (losses_N + penalties_N).sum() / kept_N.sum().clamp(min=1)
    ids_N = domain_ids.repeat_interleave(targets.numel() // max(domain_ids.numel(), 1))
    return loss, *domain_loss_reference(losses_N, torch.where(kept_N, ids_N, -1), num_domains)


def _check_shapes(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1] or weight.shape[0] == 0:
        raise ValueError(
            f"hidden must be (N, H) and weight (V, H) with V > 0, got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(
            f"targets must be int64 of shape ({hidden.shape[0]},), got {targets.dtype} {tuple(targets.shape)}"
        )


def _compute_dtype(hidden: torch.Tensor, weight: torch.Tensor) -> torch.dtype:
    device, dtype = hidden.device.type, torch.promote_types(hidden.dtype, weight.dtype)
    # Autocast leaves float64 alone, here as in torch's own operations. "meta" has no autocast: the question raises.
    if dtype != torch.float64 and device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return dtype


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    hidden, weight = inputs[:2]
    _, sums_K, counts_K, dhidden_NH, dweight_VH, inverse = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(sums_K, counts_K, dhidden_NH, dweight_VH, inverse)
    ctx.save_for_backward(dhidden_NH, dweight_VH, inverse)
    ctx.dtypes = hidden.dtype, weight.dtype
    ctx.wanted = inputs[7:9]


def _backward(ctx: Any, dloss: torch.Tensor | None, *_: None) -> tuple[torch.Tensor | None, ...]:
    # Grad mode is on in a backward pass that is itself recorded (create_graph). The saved gradients are constants to
    # autograd: differentiating them would silently give zeros.
    if torch.is_grad_enabled():
        raise RuntimeError(
            "linear_cross_entropy has no second derivative; use linear_cross_entropy_reference where one is needed"
        )
    gradients: list[torch.Tensor | None] = [None, None]
    if dloss is not None:
        *unscaled, inverse = ctx.saved_tensors
        for i in range(2):
            if ctx.needs_input_grad[i] and not ctx.wanted[i]:  # vmap hides from the forward pass that it is needed
                raise RuntimeError(
                    "linear_cross_entropy has formed no gradient of an operand under vmap; call it in a loop, or use "
                    "linear_cross_entropy_reference"
                )
            if ctx.wanted[i]:
                gradients[i] = torch.ops.ado_kernels.scale_gradient(unscaled[i], dloss, inverse, ctx.dtypes[i])
    return *gradients, *[None] * 8


def _fake(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, ids: torch.Tensor, num_domains: int, *rest: Any
) -> Outputs:
    *_, hidden_grad, weight_grad, compute_dtype = rest
    wide = accumulation_dtype(compute_dtype)
    return (
        hidden.new_empty((), dtype=wide),
        hidden.new_empty(num_domains, dtype=torch.float64),
        hidden.new_empty(num_domains, dtype=torch.int64),
        hidden.new_empty(hidden.shape if hidden_grad else 0, dtype=wide),
        hidden.new_empty(weight.shape if weight_grad else 0, dtype=wide),
        hidden.new_empty((), dtype=torch.float64),
    )


register(
    "linear_cross_entropy", linear_cross_entropy_cpu, _fake, "linear_cross_entropy.linear_cross_entropy_gpu"
).register_autograd(_backward, setup_context=_save)
register(
    "scale_gradient",
    scale_gradient_cpu,
    lambda gradient, dloss, inverse, dtype: gradient.new_empty(gradient.shape, dtype=dtype),
    "linear_cross_entropy.scale_gradient_gpu",
)
