"""An AdaptiveStreamingDataset from the arguments of a MosaicML StreamingDataset: `from_streaming(...)`.

It takes the arguments of StreamingDataset by their names. docs/trainers.md has the table of what differs; what has no
counterpart and changes what is read is refused, what only changes how is logged once.
"""

import inspect
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streaming import Stream
from streaming.base.util import bytes_to_int, number_abbrev_to_int

from ado_stream.errors import ConfigError
from ado_stream.option_checks import (
    environment_whole,
    instance,
    number,
    optional,
    path_text,
    refuse_unknown,
    text,
    whole,
)
from ado_stream.stream.dataset import AdaptiveStreamingDataset
from ado_stream.stream.domain import Domain, stream_path, stream_places
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
    streams = _checked_streams(streams, remote, local, split)
    weights = {name for each in streams for name in _weights(each)}
    if "proportion" in weights and not all(hasattr(each, "proportion") for each in streams):
        raise ConfigError("from_streaming: give all streams a proportion=, or none of them.")
    epoch_size = _amount("epoch_size", epoch_size, number_abbrev_to_int, "1500000 or '1.5m'")
    if epoch_size is not None and weights & {"repeat", "choose"}:
        raise ConfigError("from_streaming: epoch_size= does not go with repeat= and choose=, which say it already.")
    batch_size = whole("from_streaming: batch_size", batch_size, 1, 1 << 24)
    predownload = optional(whole, "from_streaming: predownload", predownload, 1, 1 << 40)
    num_canonical_nodes = optional(whole, "from_streaming: num_canonical_nodes", num_canonical_nodes, 1)
    slots = make_rank_slots(rank, world_size, 1 if replication is None else replication)
    num_nodes = max(1, slots.world_size // environment_whole("LOCAL_WORLD_SIZE", slots.world_size, 1))
    lanes_per_node = 64 if shuffle_algo in ("py1s", "py2s") else 1
    settings: dict[str, Any] = {
        "global_batch_size": batch_size * slots.num_parts,
        "canonical_nodes": num_canonical_nodes or lanes_per_node * num_nodes,
        "seed": whole("from_streaming: shuffle_seed", shuffle_seed, -math.inf, math.inf),
        "shuffle": text("from_streaming: shuffle_algo", shuffle_algo),
        "predownload": predownload and predownload * slots.num_parts,
        "cache_limit": _amount("cache_limit", cache_limit, bytes_to_int, "1000000000 or '100gb'"),
        "replication": slots.replication,
        "rank": slots.rank,
        "world_size": slots.world_size,
    }
    options = [*inspect.signature(from_streaming).parameters, *inspect.signature(AdaptiveStreamingDataset).parameters]
    refuse_unknown("from_streaming", ours, [name for name in options if name not in ("others", "domains")])
    domains = [_domain(name, each, split) for name, each in zip(_names(streams), streams, strict=True)]
    dataset = AdaptiveStreamingDataset(domains, **{**settings, **ours})
    num_samples = sum(each.chosen(size) for each, size in zip(domains, dataset.num_samples.tolist(), strict=True))
    return dataset, -(-(epoch_size or num_samples) // dataset.settings.global_batch_size)


def _checked_streams(streams: object, remote: object, local: object, split: object) -> list[Stream]:
    """`streams` as a list, else the one of `remote` and `local`; logs what they say that has no effect."""
    if streams is None:
        return [_one_stream(remote, local, split)]
    if remote is not None or local is not None:
        raise ConfigError("from_streaming: give streams=, or remote= and local=, not both.")
    if isinstance(streams, Stream | str | Mapping) or not isinstance(streams, Iterable):
        raise ConfigError(f"from_streaming: streams is {streams!r:.80}; expected a list of streaming.Stream.")
    checked = [instance("from_streaming: streams: an entry", each, Stream) for each in streams]
    for each in checked:
        _log_ignored({name: getattr(each, name) for name in _IGNORED if hasattr(each, name)})
    return checked


def _one_stream(remote: object, local: object, split: object) -> Stream:
    if remote is None and local is None:
        raise ConfigError("from_streaming: give streams=, or remote= and local=, where the shards are.")
    there = optional(path_text, "from_streaming: remote", remote)
    here = optional(path_text, "from_streaming: local", local)
    folder = optional(text, "from_streaming: split", split)
    try:
        return Stream(remote=there, local=here, split=folder)
    except (OSError, ValueError) as error:  # a scheme that it does not know, a temporary folder that is there
        raise ConfigError(f"from_streaming: {error}") from error


def _amount(name: str, value: object, parse: Callable[[Any], int], example: str) -> int | None:
    """`value` as a number of samples or bytes, 1 or more, by Streaming's own reading of texts; None for None."""
    try:
        parsed = value if value is None or isinstance(value, bool) else parse(value)
    except (AttributeError, OverflowError, TypeError, ValueError):
        raise ConfigError(f"from_streaming: {name} is {value!r:.80}; expected a number such as {example}.") from None
    return optional(whole, f"from_streaming: {name}", parsed, 1)


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
    paths = [stream_path(each) for each in streams]
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

    def __post_init__(self) -> None:
        super().__post_init__()
        number(f"stream '{self.name}': repeat", self.repeat, 0, 1 << 40)
        optional(whole, f"stream '{self.name}': choose", self.choose)

    def weight(self, num_samples: int) -> float:
        return self.chosen(num_samples) if self.prior is None else self.prior

    def chosen(self, num_samples: int) -> int:
        """Samples of an epoch."""
        return int(self.repeat * num_samples) if self.choose is None else self.choose


def _domain(name: str, stream: Stream, split: str | None) -> _StreamDomain:
    given = _weights(stream)
    return _StreamDomain(name, *stream_places(stream, split), given.pop("proportion", None), **given)


def _weights(stream: Stream) -> dict[str, Any]:
    return {name: getattr(stream, name) for name in ("proportion", "repeat", "choose") if hasattr(stream, name)}
