"""The content of an MDS data set's index.json, checked, in arrays.

The index is untrusted input: nothing in it is executed, no path leaves its folder, every number is checked before it is
used. Format: MosaicML Streaming, MDS version 2.
"""

import gc
import io
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import xxhash

from ado_stream.errors import ConfigError, IndexInvalid
from ado_stream.value_types import Array, Ints, JsonObject

INDEX_NAME = "index.json"
FIRST_DOCUMENTS = "first_documents"  # in an index that `prepare` wrote; see document_origin.py
MDS_FORMAT, MDS_VERSION = "mds", 2
_MAX_SHARD_BYTES = 1 << 32  # MDS offsets are uint32
_MAX_NAME_BYTES = 200  # file systems take 255; ours have a suffix for the lock and the unfinished file
_MAX_ALGORITHMS = 8  # of hashes; each is a column
_COLUMN_KEYS = ("column_names", "column_encodings", "column_sizes")
_PART = r"(?!\.{1,2}(?:/|\Z))[^/\\\0\ud800-\udfff]+"  # JSON may hold half of a surrogate pair
_BASENAME = re.compile(f"{_PART}(/{_PART})*")  # in a folder where Streaming's merge_index wrote the index
_WORD = re.compile(r"[\w-]{1,128}", re.ASCII)  # the name of an algorithm, or a digest

_parsing = threading.Lock()  # held while the garbage collector is paused

Layout = tuple[tuple[str, str, int | None], ...]  # (name, encoding, size in bytes) of each column
File = tuple[str, int, dict[str, str]]  # basename, bytes, digests by algorithm


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
        """The bytes that `decode` takes."""
        buffer = io.BytesIO()
        for array_S in (self.samples_S, self.raw_S, self.stored_S):
            np.save(buffer, array_S, allow_pickle=False)
        buffer.write(json.dumps([self.compression, self.layout, self.fingerprint, self.digest]).encode())
        return buffer.getvalue()

    @staticmethod
    def decode(data: bytes) -> "IndexContent":
        """The content of what `encode` returned."""
        buffer = io.BytesIO(data)
        samples_S, raw_S, stored_S = (np.load(buffer, allow_pickle=False) for _ in range(3))
        compression, layout, fingerprint, digest = json.loads(buffer.read())
        return IndexContent(samples_S, raw_S, stored_S, compression, tuple(map(tuple, layout)), fingerprint, digest)

    @property
    def has_hashes(self) -> bool:
        """Whether it has a hash of every raw shard."""
        return bool(np.any([self.raw_S[name] != b"" for name in _algorithms(self.raw_S)], axis=0).all())

    def digests(self) -> list[list[bytes]]:
        """For each algorithm of hashes those of the raw shards, in order."""
        return [self.raw_S[name].tolist() for name in _algorithms(self.raw_S)]

    def files(self, shard: int) -> tuple[File, File]:
        """A shard's uncompressed file, and the one as stored."""
        return _file_at(self.raw_S, shard), _file_at(self.stored_S, shard)


def parse_index(text: bytes, name: str, where: str) -> IndexContent:
    """`text`, the bytes of domain `name`'s index.json at `where`, checked.

    Raises IndexInvalid with the place, ConfigError when it lists no shards.
    """
    # A million small objects, none of them garbage: the collector's passes over them would be half of the time.
    with _parsing:
        collects = gc.isenabled()
        gc.disable()
        try:
            return _parse(text, name, where)
        finally:
            if collects:
                gc.enable()


def _parse(text: bytes, name: str, where: str) -> IndexContent:
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
    try:
        return _content(shards, xxhash.xxh3_128_hexdigest(text))
    except IndexInvalid as error:
        for number, shard in enumerate(shards):
            try:
                _content([shard], "")
            except IndexInvalid as reason:
                raise IndexInvalid(f"{where}, shard {number}: {reason}") from None
        raise IndexInvalid(f"{where}: {error} (domain '{name}'). Write the data set again.") from None


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


