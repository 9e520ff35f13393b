"""What an unfinished run keeps on the disk of how far it is: the journal, and the list of published shards.

The journal holds the number of pieces taken, how full every spool is, and how long the list is; the list, what the
index will say of each shard. Both are read again by a later run; another program may have written to them meanwhile.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from ado_stream.corpus.manifest import SPLITS
from ado_stream.durable import write_durably
from ado_stream.errors import DataError
from ado_stream.json_files import decode_json
from ado_stream.prepare.spool import SpoolState, cut
from ado_stream.regular_files import read_regular
from ado_stream.value_types import JsonObject

JOURNAL_NAME = "journal.json"
PUBLISHED_NAME = "published.jsonl"
_HASHES = 1 << 64


class Journal(TypedDict):
    """How far a run is."""

    num_pieces: int
    refused: dict[str, int]
    refused_bytes: dict[str, int]
    repeated: list[Any]  # hashes
    spools: list[tuple[str, str, SpoolState]]  # domain, split, state
    published_bytes: int


class _Hashes(TypedDict):
    xxh64: str


class _File(TypedDict):
    basename: str
    bytes: int
    hashes: _Hashes


class _Entry(TypedDict):
    samples: int
    raw_data: _File
    zip_data: _File
    end_tokens: NotRequired[int]
    packing: NotRequired[dict[str, int]]


Published = tuple[str, str, int, JsonObject]  # domain, split, shard, its entry of the index: a line of the list


def read_journal(work: Path) -> Journal:
    """The journal of a working folder; of a run's beginning where it has none. Raises DataError for a damaged one."""
    path = work / JOURNAL_NAME
    if not path.exists():
        return Journal(num_pieces=0, refused={}, refused_bytes={}, repeated=[], spools=[], published_bytes=0)
    state = decode_json(read_regular(path), Journal, JOURNAL_NAME, DataError)
    check_hashes(state["repeated"], f"{JOURNAL_NAME}: repeated")
    check_splits((split for _, split, _ in state["spools"]), JOURNAL_NAME)
    spools = cast(list[tuple[str, str, JsonObject]], state["spools"])
    return {**state, "spools": [(domain, split, SpoolState(**fields)) for domain, split, fields in spools]}


def check_hashes(values: Iterable[object], where: str) -> None:
    """Raises DataError where one of `values` is not 64 bits; check_type's counts have 63."""
    for value in values:
        if type(value) is not int or not 0 <= value < _HASHES:
            raise DataError(f"{where} {value!r}: expected a hash.")


def check_splits(splits: Iterable[str], where: str) -> None:
    """Raises DataError for any but train and val: they are folders."""
    for split in splits:
        if split not in SPLITS:
            raise DataError(f"{where}: split {split!r}: expected {' or '.join(SPLITS)}.")


def write_journal(work: Path, state: Journal) -> None:
    """To be called when all that `state` counts is on the disk."""
    write_durably(work / JOURNAL_NAME, json.dumps(state, default=vars).encode())


def read_published(work: Path, num_bytes: int) -> Iterator[Published]:
    """The first `num_bytes` of the list; cuts off what follows. Raises DataError, and ResumeError where bytes miss."""
    path = work / PUBLISHED_NAME
    cut(path, num_bytes)
    return decode_published(read_regular(path) if num_bytes else b"")


def decode_published(data: bytes) -> Iterator[Published]:
    """The lines of a list. Raises DataError."""
    for line in data.splitlines():
        published = decode_json(line, tuple[str, str, int, _Entry], PUBLISHED_NAME, DataError)
        check_splits([published[1]], PUBLISHED_NAME)
        yield cast(Published, published)


def append_published(work: Path, lines: Iterable[Published]) -> int:
    """Adds to the list; returns the bytes that it has then."""
    with open(work / PUBLISHED_NAME, "ab") as file:
        file.writelines(encode_published(lines))
        return file.tell()


def encode_published(lines: Iterable[Published]) -> Iterator[bytes]:
    """The lines that `decode_published` reads."""
    return (json.dumps(line).encode() + b"\n" for line in lines)
