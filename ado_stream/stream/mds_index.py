"""Reads an MDS data set's index.json: shards, sizes, hashes, and the place of the tokens in a sample.

The index is untrusted input: nothing in it is executed, no path leaves its folder, every number is checked before it is
used. Format: MosaicML Streaming, MDS version 2. Of a sample's columns the tokens alone are read; others, pickles among
them, are never decoded.
"""

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from ado_stream.errors import ConfigError, IndexInvalid
from ado_stream.storage.object_spec import ObjectSpec
from ado_stream.stream.sample_index import SampleIndex
from ado_stream.stream.shard_view import ShardView, TokenColumn
from ado_stream.value_types import Array, Ints, JsonMapping, TokenDtype

INDEX_NAME = "index.json"
FIRST_DOCUMENTS = "first_documents"  # in an index that `prepare` wrote; see document_origin.py
MDS_FORMAT, MDS_VERSION = "mds", 2
TOKEN_COLUMN = "tokens"
INTEGER_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
_MAX_SHARD_BYTES = 1 << 32  # MDS offsets are uint32
_MAX_NAME_BYTES = 200  # file systems take 255; ours have a suffix for the lock and the unfinished file
_MAX_ALGORITHMS = 8  # of hashes; each is a column
_COLUMN_KEYS = ("column_names", "column_encodings", "column_sizes")
_PART = r"(?!\.{1,2}(?:/|\Z))[^/\\\0\ud800-\udfff]+"  # JSON may hold half of a surrogate pair
_BASENAME = re.compile(f"{_PART}(/{_PART})*")  # in a folder where Streaming's merge_index wrote the index
_HASHES = re.compile(r"[\w-]{1,128}( [\w-]{1,128})*", re.ASCII)  # names of algorithms, then digests

Layout = tuple[tuple[str, str, int | None], ...]  # (name, encoding, size in bytes) of each column
_File = tuple[bytes, int, dict[str, str]]  # basename, bytes, {algorithm: digest}


@dataclass(frozen=True)
class IndexContent:
    """The checked content of an index.json, independent of its place, in arrays: 100 to 200 bytes a shard."""

    samples_S: Ints  # (S,) int64
    raw_S: Array  # (S,) records of the uncompressed files: basename, bytes, a digest for each algorithm of hashes
    stored_S: Array  # (S,) the same of the files as stored; those of raw_S when nothing is compressed
    compression: str | None
    layout: Layout
    fingerprint: str  # of every shard's samples, raw size and raw hashes; the same for any compression
    digest: str  # of the index's bytes

    def encode(self) -> bytes:
        """The bytes that `decode` takes, which begin with a hash of them."""
        buffer = io.BytesIO()
        for array_S in (self.samples_S, self.raw_S, self.stored_S):
            np.save(buffer, array_S, allow_pickle=False)
        buffer.write(json.dumps([self.compression, self.layout, self.fingerprint, self.digest]).encode())
        body = buffer.getvalue()
        return xxhash.xxh3_128_digest(body) + body

    @staticmethod
    def decode(data: bytes) -> "IndexContent | None":
        """The content; None for bytes that `encode` has not made."""
        body = data[16:]
        if xxhash.xxh3_128_digest(body) != data[:16]:
            return None
        buffer = io.BytesIO(body)
        samples_S, raw_S, stored_S = (np.load(buffer, allow_pickle=False) for _ in range(3))
        compression, layout, fingerprint, digest = json.loads(buffer.read())
        return IndexContent(samples_S, raw_S, stored_S, compression, tuple(map(tuple, layout)), fingerprint, digest)


@dataclass(frozen=True)
class MdsIndex(SampleIndex):
    """An index under its domain's name, with the places of its shards."""

    name: str
    remote: str | None
    local: Path  # of the shards: the data set's own folder, or the one that caches them
    content: IndexContent
    column: TokenColumn
    first_id_S: Ints  # (S + 1,) int64: id of a shard's first sample
    versions: str = ""  # of data without hashes: changes when they are replaced at the remote
    seq_len: int | None = None  # where it was asked for

    @property
    def fingerprint(self) -> str:
        return self.content.fingerprint

    @property
    def dtype(self) -> TokenDtype:
        return self.column.dtype

    @property
    def row_tokens(self) -> int | None:
        if self.column.size_bytes is not None and not self.column.shaped:
            return self.column.size_bytes // self.column.dtype.itemsize
        return None if self.seq_len is None else self.seq_len + 1

    @property
    def samples_S(self) -> Ints:
        return self.content.samples_S

    @property
    def raw_bytes_S(self) -> Ints:
        return self.content.raw_S["bytes"]

    @property
    def has_hashes(self) -> bool:
        """Whether the index has a hash of every raw shard."""
        raw_S = self.content.raw_S
        return bool(np.any([raw_S[name] != b"" for name in _algorithms(raw_S)], axis=0).all())

    def rows(self, mapped: memoryview, shard: int) -> ShardView:
        return ShardView(mapped, self.column, int(self.samples_S[shard]), self.spec(shard).label)

    def spec(self, shard: int) -> ObjectSpec:
        raw_name, raw_bytes, raw_hashes = _file_at(self.content.raw_S, shard)
        stored_name, stored_bytes, stored_hashes = _file_at(self.content.stored_S, shard)
        # A cache has one folder for all: no basename has a backslash.
        raw, stored = (name.replace("/", "\\") if self.remote else name for name in (raw_name, stored_name))
        return ObjectSpec(
            label=f"domain '{self.name}' {raw_name}",
            remote=f"{self.remote.rstrip('/')}/{stored_name}" if self.remote else None,
            stored=self.local / stored,
            raw=self.local / raw,
            stored_bytes=stored_bytes,
            raw_bytes=raw_bytes,
            stored_hashes=stored_hashes,
            raw_hashes=raw_hashes,
            compression=self.content.compression,
        )


