"""Lightning with an AdaptiveLoader: `Trainer(...).fit(module)` with `module = AdaptiveModule(model, loader, ...)`.

The module provides the data loader, passes it the per-domain losses, and adds its state to Lightning's checkpoints. One
optimizer step a batch of the loader, which `accumulate_grad_batches` splits: set `max_steps` and
`use_distributed_sampler=False`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from ado_stream.adapters.micro_batches import MicroBatches
from ado_stream.errors import ConfigError
from ado_stream.loader import AdaptiveLoader
from ado_stream.stream.device_copies import TokenBatch

STATE_KEY = "adaptive_loader"


class _Batches:
    """Micro-batches with a length; without one Lightning fetches each a step early, before `observe`."""

    def __init__(self, micro_batches: MicroBatches, length: int):
        self._micro_batches, self._length = micro_batches, length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[TokenBatch]:
        return iter(self._micro_batches)


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

    def train_dataloader(self) -> _Batches:
        """The loader, which yields this rank's part of each batch in `accumulate_grad_batches` parts.

        Raises ConfigError for Trainer settings with which a step would not be one batch.
        """
        trainer = self.trainer
        num_parts = trainer.accumulate_grad_batches
        if trainer.max_steps < 1:
            raise ConfigError("AdaptiveModule needs max_steps of at least 1.")
        callbacks = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
        if any(isinstance(each, GradientAccumulationScheduler) for each in callbacks):
            raise ConfigError("AdaptiveModule needs one accumulate_grad_batches; remove GradientAccumulationScheduler.")
        self._micro_batches = MicroBatches(self._loader, num_parts, "accumulate_grad_batches")
        return _Batches(self._micro_batches, trainer.max_steps * num_parts)

    def training_step(self, batch: dict[str, Any], batch_index: int) -> torch.Tensor:
        """Mean loss of these rows, which Lightning divides by the number of parts; the loader gets per-domain sums."""
        loss, sums_K, counts_K = self._losses(batch, batch["domain"], self._num_domains)
        self._micro_batches.observe(sums_K, counts_K)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Logs the mean loss of batches with "tokens" (b, T + 1) as "val_loss"; the policy does not see it."""
        tokens_BT = batch["tokens"]
        loss, _, _ = self._losses(batch, torch.zeros_like(tokens_BT[:, 0]), 1)
        self.log("val_loss", loss, batch_size=len(tokens_BT), sync_dist=True)

    def _losses(
        self, batch: dict[str, Any], domain_B: torch.Tensor, num_domains: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens_BT = batch["tokens"]
        losses: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = self.model(
            tokens_BT[:, :-1], batch.get("targets", tokens_BT[:, 1:]), domain_B, num_domains
        )
        return losses

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """`make_optimizer` of the model's parameters."""
        return self._make_optimizer(self.model.parameters())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the state of the loader and its policy."""
        checkpoint[STATE_KEY] = self._loader.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the loader and its policy."""
        self._loader.load_state_dict(checkpoint[STATE_KEY])
