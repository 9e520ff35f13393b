"""One optimizer step: micro-batches, gradient accumulation, clipping, AdamW.

Invariant: a step whose loss or gradient is not finite on any rank changes neither parameters nor AdamW's moments nor,
because its counts are then zero, the policy. Nothing here waits for the device, so the host can run ahead: fused AdamW
(arXiv 1711.05101) skips the update on the device by its `found_inf` flag, as under torch's GradScaler.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ado_kernels import domain_loss
from ado_stream.stream.document_positions import IGNORED_TARGET
from ado_stream.train.distributed import sum_over_ranks
from ado_stream.train.parallel import ParallelModel
from ado_stream.train.run_config import TrainSection


@dataclass(frozen=True)
class StepOutcome:
    """Results of one step, on the device.

    sums_K nats, counts_K tokens: (K,) float64 over the global batch, finite or not. grad_norm: before clipping.
    finite: bool; False: the update was skipped. sample_losses_B: (B,) float64, each sample's mean, where asked for.
    """

    sums_K: Tensor
    counts_K: Tensor
    grad_norm: Tensor
    finite: Tensor
    sample_losses_B: Tensor | None = None

    def for_policy(self) -> tuple[Tensor, Tensor]:
        """sums_K and counts_K, both zero when the step was skipped."""
        return torch.where(self.finite, self.sums_K, 0.0), torch.where(self.finite, self.counts_K, 0.0)


def make_optimizer(model: torch.nn.Module, options: TrainSection) -> torch.optim.AdamW:
    """Fused AdamW with weight decay on matrices (the embedding included) and none on norm weights."""
    parameters = list(model.parameters())
    groups = [
        {"params": [each for each in parameters if each.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [each for each in parameters if each.ndim < 2], "weight_decay": 0.0},
    ]
    beta1, beta2 = options.betas
    return torch.optim.AdamW(groups, lr=0.0, betas=(beta1, beta2), fused=True)


class TrainStep:
    """Forward, backward and update on one rank's rows of a global batch.

    replication: number of consecutive ranks that get the same rows; their losses count once.
    """

    def __init__(
        self,
        parallel: ParallelModel,
        optimizer: torch.optim.AdamW,
        options: TrainSection,
        num_domains: int,
        replication: int = 1,
    ):
        self._parallel = parallel
        self._context = parallel.context
        self._optimizer = optimizer
        self._parameters = [each for group in optimizer.param_groups for each in group["params"]]
        self._micro_rows = options.micro_batch_size
        self._grad_clip = options.grad_clip
        self._num_domains, self._replication = num_domains, replication

    def forward_backward(
        self,
        tokens_BT: Tensor,
        domain_ids_B: Tensor,
        targets_BT: Tensor | None = None,
        sample_losses_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(per-domain sums (K,) float64, counts (K,) int64) of this rank's rows; gradients are left in the parameters.

        tokens (b, T + 1) int64, domain ids (b,) int64, on this rank's device; targets (b, T) int64: the next tokens,
        -100 where they do not count; None: all count. Ranks count alike in the gradient, whatever their padding.
        sample_losses_B: (b,) float64, filled with each row's mean loss; the sums are then those of rows, added up:
        equal but for rounding.
        """
        num_kept = None if targets_BT is None else (targets_BT != IGNORED_TARGET).sum()
        targets_BT = tokens_BT[:, 1:] if targets_BT is None else targets_BT
        num_rows = tokens_BT.shape[0]
        sums_K = torch.zeros(self._num_domains, dtype=torch.float64, device=tokens_BT.device)
        counts_K = torch.zeros(self._num_domains, dtype=torch.int64, device=tokens_BT.device)
        rows = self._micro_rows or num_rows
        for start in range(0, num_rows, rows):
            part = slice(start, min(start + rows, num_rows))
            tokens, targets, domains = tokens_BT[part, :-1], targets_BT[part], domain_ids_B[part]
            with self._parallel.gradient_sync(last=part.stop == num_rows):
                if sample_losses_B is None:
                    loss, sums, counts = self._parallel.loss(tokens, targets, domains, self._num_domains)
                else:
                    row_B = torch.arange(len(tokens), device=tokens.device)
                    loss, row_sum_B, row_count_B = self._parallel.loss(tokens, targets, row_B, len(tokens))
                    sample_losses_B[part] = row_sum_B / row_count_B.clamp(min=1)
                    sums, counts = by_domain(row_sum_B, row_count_B, domains, self._num_domains)
                # `loss` is the micro-batch's mean: weighted by its share, gradients add up to the mean's.
                weight = (part.stop - start) / num_rows if num_kept is None else counts.sum() / num_kept
                (loss * weight).backward()
            sums_K += sums
            counts_K += counts
        return sums_K, counts_K

    def update(
        self, sums_K: Tensor, counts_K: Tensor, learning_rate: float, sample_losses_B: Tensor | None = None
    ) -> StepOutcome:
        """Sums the losses over ranks, clips, updates unless anything is not finite, and clears the gradients.

        sample_losses_B: (B,) of the global batch, 0 in the slots of other ranks.
        """
        if sample_losses_B is not None:  # a collective of its own: the bits of the sums do not depend on it
            sample_losses_B = sum_over_ranks(self._context, sample_losses_B) / self._replication
        totals_2K = sum_over_ranks(self._context, torch.stack([sums_K, counts_K.double()])) / self._replication
        gradients = [each.grad for each in self._parameters if each.grad is not None]
        grad_norm = torch.nn.utils.get_total_norm(gradients)
        if isinstance(grad_norm, DTensor):  # of this rank's shards; a collective makes it the whole gradient's
            grad_norm = grad_norm.full_tensor()
        # Both are equal on all ranks, so that all ranks skip the same steps: the sums are over ranks, and so are the
        # gradients, which DDP and FSDP have reduced.
        finite = torch.isfinite(totals_2K).all() & torch.isfinite(grad_norm)
        if self._grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self._grad_clip, grad_norm)
        self._optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return StepOutcome(totals_2K[0], totals_2K[1], grad_norm, finite, sample_losses_B)


def by_domain(sum_B: Tensor, count_B: Tensor, domain_ids_B: Tensor, num_domains: int) -> tuple[Tensor, Tensor]:
    """Rows' sums (b,) float64 and counts (b,) int64 as those of their domains, (K,) each; deterministic."""
    sums_K, _ = domain_loss(sum_B, domain_ids_B, num_domains)
    return sums_K, count_B.new_zeros(num_domains).index_add_(0, domain_ids_B, count_B)


@dataclass(frozen=True)
class LearningRateSchedule:
    """Linear warm-up to `peak`, then a cosine to `min_frac` of it at the last step.

    stage_ends: (end, fraction of `peak` at the step before it) of stages that end at a rate of their own, ascending;
    half a cosine leads from each to the next.
    """

    peak: float
    warmup_steps: int
    steps: int
    min_frac: float
    stage_ends: Sequence[Sequence[float]] = ()

    def __call__(self, step: int) -> float:
        """The learning rate of step 0, 1, ..., steps - 1."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        begin, high, last, low = self.warmup_steps, 1.0, self.steps - 1, self.min_frac
        for end, fraction in self.stage_ends:
            last, low = int(end) - 1, fraction
            if step < end:
                break
            begin, high, last, low = last, low, self.steps - 1, self.min_frac
        progress = (step - begin) / max(last - begin, 1)
        return self.peak * (low + (high - low) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))