def _content(shards: list[JsonObject], digest: str) -> IndexContent:
    """The checked content of a list of shards.

    Checks one property of all shards after another: there may be a hundred thousand. The IndexInvalid that it raises
    names no shard and quotes the first: of one shard, it says what is wrong.
    """
    if any(type(shard) is not dict for shard in shards):
        raise IndexInvalid("not an object.")
    if any(shard.get("format") != MDS_FORMAT for shard in shards):
        raise IndexInvalid(f"format {shards[0].get('format')!r}; expected {MDS_FORMAT!r}.")
    compressions = [shard.get("compression") for shard in shards if shard.get("zip_data") is not None]
    if not all(type(compression) is str and compression for compression in compressions):
        raise IndexInvalid("compressed file without the name of its compression.")
    samples_S = _counts(shards, "samples")
    raw_S, hashes = _files(shards, "raw_data")
    layouts, last = set(), None
    for shard in shards:
        columns = [shard.get(key) for key in _COLUMN_KEYS]
        if columns != last:  # checked once for all shards alike
            layouts.add(_layout(*columns))
            last = columns
    if len(layouts) > 1 or len(set(compressions)) > 1 or len(compressions) not in (0, len(shards)):
        raise IndexInvalid("shards with different columns or compressions")
    layout = layouts.pop()
    # A number of samples, n + 1 offsets and the rows: of a column that varies, at least its size
    least_S = 8 + samples_S * (4 + sum(size or 4 for _, _, size in layout))
    if (small_S := raw_S["bytes"] < least_S).any():
        number = int(np.argmax(small_S))
        raise IndexInvalid(f"raw_data: {raw_S['bytes'][number]} bytes cannot hold {samples_S[number]} samples.")
    rows = zip(samples_S.tolist(), raw_S["bytes"].tolist(), hashes, strict=True)
    shown = json.dumps([[count, size, sorted(own.items())] for count, size, own in rows])
    return IndexContent(
        samples_S=samples_S,
        raw_S=raw_S,
        stored_S=_files(shards, "zip_data")[0] if compressions else raw_S,
        compression=compressions[0] if compressions else None,
        layout=layout,
        fingerprint=xxhash.xxh3_128_hexdigest(shown.encode()),
        digest=digest,
    )


def _files(shards: list[JsonObject], key: str) -> tuple[Array, list[dict[str, str]]]:
    """(S,) records of basename, bytes and, for each algorithm that any of the files has, its digest or b""; {algorithm:
    digest} of each."""
    files: list[Any] = [shard.get(key) for shard in shards]
    if any(type(file) is not dict for file in files):
        raise IndexInvalid(f"{key}: not an object.")
    names = [file.get("basename") for file in files]
    if not (set(map(type, names)) == {str} and all(map(_BASENAME.fullmatch, names))):
        raise IndexInvalid(f"{key}: basename {names[0]!r}; expected a plain file name inside the folder.")
    name_S = np.array([name.encode() for name in names])
    if name_S.itemsize > _MAX_NAME_BYTES:
        raise IndexInvalid(f"{key}: basename of {name_S.itemsize} bytes; expected at most {_MAX_NAME_BYTES}.")
    hashes = [file.get("hashes") or {} for file in files]
    if any(type(own) is not dict for own in hashes):
        raise IndexInvalid(f"{key}: 'hashes' is not an object of names and digests.")
    algorithms = sorted(set().union(*hashes))
    digests = [digest for own in hashes for digest in own.values()]
    if not (set(map(type, digests)) <= {str} and all(map(_WORD.fullmatch, chain(algorithms, digests)))):
        raise IndexInvalid(f"{key}: 'hashes' is not an object of names and digests.")
    if len(algorithms) > _MAX_ALGORITHMS or {"basename", "bytes"} & set(algorithms):
        raise IndexInvalid(f"hashes of {algorithms[:_MAX_ALGORITHMS]}; xxh64 is enough")
    columns = {"basename": name_S, "bytes": _counts(files, "bytes")}
    columns |= {name: np.array([own.get(name, "") for own in hashes], "S") for name in algorithms}
    records_S = np.empty(len(files), [(name, column_S.dtype) for name, column_S in columns.items()])
    for name, column_S in columns.items():
        records_S[name] = column_S
    return records_S, hashes


def _counts(entries: list[JsonObject], key: str) -> Ints:
    values: list[Any] = [entry.get(key) for entry in entries]
    if not (set(map(type, values)) == {int} and min(values) >= 0 and max(values) <= _MAX_SHARD_BYTES):
        raise IndexInvalid(f"'{key}' is {values[0]!r}; expected a whole number from 0 to {_MAX_SHARD_BYTES}.")
    return np.array(values, np.int64)


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


def _file_at(records_S: Array, shard: int) -> File:
    name, size, *digests = records_S[shard].item()
    hashes = zip(_algorithms(records_S), digests, strict=True)
    return name.decode(), size, {key: digest.decode() for key, digest in hashes if digest}


def _algorithms(records_S: Array) -> tuple[str, ...]:
    """The algorithms of hashes: the columns after basename and bytes."""
    return (records_S.dtype.names or ())[2:]