def make_index(
    content: IndexContent,
    name: str,
    remote: str | None,
    local: Path,
    column: str = TOKEN_COLUMN,
    dtype: str | None = None,
    seq_len: int | None = None,
) -> MdsIndex:
    """`content` as the index of domain `name`.

    seq_len: tokens a sample less one, if it has to be that; what differs is found here or where a shard is opened.
    column: name of the token column. dtype: of the tokens when the column is plain bytes (default int64, as LLM
    Foundry writes them). Raises IndexInvalid with the place, ConfigError when there is no such column.
    """
    tokens = _token_column(content.layout, column, dtype, name, f"{remote or local}/{INDEX_NAME}")
    first_id_S = np.concatenate([[0], np.cumsum(content.samples_S)])
    index = MdsIndex(name, remote, local, content, tokens, first_id_S, seq_len=seq_len)
    if seq_len is not None and index.row_tokens != seq_len + 1:
        raise ConfigError(
            f"domain '{name}': {remote or local} has samples of {index.row_tokens} tokens; seq_len {seq_len} needs "
            f"{seq_len + 1}."
        )
    return index


def parse_index(text: bytes, name: str, where: str) -> IndexContent:
    """`text`, the bytes of domain `name`'s index.json at `where`, checked.

    Raises IndexInvalid with the place, ConfigError when it lists no shards.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        place = f" at byte {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise IndexInvalid(f"{where}: not JSON{place} (domain '{name}'). Write the data set again.") from None
    if not isinstance(content, dict) or content.get("version") != MDS_VERSION:
        version = content.get("version") if isinstance(content, dict) else None
        raise IndexInvalid(f"{where}: index version {version!r}; expected version {MDS_VERSION} (domain '{name}').")
    shards = content.get("shards")
    if not isinstance(shards, list):
        raise IndexInvalid(f"{where}: 'shards' is not a list of objects (domain '{name}').")
    if not shards:
        raise ConfigError(f"domain '{name}' is empty: {where} lists no shards. Remove it, or prepare it again.")
    samples: list[int] = []
    raw: list[_File] = []
    stored: list[_File] = []
    formats: set[tuple[str | None, Layout]] = set()
    last: list[object] = []
    for number, shard in enumerate(shards):
        try:
            compression = _compression(shard)
            samples.append(_count(shard, "samples"))
            raw.append(_file(shard, "raw_data"))
            stored.append(_file(shard, "zip_data") if compression else raw[-1])
            columns = [shard.get(key) for key in _COLUMN_KEYS]
            if [compression, *columns] != last:  # checked once for all shards alike
                formats.add((compression, _layout(*columns)))
                last = [compression, *columns]
        except IndexInvalid as error:
            raise IndexInvalid(f"{where}, shard {number}: {error}") from None
    if len(formats) != 1:
        raise IndexInvalid(
            f"{where}: shards with different columns or compressions (domain '{name}'). Write the data set again."
        )
    compression, layout = formats.pop()
    rows = [
        json.dumps([count, size, sorted(hashes.items())]) for count, (_, size, hashes) in zip(samples, raw, strict=True)
    ]
    raw_S = _records(raw, where)
    return IndexContent(
        samples_S=np.array(samples, np.int64),
        raw_S=raw_S,
        stored_S=_records(stored, where) if compression else raw_S,
        compression=compression,
        layout=layout,
        fingerprint=xxhash.xxh3_128_hexdigest(f"[{', '.join(rows)}]".encode()),
        digest=xxhash.xxh3_128_hexdigest(text),
    )


def merge_indexes(texts: Mapping[str, bytes], name: str, where: str) -> bytes:
    """The index of all shards of the data sets in the folders `texts` {folder: its index.json} below `where`.

    Raises as `parse_index`.
    """
    shards = []
    for folder, text in texts.items():
        parse_index(text, name, f"{where}/{folder}/{INDEX_NAME}")
        for shard in json.loads(text)["shards"]:
            for key in ("raw_data", "zip_data"):
                if shard.get(key) is not None:
                    shard[key]["basename"] = f"{folder}/{shard[key]['basename']}"
            shards.append(shard)
    return json.dumps({"version": MDS_VERSION, "shards": shards}).encode()


def _records(files: list[_File], where: str) -> Ints:
    """(S,) records of basename, bytes and, for each algorithm that any of the files has, its digest or b""."""
    algorithms = sorted(set().union(*(hashes for *_, hashes in files)))
    if len(algorithms) > _MAX_ALGORITHMS or {"basename", "bytes"} & set(algorithms):
        raise IndexInvalid(f"{where}: hashes of {algorithms[:_MAX_ALGORITHMS]}. Write the data set again with xxh64.")
    names, sizes, hashes = zip(*files, strict=True)
    digests = [np.array([own.get(algorithm, "") for own in hashes], "S") for algorithm in algorithms]
    columns = {
        "basename": np.array(names),
        "bytes": np.array(sizes, np.int64),
        **dict(zip(algorithms, digests, strict=True)),
    }
    records_S = np.empty(len(files), [(key, column_S.dtype) for key, column_S in columns.items()])
    for key, column_S in columns.items():
        records_S[key] = column_S
    return records_S


def _file_at(records_S: Array, shard: int) -> tuple[str, int, dict[str, str]]:
    """Basename, bytes and hashes of a shard's file."""
    name, size, *digests = records_S[shard].item()
    hashes = zip(_algorithms(records_S), digests, strict=True)
    return name.decode(), size, {key: digest.decode() for key, digest in hashes if digest}


