"""Streaming's Stream objects, checked, and each as a domain."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from streaming import Stream

from ado_stream.errors import ConfigError
from ado_stream.option_checks import instance, number, optional, path_text, text, whole
from ado_stream.stream.domain import Domain, stream_path, stream_places


def checked_streams(streams: object, remote: object, local: object, split: object) -> list[Stream]:
    """`streams` as a list, else the one of `remote` and `local`. Raises ConfigError for what is none."""
    if streams is None:
        return [_one_stream(remote, local, split)]
    if remote is not None or local is not None:
        raise ConfigError("from_streaming: give streams=, or remote= and local=, not both.")
    if isinstance(streams, Stream | str | Mapping) or not isinstance(streams, Iterable):
        raise ConfigError(f"from_streaming: streams is {streams!r:.80}; expected a list of streaming.Stream.")
    return [instance("from_streaming: streams: an entry", each, Stream) for each in streams]


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


@dataclass(frozen=True, repr=False, kw_only=True)
class StreamDomain(Domain):
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


def stream_domains(streams: Sequence[Stream], split: str | None) -> list[StreamDomain]:
    """Each of `streams` as a domain; split: of those that have none."""
    domains = []
    for name, stream in zip(_names(streams), streams, strict=True):
        given = stream_weights(stream)
        domains.append(StreamDomain(name, *stream_places(stream, split), given.pop("proportion", None), **given))
    return domains


def stream_weights(stream: Stream) -> dict[str, Any]:
    """What it says of its share: proportion, repeat or choose."""
    return {name: getattr(stream, name) for name in ("proportion", "repeat", "choose") if hasattr(stream, name)}


def _names(streams: Sequence[Stream]) -> list[str]:
    """The last part of each stream's remote or local path, or as many parts as tell them all apart."""
    paths = [stream_path(each) for each in streams]
    for length in range(1, max(map(len, paths), default=1)):
        names = ["/".join(path[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return ["/".join(path) for path in paths]
