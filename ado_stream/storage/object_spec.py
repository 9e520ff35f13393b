"""ObjectSpec: one object of a data set, or a part of one, where it is stored and what it must contain.

Invariant: a spec is a plain value made from an index; it never reads the disk.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class ObjectStatus:
    """An object's size, and what changes when it is replaced: its ETag, or the size and time of a local file."""

    num_bytes: int
    version: str


@dataclass(frozen=True)
class Part:
    """The bytes of an object from `begin` on, as many as the spec's raw_bytes; `version` is the whole object's."""

    begin: int
    version: str | None  # as object_version returned it when the data were opened; None: the store has none


@dataclass(frozen=True)
class ObjectSpec:
    """One object (a shard or an index file): where it is stored, where it is read, what it must contain.

    A part of a file without a remote is read in place: `raw` is then the whole file. One with a remote is a file of its
    own in the cache, sealed (verify.py), since no index has a hash of it.

    Sizes are in bytes, None where the index does not say. Hashes map an algorithm of the MDS index ("xxh64") to its
    hex digest; empty where the index has none.
    """

    label: str  # for messages, e.g. "domain 'wiki' shard.00042.mds"
    remote: str | None  # URL or path of the stored file; None: it exists only locally
    stored: Path  # local path of the file as stored, e.g. .../shard.00042.mds.zstd
    raw: Path  # local path of the uncompressed file; equal to `stored` when nothing is compressed
    stored_bytes: int | None = None
    raw_bytes: int | None = None
    stored_hashes: Mapping[str, str] = field(default_factory=dict)
    raw_hashes: Mapping[str, str] = field(default_factory=dict)
    compression: str | None = None  # as in the MDS index: "zstd", "zstd:3", "gz", "bz2", "br", "snappy"
    part: Part | None = None

    @property
    def compressed(self) -> bool:
        """Whether the stored file has to be decompressed before it is read."""
        return self.compression is not None

    @property
    def where(self) -> str:
        """The name that messages use: the remote URL, else the local path."""
        return self.remote if self.remote is not None else str(self.stored)

    @property
    def peak_bytes(self) -> int:
        """Disk in use while the object is being made: the raw file, and the stored one beside it when compressed."""
        return (self.raw_bytes or 0) + ((self.stored_bytes or 0) if self.compressed else 0)


@dataclass(frozen=True)
class Fetched:
    """A verified raw file on the local disk and what it cost to have it there."""

    path: Path
    downloaded_bytes: int
    hit: bool  # nothing had to be downloaded
    seconds: float
