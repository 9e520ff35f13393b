"""Lightning with an AdaptiveLoader: `Trainer(...).fit(module)` with `module = AdaptiveModule(model, loader, ...)`.

The module provides the data loader, passes it the per-domain losses, and adds its state to Lightning's checkpoints. One
optimizer step a batch: set `max_steps`, leave `accumulate_grad_batches` at 1, and `use_distributed_sampler=False`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import lightning
import torch

from ado_model import Transformer
from ado_stream.errors import ConfigError
from ado_stream.loader import AdaptiveLoader
from ado_stream.stream.device_copies import TokenBatch

STATE_KEY = "adaptive_loader"


class _Batches:
    """The loader with a length; without one Lightning fetches each batch a step early, before `observe`."""

    def __init__(self, loader: AdaptiveLoader, num_batches: int):
        self._loader, self._num_batches = loader, num_batches

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[TokenBatch]:
        return iter(self._loader)


class AdaptiveModule(lightning.LightningModule):
    """A transformer trained on `loader`; make_optimizer(parameters) returns its optimizer."""

    def __init__(
        self,
        model: Transformer,
        loader: AdaptiveLoader,
        make_optimizer: Callable[[Iterator[torch.nn.Parameter]], torch.optim.Optimizer],
    ):
        super().__init__()
        self.model = model
        self._loader, self._make_optimizer = loader, make_optimizer
        self._num_domains = len(loader.dataset.names)

    def on_fit_start(self) -> None:
        """Raises ConfigError for Trainer settings with which a step would not be one batch."""
        if self.trainer.accumulate_grad_batches != 1 or self.trainer.max_steps < 1:
            raise ConfigError("AdaptiveModule needs accumulate_grad_batches=1 and max_steps of at least 1.")

    def train_dataloader(self) -> _Batches:
        """The loader, which yields this rank's part of each batch."""
        return _Batches(self._loader, self.trainer.max_steps)

    def training_step(self, batch: dict[str, Any], batch_index: int) -> torch.Tensor:
        """Mean loss of this rank's rows; the per-domain sums go to the loader."""
        tokens_BT = batch["tokens"]
        loss, sums_K, counts_K = self.model.loss(
            tokens_BT[:, :-1], tokens_BT[:, 1:], batch["domain"], self._num_domains
        )
        self._loader.observe(sums_K, counts_K)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Logs the mean loss of batches with "tokens" (b, T + 1) as "val_loss"; the policy does not see it."""
        tokens_BT = batch["tokens"]
        loss, _, _ = self.model.loss(tokens_BT[:, :-1], tokens_BT[:, 1:], torch.zeros_like(tokens_BT[:, 0]), 1)
        self.log("val_loss", loss, batch_size=len(tokens_BT), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """`make_optimizer` of the model's parameters."""
        return self._make_optimizer(self.model.parameters())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the state of the loader and its policy."""
        checkpoint[STATE_KEY] = self._loader.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the loader and its policy."""
        self._loader.load_state_dict(checkpoint[STATE_KEY])
