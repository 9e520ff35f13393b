"""Flat files of tokens as shards: Megatron's .bin and OLMo's .npy, read in place or by ranges.

Sample i of a file is its tokens [i T, i T + T]: T + 1 of them, the last shared with the next sample, so that every
token but a file's first is a target once. This is how Megatron cuts; a sample goes on from one document to the next,
and what does not fill a file's last sample is dropped. A shard is a run of samples of one file, of at most SHARD_BYTES:
the unit in which the order shuffles and a remote is read. Where it begins depends on T and the file alone.
"""

import json
from collections.abc import Hashable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash

from ado_stream.storage.object_spec import ObjectSpec, Part
from ado_stream.stream.sample_index import SampleIndex, ShardRows, place_id
from ado_stream.value_types import Ints, TokenDtype

SHARD_BYTES = 1 << 26  # of an MDS shard by default


@dataclass(frozen=True)
class TokenFile:
    """One file of tokens.

    name: what follows the domain's place in its path. begin: bytes before the first token. version: as storage has it.
    content_hash: of what is known of its content, its .idx; "" for none. num_documents: None if unknown. head_hash: of
    its first bytes; "" where the version is enough.
    """

    name: str
    begin: int
    num_tokens: int
    dtype: str
    version: str
    content_hash: str = ""
    num_documents: int | None = None
    head_hash: str = ""


@dataclass(frozen=True)
class FlatContent:
    """The files of a domain, wherever they lie."""

    files: tuple[TokenFile, ...]

    def encode(self) -> bytes:
        """The bytes that `decode` takes."""
        return json.dumps([asdict(file) for file in self.files]).encode()

    @staticmethod
    def decode(data: bytes) -> "FlatContent":
        """The content of what `encode` returned."""
        return FlatContent(tuple(TokenFile(**fields) for fields in json.loads(data)))

    @property
    def versions(self) -> str:
        """A hash of the versions of all files; times alone may be the same, as programs that copy files set them."""
        return xxhash.xxh3_128_hexdigest("\0".join(f"{file.version}{file.head_hash}" for file in self.files).encode())

    @property
    def num_documents(self) -> int | None:
        """Documents of all files; None where a format does not say."""
        numbers = [file.num_documents for file in self.files]
        return None if None in numbers else sum(number or 0 for number in numbers)


@dataclass(frozen=True)
class FlatIndex(SampleIndex):
    """The files under their domain's name, in samples of seq_len + 1 tokens."""

    name: str
    remote: str | None
    local: Path
    content: FlatContent
    seq_len: int
    versions: str
    index_folder: Path  # of Megatron's .idx of a remote

    @property
    def fingerprint(self) -> str:
        known = [(file.num_tokens, file.content_hash) for file in self.content.files]
        return xxhash.xxh3_128_hexdigest(json.dumps([self.seq_len, str(self.dtype), known]).encode())

    @property
    def dtype(self) -> TokenDtype:
        return np.dtype(self.content.files[0].dtype).newbyteorder("<")

    @property
    def row_tokens(self) -> int:
        return self.seq_len + 1

    @cached_property
    def first_id_S(self) -> Ints:  # type: ignore[override]
        return np.concatenate([[0], np.cumsum(self._shards[2])])

    @cached_property
    def raw_bytes_S(self) -> Ints:  # type: ignore[override]
        return (self._shards[2] * self.seq_len + 1) * self.dtype.itemsize

    @property
    def num_tokens(self) -> int:
        """Tokens of all samples, each counted once."""
        file_S, _, samples_S = self._shards
        return int(samples_S.sum()) * self.seq_len + int(np.unique(file_S).size)

    @property
    def stride_bytes(self) -> int:
        """From one sample to the next."""
        return self.seq_len * self.dtype.itemsize

    def first_token(self, shard: int) -> tuple[TokenFile, int]:
        """The file of a shard, and the number of its first token there."""
        file_S, first_sample_S, _ = self._shards
        return self.content.files[file_S[shard]], int(first_sample_S[shard]) * self.seq_len

    def data_ids(self) -> dict[Hashable, str]:
        places = (f"{self.remote or self.local}{file.name}" for file in self.content.files)
        return {place_id(place): place for place in places}

    def spec(self, shard: int) -> ObjectSpec:
        file, token = self.first_token(shard)
        begin = file.begin + token * self.dtype.itemsize
        size = int(self.raw_bytes_S[shard])
        where = f"{self.remote or self.local}{file.name}"
        path = self.local / f"{shard:08}.tokens" if self.remote else Path(where)
        return ObjectSpec(
            label=f"domain '{self.name}' {where.rpartition('/')[2]} from byte {begin}",
            remote=where if self.remote else None,
            stored=path,
            raw=path,
            stored_bytes=size,
            raw_bytes=size,
            part=Part(begin, file.version),
        )

    def rows(self, mapped: memoryview, shard: int) -> "FlatRows":
        return FlatRows(mapped, self.stride_bytes, self.row_tokens)

    @cached_property
    def _shards(self) -> tuple[Ints, Ints, Ints]:
        """(S,) int64 each: file, first sample within it, samples."""
        most = max(1, SHARD_BYTES // self.stride_bytes)
        num_samples_F = np.array([max(0, (file.num_tokens - 1) // self.seq_len) for file in self.content.files])
        num_shards_F = -(-num_samples_F // most)
        file_S = np.repeat(np.arange(num_samples_F.size), num_shards_F)
        first_sample_S = most * (
            np.arange(file_S.size) - np.repeat(np.cumsum(num_shards_F) - num_shards_F, num_shards_F)
        )
        return file_S, first_sample_S, np.minimum(most, num_samples_F[file_S] - first_sample_S)


class FlatRows(ShardRows):
    """Rows that overlap by one token, in a mapped range of a file."""

    def __init__(self, mapped: memoryview, stride_bytes: int, row_tokens: int):
        self._bytes = np.frombuffer(mapped, np.uint8)  # keeps the map alive
        self.row_tokens = row_tokens
        self.regular = (self._bytes.ctypes.data, stride_bytes)
