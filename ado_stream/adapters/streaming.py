"""An AdaptiveStreamingDataset from the arguments of a MosaicML StreamingDataset: `from_streaming(...)`.

It takes the arguments of StreamingDataset by their names. docs/trainers.md has the table of what differs; what has no
counterpart and changes what is read is refused, what only changes how is logged once.
"""

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from streaming import Stream
from streaming.base.util import bytes_to_int, number_abbrev_to_int

from ado_stream.errors import ConfigError
from ado_stream.redact import redact
from ado_stream.stream.dataset import AdaptiveStreamingDataset
from ado_stream.stream.domain import Domain
from ado_stream.stream.slots import make_rank_slots

_log = logging.getLogger(__name__)
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {  # name: (values that serve, why no other does)
    "shuffle": ((True,), "samples are always shuffled; pass shuffle=True"),
    "sampling_method": (("balanced",), "every sample of a stream comes once before any comes twice"),
    "batching_method": (("random", "stratified"), "each batch is of all streams, in their proportions"),
    "stream_name": (("stream",), "streams are read as MDS; pass Stream objects"),
    "stream_config": ((None, {}), "streams are read as MDS; pass Stream objects"),
}
_IGNORED = {  # name: its default
    "sampling_granularity": 1,
    "partition_algo": "relaxed",
    "shuffle_block_size": None,
    "download_retry": 2,
    "download_timeout": 60,
    "keep_zip": False,
    "validate_hash": None,
    "allow_unsafe_types": False,
}


def from_streaming(
    *,
    batch_size: int,
    streams: Sequence[Stream] | None = None,
    remote: str | None = None,
    local: str | None = None,
    split: str | None = None,
    epoch_size: int | str | None = None,
    predownload: int | None = None,
    cache_limit: int | str | None = None,
    num_canonical_nodes: int | None = None,
    shuffle_algo: str = "py1e",
    shuffle_seed: int = 9176,
    replication: int | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    **others: Any,
) -> tuple[AdaptiveStreamingDataset, int]:
    """(data set, steps of an epoch) of a StreamingDataset's arguments; `others`: the rest of them, and those of ours.

    batch_size: samples of one device. epoch_size: samples; None: those of all streams, as often as `repeat` and
    `choose` say. Raises ConfigError for what cannot be honoured.
    """
    ours = _without_counterparts({"shuffle": False, **others})
    for each in streams or ():
        _log_ignored({name: getattr(each, name) for name in _IGNORED if hasattr(each, name)})
    if streams is None:
        streams = [Stream(remote=remote, local=local, split=split)]
    elif remote is not None or local is not None:
        raise ConfigError("from_streaming: give streams=, or remote= and local=, not both.")
    weights = {name for each in streams for name in _weights(each)}
    if "proportion" in weights and not all(hasattr(each, "proportion") for each in streams):
        raise ConfigError("from_streaming: give all streams a proportion=, or none of them.")
    if epoch_size and weights & {"repeat", "choose"}:
        raise ConfigError("from_streaming: epoch_size= does not go with repeat= and choose=, which say it already.")
    slots = make_rank_slots(rank, world_size, replication or 1)
    num_nodes = max(1, slots.world_size // int(os.environ.get("LOCAL_WORLD_SIZE", slots.world_size)))
    lanes_per_node = 64 if shuffle_algo in ("py1s", "py2s") else 1
    settings: dict[str, Any] = {
        "global_batch_size": batch_size * slots.num_parts,
        "canonical_nodes": num_canonical_nodes or lanes_per_node * num_nodes,
        "seed": shuffle_seed,
        "shuffle": shuffle_algo,
        "predownload": predownload and predownload * slots.num_parts,
        "cache_limit": None if cache_limit is None else bytes_to_int(cache_limit),
        "replication": slots.replication,
        "rank": slots.rank,
        "world_size": slots.world_size,
        **ours,
    }
    domains = [_domain(name, each, split) for name, each in zip(_names(streams), streams, strict=True)]
    dataset = AdaptiveStreamingDataset(domains, **settings)
    num_samples = sum(each.chosen(size) for each, size in zip(domains, dataset.num_samples.tolist(), strict=True))
    num_epoch = number_abbrev_to_int(epoch_size) if epoch_size else num_samples
    return dataset, math.ceil(num_epoch / dataset.settings.global_batch_size)


def _without_counterparts(others: dict[str, Any]) -> dict[str, Any]:
    """`others` without Streaming's; raises ConfigError for what changes the samples, logs what does not."""
    for name, (served, why) in _REFUSED.items():
        if name in others and (value := others.pop(name)) not in served:
            raise ConfigError(f"from_streaming: {name}={value!r} cannot be honoured: {why}.")
    _log_ignored(others)
    return {name: value for name, value in others.items() if name not in _IGNORED}


def _log_ignored(given: dict[str, Any]) -> None:
    for name, default in _IGNORED.items():
        if (value := given.get(name, default)) != default:
            _log.warning("from_streaming: %s=%r has no effect here; see docs/trainers.md", name, value)


def _names(streams: Sequence[Stream]) -> list[str]:
    """The last part of each stream's remote or local path, or as many parts as tell them all apart."""
    paths = [redact(each.remote or each.local).rstrip("/").split("/") for each in streams]
    for length in range(1, max(map(len, paths), default=1)):
        names = ["/".join(path[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return ["/".join(path) for path in paths]


@dataclass(frozen=True, repr=False, kw_only=True)
class _StreamDomain(Domain):
    """repeat, choose: of its stream, which give it its prior where it has no proportion."""

    repeat: float = 1.0
    choose: int | None = None

    def weight(self, num_samples: int) -> float:
        return self.chosen(num_samples) if self.prior is None else self.prior

    def chosen(self, num_samples: int) -> int:
        """Samples of an epoch."""
        return int(self.repeat * num_samples) if self.choose is None else self.choose


def _domain(name: str, stream: Stream, split: str | None) -> _StreamDomain:
    remote, local = (
        os.path.join(folder, stream.split or split or "").rstrip("/") if folder else None
        for folder in (stream.remote, stream.local)
    )
    given = _weights(stream)
    return _StreamDomain(name, remote, local, given.pop("proportion", None), **given)


def _weights(stream: Stream) -> dict[str, Any]:
    return {name: getattr(stream, name) for name in ("proportion", "repeat", "choose") if hasattr(stream, name)}
