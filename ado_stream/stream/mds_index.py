"""Reads an MDS data set's index.json: shards, sizes, hashes, and where the tokens lie in a sample.

The index is untrusted input: nothing in it is executed, no path leaves its folder, every number is checked before it is
used. Format: MosaicML Streaming, MDS version 2. Of a sample's columns the tokens alone are read; others, pickles among
them, are never decoded.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, TypeGuard

import numpy as np
import xxhash

from ado_stream.errors import ConfigError, IndexInvalid
from ado_stream.storage.object_spec import ObjectSpec

INDEX_NAME = "index.json"
MDS_FORMAT, MDS_VERSION = "mds", 2
TOKEN_COLUMN = "tokens"
_INTEGER_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
_MAX_SHARD_BYTES = 1 << 32  # MDS offsets are uint32
_MAX_NAME_BYTES = 200  # file systems take 255; ours have a suffix for the lock and the unfinished file


class ShardFile(TypedDict):
    """A file of a shard, checked."""

    basename: str
    bytes: int
    hashes: dict[str, str]


@dataclass(frozen=True)
class TokenColumn:
    """Where the tokens of a sample are and how they are written.

    dtype: of one token. columns_before: the fixed size in bytes of each column before it, None when variable.
    num_variable: variable-size columns of the whole sample; each adds a uint32 size at the sample's start.
    size_bytes: of the column, None when variable. shaped: every sample starts with its shape.
    """

    name: str
    dtype: np.dtype
    columns_before: tuple[int | None, ...]
    num_variable: int
    size_bytes: int | None
    shaped: bool


@dataclass(frozen=True)
class MdsIndex:
    """The checked content of one index.json, held in a few arrays and lists whatever the number of shards."""

    name: str
    remote: str | None
    local: Path  # of the shards: the data set's own folder, or the one that caches them
    column: TokenColumn
    samples_S: np.ndarray  # (S,) int64
    first_id_S: np.ndarray  # (S + 1,) int64: id of a shard's first sample
    raw_bytes_S: np.ndarray  # (S,) int64
    compression: str | None
    files: list[tuple[ShardFile, ShardFile | None]]  # (raw, compressed)
    fingerprint: str
    versions: str = ""  # of data without hashes: changes when they are replaced at the remote

    @property
    def has_hashes(self) -> bool:
        """Whether the index says what every raw shard contains."""
        return all(raw["hashes"] for raw, _ in self.files)

    @property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return int(self.first_id_S[-1])

    def shards_at(self, id_N: np.ndarray) -> np.ndarray:
        """(N,) int64: the shard that holds each sample id."""
        return np.searchsorted(self.first_id_S, id_N, side="right") - 1

    def spec(self, shard: int) -> ObjectSpec:
        """What to fetch for shard number `shard`."""
        raw, stored = self.files[shard]
        kept = stored or raw
        return ObjectSpec(
            label=f"domain '{self.name}' {raw['basename']}",
            remote=f"{self.remote.rstrip('/')}/{kept['basename']}" if self.remote else None,
            stored=self.local / kept["basename"],
            raw=self.local / raw["basename"],
            stored_bytes=kept["bytes"],
            raw_bytes=raw["bytes"],
            stored_hashes=kept["hashes"],
            raw_hashes=raw["hashes"],
            compression=self.compression if stored else None,
        )


def parse_index(
    text: bytes, name: str, remote: str | None, local: Path, column: str = TOKEN_COLUMN, dtype: str | None = None
) -> MdsIndex:
    """`text`, the bytes of an index.json, as an MdsIndex.

    column: name of the token column. dtype: of the tokens when the column is plain bytes (default int64, as LLM
    Foundry writes them). Raises IndexInvalid with the place, ConfigError when there is no such column.
    """
    where = f"{remote or local}/{INDEX_NAME}"
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        place = f" at byte {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise IndexInvalid(f"{where}: not JSON{place} (domain '{name}'). Write the data set again.") from None
    if not isinstance(content, dict) or content.get("version") != MDS_VERSION:
        version = content.get("version") if isinstance(content, dict) else None
        raise IndexInvalid(f"{where}: index version {version!r}; expected version {MDS_VERSION} (domain '{name}').")
    shards = content.get("shards")
    if not isinstance(shards, list) or not all(isinstance(shard, dict) for shard in shards):
        raise IndexInvalid(f"{where}: 'shards' is not a list of objects (domain '{name}').")
    if not shards:
        raise ConfigError(f"domain '{name}' is empty: {where} lists no shards. Remove it, or prepare it again.")
    files = [_files(shard, f"{where}, shard {number}") for number, shard in enumerate(shards)]
    layouts = {_layout(shard, where) for shard in shards}
    if len(layouts) != 1:
        raise IndexInvalid(f"{where}: shards with different columns (domain '{name}'). Write the data set again.")
    samples_S = np.array([_count(shard, "samples", f"{where}, shard {n}") for n, shard in enumerate(shards)], np.int64)
    first_id_S = np.concatenate([[0], np.cumsum(samples_S)])
    compressions = {
        shard.get("compression") if stored else None for shard, (_, stored) in zip(shards, files, strict=True)
    }
    if len(compressions) != 1:
        raise IndexInvalid(f"{where}: shards with different compressions (domain '{name}'). Write the data set again.")
    return MdsIndex(
        name=name,
        remote=remote,
        local=local,
        column=_token_column(layouts.pop(), column, dtype, name, where),
        samples_S=samples_S,
        first_id_S=first_id_S,
        raw_bytes_S=np.array([raw["bytes"] for raw, _ in files], np.int64),
        compression=compressions.pop(),
        files=files,
        fingerprint=_fingerprint(samples_S, files),
    )


def _fingerprint(samples_S: np.ndarray, files: list[tuple[ShardFile, ShardFile | None]]) -> str:
    """One hash over every shard's samples, raw size and raw hashes; the same for any compression."""
    rows = [
        [int(samples), raw["bytes"], sorted(raw["hashes"].items())]
        for samples, (raw, _) in zip(samples_S, files, strict=True)
    ]
    return xxhash.xxh3_128_hexdigest(json.dumps(rows).encode())


