"""The MDS shard format (version 2) for one column of fixed-size token samples.

Written directly, because importing mosaicml-streaming costs every worker process seconds (bench_prepare prints how
many); `tests/corpus/test_corpus_mds.py` compares every byte with streaming's own MDSWriter. A shard is

    uint32 number of samples | uint32 offset of each sample, and of the end | JSON of the columns | the samples

and index.json lists the shards with sizes and hashes. Source: mosaicml-streaming 0.13, base/format/mds/writer.py.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NotRequired, TypedDict, cast

import numpy as np
import xxhash
import zstandard

from ado_stream.stream.index_content import FIRST_DOCUMENTS, MDS_FORMAT, MDS_VERSION
from ado_stream.stream.mds_index import TOKEN_COLUMN
from ado_stream.value_types import Array, JsonObject

COMPRESSION = "zstd"
COMPRESSION_LEVEL = 3
HASH = "xxh64"


class FileEntry(TypedDict):
    """A file of a shard in index.json."""

    basename: str
    bytes: int
    hashes: NotRequired[dict[str, str]]


class ShardEntry(TypedDict):
    """A shard in index.json; further keys are those of ShardFormat.config."""

    samples: int
    raw_data: FileEntry
    zip_data: NotRequired[FileEntry | None]
    size_limit: NotRequired[int]


@dataclass(frozen=True)
class ShardFormat:
    """The shape of every shard of a data set: samples of `sample_tokens` ids of `dtype`, `size_limit` raw bytes."""

    sample_tokens: int
    dtype: str  # "uint16" or "uint32"
    size_limit: int

    @cached_property
    def sample_bytes(self) -> int:
        """Bytes of one sample."""
        return self.sample_tokens * np.dtype(self.dtype).itemsize

    @property
    def encoding(self) -> str:
        """Streaming's name of the column's type, such as ndarray:uint16:257."""
        return f"ndarray:{self.dtype}:{self.sample_tokens}"

    @cached_property
    def config(self) -> JsonObject:
        """The description of the columns in every index entry and every shard's header."""
        return {
            "version": MDS_VERSION,
            "format": MDS_FORMAT,
            "compression": COMPRESSION,
            "hashes": [HASH],
            "size_limit": self.size_limit,
            "column_names": [TOKEN_COLUMN],
            "column_encodings": [self.encoding],
            "column_sizes": [self.sample_bytes],
        }

    @cached_property
    def header(self) -> bytes:
        """The JSON of the columns, as MDSWriter spells it."""
        return json.dumps(self.config, sort_keys=True).encode()

    @property
    def samples_per_shard(self) -> int:
        """Samples of a full shard: as many as stay within `size_limit`, at least one (as MDSWriter counts)."""
        # 8 bytes: the number of samples and the end offset. Each sample adds its own offset, 4 bytes.
        return max(1, (self.size_limit - 8 - len(self.header)) // (self.sample_bytes + 4))

    def raw_bytes(self, num_samples: int) -> int:
        """Bytes of a raw shard of `num_samples`."""
        return 4 + 4 * (num_samples + 1) + len(self.header) + num_samples * self.sample_bytes

    @cached_property
    def spool_bytes(self) -> int:
        """Bytes of the samples alone in a full shard."""
        return self.samples_per_shard * self.sample_bytes


def encode_shard(samples: bytes, shard_format: ShardFormat) -> bytes:
    """A whole raw shard from its samples' bytes, one after the other."""
    num_samples, rest = divmod(len(samples), shard_format.sample_bytes)
    assert num_samples > 0
    assert rest == 0
    offsets = _offsets(num_samples, shard_format)
    assert offsets[-1] < 2**32, "offsets are uint32"
    return np.uint32(num_samples).tobytes() + offsets.astype("<u4").tobytes() + shard_format.header + samples


def decode_shard(raw: bytes, shard_format: ShardFormat) -> Array:
    """(samples, sample_tokens) ids of a raw shard. Raises ValueError when it is not a shard of this format."""
    num_samples = int.from_bytes(raw[:4], "little")
    header = shard_format.header
    first = 4 + 4 * (num_samples + 1) + len(header)
    if len(raw) != first + num_samples * shard_format.sample_bytes or raw[first - len(header) : first] != header:
        raise ValueError(f"not a shard of {shard_format.encoding} samples")
    if not np.array_equal(np.frombuffer(raw, "<u4", num_samples + 1, offset=4), _offsets(num_samples, shard_format)):
        raise ValueError("its offsets are not those of samples of one size")
    return np.frombuffer(raw, shard_format.dtype, offset=first).reshape(num_samples, shard_format.sample_tokens)


def _offsets(num_samples: int, shard_format: ShardFormat) -> Array:
    """(num_samples + 1,) uint64: where each sample begins in the shard, and where the last one ends."""
    first = 4 + 4 * (num_samples + 1) + len(shard_format.header)
    return first + np.arange(num_samples + 1, dtype=np.uint64) * shard_format.sample_bytes


def compress_shard(raw: bytes) -> bytes:
    """`raw` as one zstd frame, the same bytes for the same input and library version."""
    return zstandard.ZstdCompressor(level=COMPRESSION_LEVEL).compress(raw)


def shard_entry(shard: int, raw: bytes, compressed: bytes, shard_format: ShardFormat) -> ShardEntry:
    """The index entry of shard number `shard`."""
    name = shard_name(shard)
    entry = {
        "samples": int(np.frombuffer(raw, "<u4", 1)[0]),
        "raw_data": _file_entry(name, raw),
        "zip_data": _file_entry(f"{name}.{COMPRESSION}", compressed),
        **shard_format.config,
    }
    return cast(ShardEntry, entry)


def shard_name(shard: int) -> str:
    """Basename of the raw shard."""
    return f"shard.{shard:05}.mds"


def encode_index(entries: Sequence[ShardEntry], first_documents: Sequence[int] = ()) -> bytes:
    """The bytes of index.json. first_documents: the number of the document that each shard begins in, if known."""
    index = {"version": MDS_VERSION, "shards": list(entries)}
    if first_documents:
        # beside the entries and not in them: Streaming refuses unknown keys of an entry
        index[FIRST_DOCUMENTS] = list(first_documents)
    return json.dumps(index, sort_keys=True).encode()


def digest(data: bytes) -> str:
    """xxh64 in hexadecimal, as the index holds it."""
    return xxhash.xxh64_hexdigest(data)


def _file_entry(basename: str, data: bytes) -> FileEntry:
    return {"basename": basename, "bytes": len(data), "hashes": {HASH: digest(data)}}
