"""Gradient accumulation in other frameworks: each of the loader's batches in equal parts, observed as one.

A part's mean loss times its `weight`, averaged over the parts, is the batch's mean, however a framework accumulates.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ado_stream.errors import ConfigError
from ado_stream.loader import AdaptiveLoader
from ado_stream.stream.device_copies import TokenBatch
from ado_stream.stream.document_positions import IGNORED_TARGET


class MicroBatch(TokenBatch):
    """A part of a batch; `targets` are given always."""

    weight: torch.Tensor | float  # the part's targets, by their mean over parts: 1 without padding


def num_parts_of(loader: AdaptiveLoader, num_rows: int, option: str) -> int:
    """How many parts of `num_rows` rows a batch has on this rank. Raises ConfigError, naming `option`, for a rest."""
    return _check_divides(loader, num_rows, option) // num_rows


class MicroBatches:
    """Iterates over the parts of the loader's batches; `observe` takes each part's losses.

    option: what the framework calls the number of parts. Raises ConfigError unless it divides this rank's rows.
    """

    def __init__(self, loader: AdaptiveLoader, num_parts: int, option: str):
        _check_divides(loader, num_parts, option)
        self._loader, self._num_parts = loader, num_parts
        self._sums_K: torch.Tensor | float = 0.0
        self._counts_K: torch.Tensor | int = 0  # no float: the default dtype may be a narrow one
        self._num_observed = 0  # parts of the current batch

    def __iter__(self) -> Iterator[MicroBatch]:
        """Parts from the loader's current step on, without end."""
        self._forget()  # of a step that an exception interrupted
        self._loader.skip_unobserved()
        for batch in self._loader:
            if "positions" in batch:
                raise ConfigError("the data set has positions=True, which this adapter does not pass on; leave it out.")
            targets_BT = batch.get("targets", batch["tokens"][:, 1:])
            columns = (each.chunk(self._num_parts) for each in (batch["tokens"], batch["domain"], targets_BT))
            for tokens, domain, targets in zip(*columns, strict=True):
                weight = _weight(targets, targets_BT, self._num_parts) if "targets" in batch else 1.0
                yield {"tokens": tokens, "domain": domain, "step": batch["step"], "targets": targets, "weight": weight}

    def observe(self, sums_K: torch.Tensor, counts_K: torch.Tensor) -> None:
        """Adds a part's per-domain loss sums and token counts; with the last part the loader observes the batch."""
        sums_K, counts_K = self._sums_K + sums_K.detach(), self._counts_K + counts_K
        if self._num_observed + 1 == self._num_parts:
            self._loader.observe(sums_K, counts_K)
            self._forget()
        else:
            self._sums_K, self._counts_K, self._num_observed = sums_K, counts_K, self._num_observed + 1

    def _forget(self) -> None:
        self._sums_K, self._counts_K = 0.0, 0
        self._num_observed = 0


class SizedBatches:
    """Micro-batches with a length. Without one Lightning fetches each a step early, before `observe`, and Trainer goes
    on by a step when a finished run is resumed.
    """

    def __init__(self, micro_batches: MicroBatches, length: int):
        self._micro_batches, self._length = micro_batches, length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        return iter(self._micro_batches)


def refuse(adapter: str, refusals: Mapping[str, bool]) -> None:
    """Raises ConfigError with the first text whose settings are refused."""
    for text, refused in refusals.items():
        if refused:
            raise ConfigError(f"{adapter} {text}.")


def _weight(targets: torch.Tensor, targets_BT: torch.Tensor, num_parts: int) -> torch.Tensor:
    """`weight` of the part with `targets`; does not wait for a GPU."""
    num_kept, num_of_all = ((each != IGNORED_TARGET).sum() for each in (targets, targets_BT))
    return num_parts * num_kept / num_of_all.clamp(min=1)


def _check_divides(loader: AdaptiveLoader, number: int, option: str) -> int:
    """The rows that this rank has of a batch."""
    dataset = loader.dataset
    num_rows = dataset.settings.global_batch_size // dataset.rank_slots.num_parts
    if number < 1 or num_rows % number:
        raise ConfigError(f"{option} is {number}; it must divide the {num_rows} rows that a rank has of a batch.")
    return num_rows


def refuse_targets(loader: AdaptiveLoader, trainer: str) -> None:
    """Raises ConfigError where batches have targets of their own, which this trainer's adapter does not pass on."""
    if loader.dataset.padding_token is not None:
        raise ConfigError(
            f"the corpus has padding, which the adapter of {trainer} would train on; prepare it with --packing join."
        )
    if loader.dataset.settings.samples_per_row > 1:
        raise ConfigError(
            f"rows of several samples have targets of their own where two meet, and the adapter of {trainer} does not "
            "pass them on; prepare longer samples."
        )