def _count(entry: dict[str, Any], key: str, where: str) -> int:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_SHARD_BYTES:
        raise IndexInvalid(f"{where}: '{key}' is {value!r}; expected a whole number from 0 to {_MAX_SHARD_BYTES}.")
    return value


def _files(shard: dict[str, Any], where: str) -> tuple[ShardFile, ShardFile | None]:
    if shard.get("format") != MDS_FORMAT:
        raise IndexInvalid(f"{where}: format {shard.get('format')!r}; expected {MDS_FORMAT!r}.")
    raw, stored = shard.get("raw_data"), shard.get("zip_data")
    compression = shard.get("compression")
    if stored is not None and not (isinstance(compression, str) and compression):
        raise IndexInvalid(f"{where}: compressed file without the name of its compression.")
    return _file(raw, f"{where}, raw_data"), _file(stored, f"{where}, zip_data") if stored is not None else None


def _file(entry: object, where: str) -> ShardFile:
    if not isinstance(entry, dict):
        raise IndexInvalid(f"{where}: not an object.")
    name, hashes = entry.get("basename"), entry.get("hashes") or {}
    if not _is_text(name) or name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise IndexInvalid(f"{where}: basename {name!r}; expected a plain file name inside the folder.")
    if len(name.encode()) > _MAX_NAME_BYTES:
        raise IndexInvalid(f"{where}: basename of {len(name.encode())} bytes; expected at most {_MAX_NAME_BYTES}.")
    if not isinstance(hashes, dict) or not all(_is_text(part) for pair in hashes.items() for part in pair):
        raise IndexInvalid(f"{where}: 'hashes' is not an object of strings.")
    return {"basename": name, "bytes": _count(entry, "bytes", where), "hashes": hashes}


def _is_text(value: object) -> TypeGuard[str]:
    """Whether this is text that can be a file's name or be printed: JSON may hold half a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _layout(shard: dict[str, Any], where: str) -> tuple[tuple[str, str, int | None], ...]:
    parts = [shard.get(f"column_{part}") for part in ("names", "encodings", "sizes")]
    names, encodings, sizes = (part if isinstance(part, list) else [] for part in parts)
    if not names or not len(names) == len(encodings) == len(sizes):
        raise IndexInvalid(f"{where}: column_names, column_encodings and column_sizes do not match.")
    for name, encoding, size in zip(names, encodings, sizes, strict=True):
        fits = size is None or (isinstance(size, int) and not isinstance(size, bool) and 0 <= size < _MAX_SHARD_BYTES)
        if not (_is_text(name) and _is_text(encoding) and fits):
            raise IndexInvalid(f"{where}: column {name!r} has encoding {encoding!r} and size {size!r}.")
    return tuple(zip(names, encodings, (size or None for size in sizes), strict=True))


def _token_column(
    layout: tuple[tuple[str, str, int | None], ...], column: str, dtype: str | None, name: str, where: str
) -> TokenColumn:
    names = [entry[0] for entry in layout]
    if column not in names:
        raise ConfigError(
            f"domain '{name}': no column '{column}' in {where}; columns found: {', '.join(names)}.\n"
            f"  Name the column that holds the tokens with token_column=."
        )
    number = names.index(column)
    _, encoding, size = layout[number]
    kind, _, rest = encoding.partition(":")
    written, _, shape = rest.partition(":")
    if kind == "bytes":
        written = dtype or "int64"
    elif kind != "ndarray" or not written:
        raise ConfigError(
            f"domain '{name}': column '{column}' is encoded as '{encoding}'; expected 'ndarray:<integer>' or 'bytes'."
        )
    if written not in _INTEGER_DTYPES:
        raise ConfigError(f"domain '{name}': column '{column}' holds '{written}'; expected an integer type.")
    if size is not None and size % np.dtype(written).itemsize:
        raise IndexInvalid(f"{where}: column '{column}' of {size} bytes does not hold whole {written} tokens.")
    return TokenColumn(
        name=column,
        dtype=np.dtype(written).newbyteorder("<"),
        columns_before=tuple(entry[2] for entry in layout[:number]),
        num_variable=sum(entry[2] is None for entry in layout),
        size_bytes=size,
        shaped=kind == "ndarray" and not shape,
    )
