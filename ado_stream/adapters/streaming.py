"""An AdaptiveStreamingDataset from the arguments of a MosaicML StreamingDataset: `from_streaming(...)`.

It takes the arguments of StreamingDataset by their names. docs/trainers.md has the table of what differs; what has no
counterpart and changes what is read is refused, what only changes how is logged once.
"""

import inspect
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

from streaming import Stream
from streaming.base.util import bytes_to_int, number_abbrev_to_int

from ado_stream.adapters.stream_objects import checked_streams, stream_domains, stream_weights
from ado_stream.errors import ConfigError
from ado_stream.option_checks import MOST_ROWS, environment_whole, optional, refuse_unknown, text, whole
from ado_stream.stream.dataset import AdaptiveStreamingDataset
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
    streams = checked_streams(streams, remote, local, split)
    for each in streams:
        _log_ignored({name: getattr(each, name) for name in _IGNORED if hasattr(each, name)})
    weights = {name for each in streams for name in stream_weights(each)}
    if "proportion" in weights and not all(hasattr(each, "proportion") for each in streams):
        raise ConfigError("from_streaming: give all streams a proportion=, or none of them.")
    epoch_size = _amount("epoch_size", epoch_size, number_abbrev_to_int, "1500000 or '1.5m'")
    if epoch_size is not None and weights & {"repeat", "choose"}:
        raise ConfigError("from_streaming: epoch_size= does not go with repeat= and choose=, which say it already.")
    batch_size = whole("from_streaming: batch_size", batch_size, 1, MOST_ROWS)
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
    domains = stream_domains(streams, split)
    dataset = AdaptiveStreamingDataset(domains, **{**settings, **ours})
    num_samples = sum(each.chosen(size) for each, size in zip(domains, dataset.num_samples.tolist(), strict=True))
    return dataset, -(-(epoch_size or num_samples) // dataset.settings.global_batch_size)


def _amount(name: str, value: int | str | None, parse: Callable[[int | str], int], example: str) -> int | None:
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
