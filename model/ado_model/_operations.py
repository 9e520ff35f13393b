"""Plain PyTorch operations behind the names of ado_kernels."""

import torch
import torch.nn.functional as F


def rms_norm(x, weight=None, eps=1e-6, residual=None):
    weight = None if weight is None else weight.to(x.dtype)
    if residual is not None:
        x = x + residual
        return F.rms_norm(x, (x.shape[-1],), weight, eps), x
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def swiglu(gate, up):
    return F.silu(gate) * up


def linear_cross_entropy(hidden, weight, targets, domain_ids, num_domains, ignore_index=-100, z_loss=0.0):
    losses = F.cross_entropy(F.linear(hidden, weight).float(), targets, ignore_index=ignore_index, reduction="none")
    kept = targets != ignore_index
    loss = losses.sum() / kept.sum()
    if domain_ids.shape != targets.shape:
        domain_ids = domain_ids.repeat_interleave(targets.numel() // domain_ids.numel())
    with torch.no_grad():
        sums = torch.zeros(num_domains, dtype=torch.float64).index_add_(0, domain_ids, losses.double())
        counts = torch.zeros(num_domains, dtype=torch.int64).index_add_(0, domain_ids, kept.long())
    return loss, sums, counts
