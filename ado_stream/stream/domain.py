"""Domain: a name, the place of its shards, and its prior weight.

A list of Streaming's `Stream(remote=..., local=..., split=..., proportion=...)` works in place of `Domain`s.
"""

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ado_stream.errors import ConfigError
from ado_stream.option_checks import number, one_of, optional, path_text, text
from ado_stream.redact import redact
from ado_stream.storage.download import local_path
from ado_stream.stream.fill_in_middle import FillInMiddle, as_fill_in_middle
from ado_stream.value_types import INTEGER_DTYPES, Floats, Ints, JsonObject

FORMATS = ("mds", "megatron", "npy")


@dataclass(frozen=True)
class Domain:
    """One domain of the mixture: tokens under a name.

    Args:
        name: unique among the domains of a data set.
        remote: URL or path of what is read; None when the data are in `local`.
        local: on this machine: the data themselves (remote None) or the folder that caches the remote. Path objects
            become strings, and paths absolute: they are read long after, perhaps in another working directory.
        prior: weight, on any positive scale; None for all domains: their numbers of tokens.
        format: of what is read. "mds": a folder with index.json, or a folder of such folders. "megatron": the path of a
            .bin and its .idx, without the extension, or a folder of them. "npy": a file of tokens with or without
            NumPy's header, or a folder of .npy files. The last two are cut into samples of the data set's seq_len, and
            read in place when local.
        token_dtype, token_column: override those of the data set for this domain.
        fim: fill-in-the-middle: the share of documents, or {"rate": share, "spm_rate": share of these in SPM's order}.
    """

    name: str
    remote: str | None = None
    local: str | None = None
    prior: float | None = None
    format: str = "mds"
    token_dtype: str | None = None
    token_column: str | None = None
    fim: FillInMiddle | JsonObject | float | None = None

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str):
            raise ConfigError(f"a domain needs a name, a non-empty string; got {self.name!r}.")
        for field in ("remote", "local"):
            checked = optional(path_text, f"domain '{self.name}': {field}", getattr(self, field))
            object.__setattr__(self, field, checked and _absolute(checked))
        object.__setattr__(self, "fim", as_fill_in_middle(f"domain '{self.name}': fim", self.fim))
        one_of(f"domain '{self.name}': format", self.format, FORMATS)
        optional(one_of, f"domain '{self.name}': token_dtype", self.token_dtype, INTEGER_DTYPES)
        optional(text, f"domain '{self.name}': token_column", self.token_column)
        if self.format == "megatron":  # the name of either file serves
            source = "local" if self.remote is None else "remote"
            place = (getattr(self, source) or "").removesuffix(".bin").removesuffix(".idx")
            object.__setattr__(self, source, place or None)
        if self.local is None and self.format != "mds" and local_path(self.remote or "s3://") is not None:
            object.__setattr__(self, "local", str(local_path(self.remote or "")))
        if self.local is None:
            what = "data or cache" if self.remote is None else f"cache of {self.remote}"
            raise ConfigError(f"domain '{self.name}': no local folder. Give local=, the folder of its {what}.")
        object.__setattr__(self, "prior", optional(number, f"domain '{self.name}': prior", self.prior, 0.0))

    def weight(self, num_samples: int) -> float:
        """Its share of the mixture, on the scale of the other domains'."""
        return num_samples if self.prior is None else self.prior

    def __repr__(self) -> str:
        given = ((field.name, getattr(self, field.name), field.default) for field in fields(self))
        return redact(f"Domain({', '.join(f'{name}={value!r}' for name, value, usual in given if value != usual)})")


def as_domains(given: Iterable[object]) -> list[Domain]:
    """`given` (a Corpus, Domains, or Streaming's Stream objects) as a checked list of Domains.

    A Stream's name is the last part of its remote or local path. Raises ConfigError for an empty list, a name or a
    source that comes twice, priors on some domains only, and Streams with `repeat` or `choose`.
    """
    given = getattr(given, "domains", given)  # a Corpus
    if isinstance(given, str | Mapping | Domain) or not isinstance(given, Iterable):
        raise ConfigError(f"domains is {given!r:.80}; expected a Corpus, or a list of ado.Domain or streaming.Stream.")
    domains = [item if isinstance(item, Domain) else _from_stream(item) for item in given]
    if not domains:
        raise ConfigError("no domains given; a mixture needs at least one.")
    names: set[str] = set()
    sources: dict[str, str] = {}
    for domain in domains:
        if domain.name in names:
            raise ConfigError(f"domain '{domain.name}' is given twice; names must differ.")
        names.add(domain.name)
        source = domain_source(domain)
        if source in sources:
            raise ConfigError(f"domains '{sources[source]}' and '{domain.name}' have the same data, {source}.")
        sources[source] = domain.name
    given_priors = [domain for domain in domains if domain.prior is not None]
    if given_priors and len(given_priors) < len(domains):
        missing = next(domain.name for domain in domains if domain.prior is None)
        raise ConfigError(f"domain '{missing}' has no prior, others have. Give all of them one, or none.")
    total = sum(domain.prior or 0.0 for domain in given_priors)
    if given_priors and not 0 < total < math.inf:
        raise ConfigError(f"the priors add up to {total}; expected a positive, finite sum.")
    return domains


def prior_shares(domains: list[Domain], num_samples: Ints) -> Floats:
    """(K,) float64, sums to 1: the priors, or the shares of the samples (K,) where there are none."""
    weights = [domain.weight(number) for domain, number in zip(domains, num_samples.tolist(), strict=True)]
    if not any(weights):
        raise ConfigError("the weights of all domains are 0.")
    weight_K = np.array(weights, np.float64)
    return weight_K / float(weight_K.sum())


def domain_source(domain: Domain) -> str:
    """Where the domain's data are, spelled in one way."""
    place = domain.remote or domain.local or ""
    path = local_path(place)
    if path is not None:
        return os.path.realpath(path)
    scheme, _, rest = place.partition(":")
    return f"{scheme.lower()}:{rest.rstrip('/')}"


def _absolute(place: str) -> str:
    """A path from the root on; a URL as it is."""
    is_relative = local_path(place) == Path(place) and not os.path.isabs(place)
    return str(Path.cwd() / place) if is_relative else place


def stream_places(stream: Any, split: str | None = None) -> tuple[str | None, str | None]:
    """(remote, local) of a Stream of Streaming's, with its split, else `split`. Raises ConfigError for what is none."""
    folder = optional(text, "a stream's split", getattr(stream, "split", None) or split or None) or ""
    places = (optional(path_text, f"a stream's {name}", getattr(stream, name)) for name in ("remote", "local"))
    remote, local = (place and os.path.join(place, folder).rstrip("/") for place in places)
    return remote, local


def stream_path(stream: Any) -> list[str]:
    """The parts of its remote or local path, which name it; without credentials."""
    return redact(path_text("a stream's path", stream.remote or stream.local)).rstrip("/").split("/")


def _from_stream(stream: Any) -> Domain:
    if not (hasattr(stream, "remote") and hasattr(stream, "local")):
        raise ConfigError(f"domains contains {stream!r:.80}; expected ado.Domain or streaming.Stream.")
    remote, local = stream_places(stream)
    name = stream_path(stream)[-1]
    for unit in ("repeat", "choose"):
        if hasattr(stream, unit):
            raise ConfigError(f"stream '{name}': {unit}= is not supported; give all streams a proportion= instead.")
    return Domain(name, remote, local, getattr(stream, "proportion", None))
