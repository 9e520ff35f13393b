"""Inputs and results of linear_cross_entropy on one device."""

from dataclasses import dataclass

import torch

from ado_kernels.ops.operands import accumulation_dtype

# Mean loss, per-domain sums and counts, unscaled gradients of hidden and weight, and what scales them: 1 / kept tokens.
Outputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Problem:
    """One call: inputs, options, and which gradients will be needed."""

    hidden_NH: torch.Tensor
    weight_VH: torch.Tensor
    targets_N: torch.Tensor
    ignore_index: int
    z_loss: float
    hidden_grad: bool
    weight_grad: bool
    compute_dtype: torch.dtype

    def options(self) -> tuple[int, float, bool]:
        """ignore_index, z_loss and whether any gradient is needed."""
        return self.ignore_index, self.z_loss, self.hidden_grad or self.weight_grad


@dataclass(frozen=True)
class Result:
    """Per-token numbers, and gradients of their SUM over rows; the caller divides by the number of kept tokens.

    losses_N: nats, 0 where ignored. squares_N: log-partition squared, 0 where ignored. Gradients: empty (0,) where
    not asked for. Unscaled gradients keep fp16 clear of underflow: 1 / N of a softmax entry is below its range.
    """

    losses_N: torch.Tensor
    squares_N: torch.Tensor
    dhidden_NH: torch.Tensor
    dweight_VH: torch.Tensor

    def outputs(
        self,
        problem: Problem,
        sums_K: torch.Tensor,
        counts_K: torch.Tensor,
        total: torch.Tensor,
        num_kept: torch.Tensor,
    ) -> Outputs:
        """What the operation returns; total (): sum of the kept tokens' losses, float64; num_kept (): how many."""
        inverse = 1.0 / num_kept.clamp(min=1).double()
        if problem.z_loss:
            total = total + problem.z_loss * self.squares_N.sum(dtype=torch.float64)
        loss = (total * inverse).to(accumulation_dtype(problem.compute_dtype))
        return loss, sums_K, counts_K, self.dhidden_NH, self.dweight_VH, inverse
