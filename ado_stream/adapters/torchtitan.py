"""torchtitan with an AdaptiveLoader: `adaptive_config(llama3_8b(), make_loader)` in a config registry.

The configuration gets a data loader of torchtitan's BaseDataLoader and a loss around its own, whose value is unchanged.
A batch is observed when the next one is asked for or the state is saved: by then every rank, of any pipeline stage, has
its losses, and all observe together. The loader's state is one entry of torchtitan's checkpoints, which any number of
ranks loads.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Protocol

import spmd_types as spmd
import torch
import tyro
from torch.distributed.tensor import DTensor
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.loss import BaseLoss, ChunkedLossWrapper, compute_logprobs
from torchtitan.tools.utils import get_local_device
from torchtitan.trainer import Trainer

from ado_stream.adapters.domain_sums import DomainSums, tag_labels, untag_labels
from ado_stream.adapters.micro_batches import num_parts_of, refuse_targets
from ado_stream.errors import ConfigError
from ado_stream.loader import AdaptiveLoader


class MakeLoader(Protocol):
    """Called once; the arguments are for AdaptiveStreamingDataset."""

    def __call__(self, *, rank: int, world_size: int) -> AdaptiveLoader: ...


class Shared:
    """What the data loader opens and the loss adds to; torchtitan builds each alone from its own configuration."""

    def open(self, loader: AdaptiveLoader) -> None:
        """Called before the first step."""
        self.dataset = loader.dataset
        self.sums = DomainSums(len(self.dataset.names), get_local_device())

    def to_dict(self) -> dict[str, Any]:
        """For torchtitan's log of the configuration."""
        return {}


class AdaptiveLoss(BaseLoss):
    """The loss and metrics of `loss_fn`; in training the cross-entropies of its tokens are added up by domain."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseLoss.Config):
        loss_fn: BaseLoss.Config
        shared: Annotated[Shared, tyro.conf.Suppress]

    def __init__(self, config: Config, **options: Any):
        self.loss_fn, self._shared = config.loss_fn.build(**options), config.shared
        self._checked = False

    def __call__(
        self, pred: torch.Tensor, labels: torch.Tensor, global_valid_tokens: torch.Tensor | None = None, **options: Any
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """pred (B, T, V); labels (B, T): tokens with a domain, or of validation without."""
        tokens_BT, domain_BT = untag_labels(labels)
        loss, metrics = self.loss_fn(pred, tokens_BT, global_valid_tokens, **options)
        if pred.requires_grad:
            if not self._checked and global_valid_tokens is not None:
                self._check_batch_size(int(global_valid_tokens))
            with spmd.no_typecheck(), torch.no_grad():
                local = [each.to_local() if isinstance(each, DTensor) else each for each in (tokens_BT, domain_BT)]
                self._shared.sums.add(-compute_logprobs(pred.detach(), local[0]), local[1])
        return loss, metrics

    def _check_batch_size(self, num_tokens: int) -> None:
        """Waits for the device, in the first step, which is before CUDA graphs are recorded."""
        dataset = self._shared.dataset
        if num_tokens != dataset.settings.global_batch_size * dataset.batch_seq_len:
            raise ConfigError(
                f"torchtitan's global batch size is {num_tokens // dataset.batch_seq_len}, that of the data set "
                f"{dataset.settings.global_batch_size}; make training.global_batch_size the same."
            )
        self._checked = True


class AdaptiveDataLoader(BaseDataLoader):
    """The loader's batches in parts of `local_batch_size` rows."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        make_loader: Annotated[MakeLoader, tyro.conf.Suppress]
        shared: Annotated[Shared, tyro.conf.Suppress]

    def __init__(
        self, config: Config, *, dp_world_size: int, dp_rank: int, seq_len: int, local_batch_size: int, **options: Any
    ):
        self.loader, self._shared = config.make_loader(rank=dp_rank, world_size=dp_world_size), config.shared
        refuse_targets(self.loader, "torchtitan")
        found = self.loader.dataset.batch_seq_len
        if found != seq_len:
            raise ConfigError(f"training.seq_len is {seq_len}, that of the data set {found}.")
        self._num_parts = num_parts_of(self.loader, local_batch_size, "training.local_batch_size")
        self._shared.open(self.loader)
        self._num_left, self._observed = 0, True  # parts of the batch that were not handed out; was it observed?

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        """({"input", "positions"}, labels), each (b, T), from the loader's current step on, without end."""
        while True:
            self._observe()
            batch: Any = next(iter(self.loader))
            self._num_left, self._observed = self._num_parts, False
            tokens_BT, label_BT = batch["tokens"][:, :-1], tag_labels(batch["tokens"][:, 1:], batch["domain"])
            position_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
            position_BT = batch.get("positions", position_T.expand_as(tokens_BT))
            for each in zip(
                *(column.chunk(self._num_parts) for column in (tokens_BT, position_BT, label_BT)), strict=True
            ):
                self._num_left -= 1
                yield {"input": each[0], "positions": each[1]}, each[2]

    def state_dict(self) -> dict[str, str]:
        """Of the last step; in one string, because torchtitan's checkpointer loads only keys that it finds here."""
        if self._num_left:
            raise ConfigError("a save in the middle of a batch of the data set; give torchtitan the same batch size.")
        self._observe()
        return {"adaptive_loader": json.dumps(self.loader.state_dict())}

    def load_state_dict(self, state_dict: dict[str, str]) -> None:
        """Continues from `state_dict`, saved with any number of ranks."""
        self.loader.load_state_dict(json.loads(state_dict["adaptive_loader"]))
        self._num_left, self._observed = 0, True

    def _observe(self) -> None:
        if not self._observed:
            self.loader.observe(*self._shared.sums.take())
            self._observed = True


def adaptive_config(config: Trainer.Config, make_loader: MakeLoader) -> Trainer.Config:
    """`config` with an AdaptiveDataLoader and, around its cross-entropy, an AdaptiveLoss."""
    shared = Shared()
    dataloader = AdaptiveDataLoader.Config(make_loader=make_loader, shared=shared)
    if isinstance(config.loss, ChunkedLossWrapper.Config):  # which calls its inner loss once for each chunk
        inner = AdaptiveLoss.Config(loss_fn=config.loss.loss_fn, shared=shared)
        return replace(config, dataloader=dataloader, loss=replace(config.loss, loss_fn=inner))
    return replace(config, dataloader=dataloader, loss=AdaptiveLoss.Config(loss_fn=config.loss, shared=shared))
