"""SampleIndex: the samples of one domain, in shards, in whatever format they are stored.

Order, draw, state, cache and reading use no more of a format than this. A shard is what is fetched, mapped and
shuffled as one: a file of an MDS data set (mds_index.py), or a part of a flat file of tokens (flat_index.py).
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable
from pathlib import Path

import numpy as np

from ado_stream.regular_files import file_id
from ado_stream.storage.download import local_path
from ado_stream.storage.object_spec import ObjectSpec
from ado_stream.value_types import Ints, TokenDtype, Words


def place_id(place: str) -> Hashable:
    """The same for all paths of a file of this machine; of what is elsewhere, or is not there, the place itself."""
    path = local_path(place)
    if path is None:
        return place
    try:
        return file_id(path)
    except OSError:
        return str(path)


class ShardRows:
    """The rows of one mapped shard.

    row_tokens: T + 1, the same for all rows. regular: (address of row 0, bytes from a row to the next), uint64; (0, 0)
    when the stride varies.
    """

    row_tokens: int
    regular: tuple[int, int]

    def address(self, row_N: Ints) -> Words:
        """(N,) uint64: the memory addresses of the rows' tokens; valid while this object is alive."""
        base, stride = self.regular
        return (base + row_N * stride).astype(np.uint64)


class SampleIndex(ABC):
    """Where the samples of a domain are.

    name: of the domain. remote: URL or path that shards are fetched from; None where they are read in place. local: the
    shards' own folder, or the one that caches them. versions: of data without hashes; changes when they are replaced.
    first_id_S: (S + 1,) int64, the id of a shard's first sample. dtype: of a token.
    """

    name: str
    remote: str | None
    local: Path
    versions: str
    first_id_S: Ints

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """The same for the same samples, in any compression and place."""

    @property
    @abstractmethod
    def dtype(self) -> TokenDtype:
        """Of a token, little-endian."""

    @property
    @abstractmethod
    def row_tokens(self) -> int | None:
        """T + 1: tokens a sample; None where only the shards themselves say it."""

    @property
    @abstractmethod
    def raw_bytes_S(self) -> Ints:
        """(S,) int64: bytes of each shard, uncompressed."""

    @abstractmethod
    def data_ids(self) -> dict[Hashable, str]:
        """{what a file of tokens is recognised by, whatever its path: its place}."""

    @abstractmethod
    def spec(self, shard: int) -> ObjectSpec:
        """What to fetch for shard number `shard`."""

    @abstractmethod
    def rows(self, mapped: memoryview, shard: int) -> ShardRows:
        """The rows of the shard that is mapped. Raises ShardCorrupt, DataError."""

    @property
    def samples_S(self) -> Ints:
        """(S,) int64: samples of each shard."""
        return np.diff(self.first_id_S)

    @property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return int(self.first_id_S[-1])

    def shards_at(self, id_N: Ints) -> Ints:
        """(N,) int64: the shard that holds each sample id."""
        return np.searchsorted(self.first_id_S, id_N, side="right") - 1