def _algorithms(records_S: Array) -> tuple[str, ...]:
    """The algorithms of hashes: the columns after basename and bytes."""
    return (records_S.dtype.names or ())[2:]


def _count(entry: JsonMapping, key: str) -> int:
    value = entry.get(key)
    if type(value) is not int or not 0 <= value <= _MAX_SHARD_BYTES:
        raise IndexInvalid(f"'{key}' is {value!r}; expected a whole number from 0 to {_MAX_SHARD_BYTES}.")
    return value


def _compression(shard: object) -> str | None:
    if not isinstance(shard, dict):
        raise IndexInvalid("not an object.")
    if shard.get("format") != MDS_FORMAT:
        raise IndexInvalid(f"format {shard.get('format')!r}; expected {MDS_FORMAT!r}.")
    if shard.get("zip_data") is None:
        return None
    compression = shard.get("compression")
    if not (isinstance(compression, str) and compression):
        raise IndexInvalid("compressed file without the name of its compression.")
    return compression


def _file(shard: JsonMapping, key: str) -> _File:
    entry = shard.get(key)
    if not isinstance(entry, dict):
        raise IndexInvalid(f"{key}: not an object.")
    name, hashes = entry.get("basename"), entry.get("hashes") or {}
    if not isinstance(name, str) or not _BASENAME.fullmatch(name):
        raise IndexInvalid(f"{key}: basename {name!r}; expected a plain file name inside the folder.")
    encoded = name.encode()
    if len(encoded) > _MAX_NAME_BYTES:
        raise IndexInvalid(f"{key}: basename of {len(encoded)} bytes; expected at most {_MAX_NAME_BYTES}.")
    try:  # one match for all of a file: a hundred thousand files have a second
        good = not hashes or _HASHES.fullmatch(" ".join([*hashes, *hashes.values()]))
    except (TypeError, AttributeError):
        good = None
    if not good:
        raise IndexInvalid(f"{key}: 'hashes' is not an object of names and digests.")
    return encoded, _count(entry, "bytes"), hashes


def _layout(names: object, encodings: object, sizes: object) -> Layout:
    lists = [part if isinstance(part, list) else [] for part in (names, encodings, sizes)]
    if not lists[0] or len(set(map(len, lists))) != 1:
        raise IndexInvalid("column_names, column_encodings and column_sizes do not match.")
    for name, encoding, size in zip(*lists, strict=True):
        fits = size is None or (type(size) is int and 0 <= size < _MAX_SHARD_BYTES)
        if not (_is_text(name) and _is_text(encoding) and fits):
            raise IndexInvalid(f"column {name!r} has encoding {encoding!r} and size {size!r}.")
    return tuple((name, encoding, size or None) for name, encoding, size in zip(*lists, strict=True))


def _is_text(value: object) -> bool:
    """Whether this is text that can be printed: JSON may hold half of a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _token_column(layout: Layout, column: str, dtype: str | None, name: str, where: str) -> TokenColumn:
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
    if written not in INTEGER_DTYPES:
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
