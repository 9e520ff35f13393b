"""domain_loss: per-domain sums and counts of token losses, the numbers that a data policy observes.

    sums[k] = sum of losses[i] over i with id[i] = k      counts[k] = their number

Sums are float64 whatever the losses' dtype, counts int64. The result is deterministic on every device: partial sums
have a layout that depends on the number of tokens alone and are added in a fixed order; no atomics.

An id outside [0, K) is counted nowhere. -1 marks a token of no domain. Any other is invalid: a warning names one, on a
CPU at once, on a GPU at the next call, because to read it at once would wait for the device.

Cost: one read of losses and ids. On a GPU every token is compared with every domain (no scatter, no atomics): by count
of instructions some 17 us for N = 65,536 and K = 512, 130 us for K = 4096, and under a launch for K = 22.
"""

import math

import torch

from ado_kernels.ops.domain_loss.cpu import domain_loss_cpu
from ado_kernels.ops.operands import check_operands
from ado_kernels.ops.registration import register


def domain_loss(
    token_losses: torch.Tensor, domain_ids: torch.Tensor, num_domains: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(K,) float64 sums and (K,) int64 counts of `token_losses` by domain.

    token_losses: any shape with N elements, any floating dtype; NaN makes its own domain's sum NaN, no other.
    domain_ids: integers; one per token, or one per N / B consecutive tokens (a batch's domains); K = num_domains.
    Where losses have several dimensions, ids are those of the leading ones. -1: of no domain. The results carry no
    gradient. Raises ValueError where shapes, dtypes or devices do not fit, and warns (RuntimeWarning) of other ids
    outside [0, K).
    """
    if isinstance(token_losses, torch.Tensor):
        token_losses = token_losses.detach()  # before the check, which refuses what asks for some derivatives
    check_operands("domain_loss", {"token_losses": token_losses}, {"domain_ids": domain_ids})
    check_domains(token_losses.numel(), domain_ids, num_domains)
    check_leading("token_losses", token_losses, "domain_ids", domain_ids)
    sums_K, counts_K = torch.ops.ado_kernels.domain_loss(token_losses, domain_ids, num_domains)
    return sums_K, counts_K


def domain_loss_reference(
    token_losses: torch.Tensor, domain_ids: torch.Tensor, num_domains: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `domain_loss` computes, in plain torch and float64."""
    losses_N = token_losses.detach().double().flatten()
    ids_N = domain_ids.flatten().long()
    if ids_N.numel():
        ids_N = ids_N.repeat_interleave(losses_N.numel() // ids_N.numel())
    own_KN = ids_N == torch.arange(num_domains, device=ids_N.device)[:, None]
    return torch.where(own_KN, losses_N, 0.0).sum(dim=1), own_KN.sum(dim=1)


def check_domains(num_tokens: int, domain_ids: torch.Tensor, num_domains: int) -> None:
    """Raises ValueError unless `domain_ids` fit `num_tokens` tokens of `num_domains` domains."""
    num_ids = domain_ids.numel()
    if num_domains < 1:
        raise ValueError(f"num_domains must be at least 1, got {num_domains}")
    if num_tokens != num_ids and (num_ids == 0 or num_tokens % num_ids):
        raise ValueError(f"{num_ids} domain ids do not fit {num_tokens} tokens: give one per token or per sequence")


def check_leading(name: str, tensor: torch.Tensor, ids_name: str, ids: torch.Tensor) -> None:
    """Raises ValueError where `tensor` has several dimensions and `ids`, flat or not, are not of the leading ones.

    Numbers that fit by chance, as of a transposed tensor or of a batch's ids with a part of its tokens, would be added
    to other domains.
    """
    shape, ids_shape = ([size for size in each.shape if size != 1] for each in (tensor, ids))
    leading = [shape[:num_dims] for num_dims in range(len(shape) + 1)]
    if len(shape) > 1 and ids_shape not in leading and ids_shape not in [[math.prod(each)] for each in leading]:
        raise ValueError(
            f"{ids_name} of shape {tuple(ids.shape)} are not of the leading dimensions of {name}, {tuple(tensor.shape)}"
        )


def _fake(token_losses: torch.Tensor, domain_ids: torch.Tensor, num_domains: int) -> tuple[torch.Tensor, torch.Tensor]:
    sums_K = token_losses.new_empty(num_domains, dtype=torch.float64)
    return sums_K, sums_K.new_empty(num_domains, dtype=torch.int64)


register("domain_loss", domain_loss_cpu, _fake, "domain_loss.domain_loss_gpu")
