"""Lightning with an AdaptiveLoader: `Trainer(...).fit(module)` with `module = AdaptiveModule(model, loader, ...)`.

The module provides the data loader, passes it the per-domain losses, and adds its state to Lightning's checkpoints. One
optimizer step a batch of the loader, which `accumulate_grad_batches` splits: set `max_steps` and
`use_distributed_sampler=False`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import lightning
import torch

from ado_stream.adapters.micro_batches import MicroBatch, MicroBatches, SizedBatches, refuse
from ado_stream.errors import ConfigError, ResumeError
from ado_stream.loader import AdaptiveLoader
from ado_stream.value_types import JsonObject

STATE_KEY = "adaptive_loader"


class AdaptiveModule(lightning.LightningModule):
    """A transformer, compiled or not, trained on `loader`; make_optimizer(parameters) returns its optimizer."""

    def __init__(
        self,
        model: torch.nn.Module,
        loader: AdaptiveLoader,
        make_optimizer: Callable[[Iterator[torch.nn.Parameter]], torch.optim.Optimizer],
    ):
        super().__init__()
        self.model = model
        self._loader, self._make_optimizer = loader, make_optimizer
        self._num_domains = len(loader.dataset.names)
        self._num_parts: int | None = None  # known with the data loader

    def train_dataloader(self) -> SizedBatches:
        """The loader, which yields this rank's part of each batch in `accumulate_grad_batches` parts.

        Raises ConfigError for Trainer settings with which a step would not be one batch.
        """
        trainer = self.trainer
        num_parts, limit = trainer.accumulate_grad_batches, trainer.limit_train_batches
        length = trainer.max_steps * num_parts
        num_batches = min(length, limit if isinstance(limit, int) else int(limit * length))  # parts, of an epoch
        refusals = {
            "needs max_steps of at least 1": trainer.max_steps < 1,
            "cannot repeat batches; unset overfit_batches": (
                trainer.overfit_batches > 0  # type: ignore[attr-defined]  # set by a connector
            ),
            f"needs a multiple of accumulate_grad_batches={num_parts} as limit_train_batches, not {limit}": (
                num_batches % num_parts != 0
            ),
        }
        refuse("AdaptiveModule", refusals)
        progress = trainer.fit_loop.epoch_loop
        num_steps = progress.automatic_optimization.optim_progress.optimizer.step.current.completed
        if self.automatic_optimization and progress.batch_progress.current.ready != num_steps * num_parts:
            raise ResumeError(
                "the state was saved in the middle of a step, or with another accumulate_grad_batches than "
                f"{num_parts}.\n  Resume with the same, from a checkpoint that was saved after a step."
            )
        if progress.batch_progress.current.ready >= num_batches:
            # saved at the end of an epoch, of which Lightning would run one more part, and a step of that part alone
            progress.batch_progress.reset_on_run()
            progress.scheduler_progress.reset_on_run()
            progress.automatic_optimization.optim_progress.reset_on_run()
        self._micro_batches = MicroBatches(self._loader, num_parts, "accumulate_grad_batches")
        self._num_parts = num_parts
        return SizedBatches(self._micro_batches, length)

    def training_step(self, batch: MicroBatch, batch_index: int) -> torch.Tensor:
        """The part's share of the batch's mean loss; the loader gets per-domain sums."""
        if self._num_parts is None:
            raise ConfigError("AdaptiveModule has its own training data; give fit() no train_dataloaders of others.")
        if self.trainer.accumulate_grad_batches != self._num_parts:
            raise ConfigError(
                f"AdaptiveModule needs one accumulate_grad_batches, but {self._num_parts} became "
                f"{self.trainer.accumulate_grad_batches}; remove GradientAccumulationScheduler, or what else set it."
            )
        loss, sums_K, counts_K = self._losses(batch, batch["domain"], self._num_domains)
        self._micro_batches.observe(sums_K, counts_K)
        return loss * batch["weight"]  # Lightning divides it by the number of parts

    def validation_step(self, batch: dict[str, torch.Tensor], batch_index: int, dataloader_idx: int = 0) -> None:
        """Logs the mean loss of batches with "tokens" (b, T + 1) as "val_loss"; the policy does not see it.

        "targets" (b, T) where they are not in the tokens; those of -100 have no weight.
        """
        loss, _, counts_K = self._losses(batch, torch.zeros_like(batch["tokens"][:, 0]), 1)
        self.log("val_loss", loss, batch_size=int(counts_K.sum()), sync_dist=True)

    def _losses(
        self, batch: Mapping[str, Any], domain_B: torch.Tensor, num_domains: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens_BT = batch["tokens"]
        losses: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = self.model(
            tokens_BT[:, :-1], batch.get("targets", tokens_BT[:, 1:]), domain_B, num_domains
        )
        return losses

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """`make_optimizer` of the model's parameters."""
        return self._make_optimizer(self.model.parameters())

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        """Adds the state of the loader and its policy."""
        checkpoint[STATE_KEY] = self._loader.state_dict()

    def on_load_checkpoint(self, checkpoint: JsonObject) -> None:
        """Restores the loader and its policy."""
        if STATE_KEY not in checkpoint:
            raise ResumeError(
                f"the checkpoint has no {STATE_KEY!r}: it was not saved by an AdaptiveModule.\n"
                "  Load its weights alone: module.load_state_dict(checkpoint['state_dict'])."
            )
        self._loader.load_state_dict(checkpoint[STATE_KEY])
