"""Lightning on an adaptive stream: `Trainer(...).fit(module)` with `module = AdaptiveModule(model, loader, ...)`.

The module brings its own data, tells the loader what each batch taught, and puts the loader's state into Lightning's
checkpoints. One optimizer step a batch: set `max_steps`, leave `accumulate_grad_batches` at 1, and
`use_distributed_sampler=False`.
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
    """The loader with a length, without which Lightning would take each batch one step before training on it."""

    def __init__(self, loader: AdaptiveLoader, num_batches: int):
        self._loader, self._num_batches = loader, num_batches

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[TokenBatch]:
        return iter(self._loader)


class AdaptiveModule(lightning.LightningModule):
    """A transformer that trains on `loader`; make_optimizer(parameters) returns its optimizer."""

    def __init__(
        self, model: Transformer, loader: AdaptiveLoader, make_optimizer: Callable[[Any], torch.optim.Optimizer]
    ):
        super().__init__()
        self.model = model
        self._loader, self._make_optimizer = loader, make_optimizer
        self._num_domains = len(loader.dataset.names)

    def on_fit_start(self) -> None:
        """Raises ConfigError for settings of the Trainer under which steps and batches would not match."""
        if self.trainer.accumulate_grad_batches != 1 or self.trainer.max_steps < 1:
            raise ConfigError("AdaptiveModule needs accumulate_grad_batches=1 and max_steps of at least 1.")

    def train_dataloader(self) -> _Batches:
        """The adaptive loader; each rank of it serves its own part."""
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
        """Logs the mean loss of batches with "tokens" (b, T + 1) as "val_loss"; the loader is not told."""
        tokens_BT = batch["tokens"]
        loss, _, _ = self.model.loss(tokens_BT[:, :-1], tokens_BT[:, 1:], torch.zeros_like(tokens_BT[:, 0]), 1)
        self.log("val_loss", loss, batch_size=len(tokens_BT), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """What `make_optimizer` makes of the model's parameters."""
        return self._make_optimizer(self.model.parameters())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds where the data and the policy stand."""
        checkpoint[STATE_KEY] = self._loader.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes to where the data and the policy stood."""
        self._loader.load_state_dict(checkpoint[STATE_KEY])
