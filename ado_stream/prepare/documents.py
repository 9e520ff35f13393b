"""A file to pieces, a piece to documents: the two halves of reading, on either side of a process boundary.

The coordinator cuts (`cut_pieces`), a worker parses (`read_documents`). A piece is a few MB of input and needs nothing
but itself; where pieces are cut depends on the files alone, so that the result does not depend on the workers.
A piece of lines holds their bytes, so that a compressed file is decompressed once; text files and tables are passed by
name and read by the worker.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, TypeVar

from ado_stream.errors import DataError
from ado_stream.prepare.columnar import RowRange, cut_rows, read_rows
from ado_stream.prepare.input_files import InputFile
from ado_stream.prepare.line_blocks import MAX_LINE_BYTES, LineBlock, line_blocks

PIECE_BYTES = 4 << 20
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Piece:
    """A part of the input: lines of one file, rows of one table, or some whole text files."""

    files: tuple[InputFile, ...]
    source_bytes: int
    part: LineBlock | RowRange | None = None  # None: all of every file


@dataclass(frozen=True)
class RecordKeys:
    """Dotted keys of a record's text and domain; without a domain key, the file's path gives the domain."""

    text: str = "text"
    domain: str | None = None


@dataclass(frozen=True)
class Document:
    """One document: its UTF-8 text as str and bytes, its domain, the split that its file is for."""

    text: str
    utf8: bytes
    domain: str
    split: str


@dataclass
class RecordErrors:
    """What to do with records that cannot be read: raise, or skip and count by reason."""

    skip: bool
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, where: str, reason: str, detail: str, advice: str) -> None:
        """Counts the record under `reason`, or raises DataError with all of it."""
        if not self.skip:
            raise DataError(f"{where}: {reason}{detail}.\n  {advice} Or pass --on-error skip to skip such records.")
        self.counts[reason] += 1

    def until_damaged(self, items: Iterator[_Item]) -> Iterator[_Item]:
        """`items` of a file up to where it is found damaged, which is raised or counted."""
        try:
            yield from items
        except DataError:
            if not self.skip:
                raise
            self.counts["file damaged, its rest left out"] += 1


def cut_pieces(files: Sequence[InputFile], errors: RecordErrors) -> Iterator[Piece]:
    """All of `files` in order, in pieces of about PIECE_BYTES."""
    for is_text, group in groupby(files, lambda file: file.kind == "text"):
        if is_text:
            yield from _group_texts(group)
            continue
        for file in group:
            parts: Iterator[LineBlock | RowRange] = (
                line_blocks(file.path, PIECE_BYTES) if file.kind == "lines" else cut_rows(file.path, file.kind)
            )
            for part in errors.until_damaged(parts):
                yield Piece((file,), part.source_bytes, part)


def read_documents(piece: Piece, keys: RecordKeys, errors: RecordErrors) -> Iterator[Document]:
    """The documents of a piece, in order; unreadable records go to `errors`."""
    file = piece.files[0]
    if isinstance(piece.part, LineBlock):
        records = _parse_lines(file, piece.part, errors)
    elif isinstance(piece.part, RowRange):
        records = errors.until_damaged(read_rows(file.path, piece.part, keys.text, keys.domain))
    else:
        for text_file in piece.files:
            yield from _read_text(text_file, errors)
        return
    for where, record in records:
        document = _document(where, record, file, keys, errors)
        if document is not None:
            yield document


def _group_texts(files: Iterable[InputFile]) -> Iterator[Piece]:
    texts: list[InputFile] = []
    size_bytes = 0
    for file in files:
        texts.append(file)
        size_bytes += file.size_bytes
        if size_bytes >= PIECE_BYTES:
            yield Piece(tuple(texts), size_bytes)
            texts, size_bytes = [], 0
    if texts:
        yield Piece(tuple(texts), size_bytes)


def _parse_lines(file: InputFile, block: LineBlock, errors: RecordErrors) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(block.data.split(b"\n"), start=block.first_line):
        if not line.strip():
            continue
        where = f"{file.path}:{number}"
        try:
            yield where, json.loads(line.decode())
        except UnicodeDecodeError as error:
            errors.add(where, "invalid UTF-8", f" at byte {error.start} of the line", "Convert the file to UTF-8.")
        except (ValueError, RecursionError) as error:
            errors.add(where, "unreadable line", f" ({error})", "Expected one JSON object per line.")


def _read_text(file: InputFile, errors: RecordErrors) -> Iterator[Document]:
    if file.size_bytes > MAX_LINE_BYTES:
        detail = f" ({file.size_bytes:,} bytes; at most {MAX_LINE_BYTES:,})"
        errors.add(file.path, "document too long", detail, "Split the file.")
        return
    with open(file.path, "rb") as stream:
        utf8 = stream.read()
    try:
        text = utf8.decode()
    except UnicodeDecodeError as error:
        errors.add(file.path, "invalid UTF-8", f" at byte {error.start}", "Convert the file to UTF-8.")
        return
    if not text:
        errors.add(file.path, "no text", " (the file is empty)", "Remove the file.")
        return
    yield Document(text, utf8, file.domain, file.split)


def _document(where: str, record: Any, file: InputFile, keys: RecordKeys, errors: RecordErrors) -> Document | None:
    text = _lookup(record, keys.text)
    if not isinstance(text, str) or not text:
        found = f"; keys: {', '.join(map(str, record))}" if isinstance(record, dict) else ""
        errors.add(where, "no text", f" under key {keys.text!r}{found}", "Name the key with --text-key.")
        return None
    domain = file.domain if keys.domain is None else _lookup(record, keys.domain)
    if not isinstance(domain, str) or not domain:
        found = f", got {domain!r}" if domain is not None else ""
        errors.add(where, "no domain", f" under key {keys.domain!r}{found}", "Correct --domain-key.")
        return None
    try:
        domain.encode()
        return Document(text, text.encode(), domain, file.split)
    except UnicodeEncodeError as error:  # JSON may escape half of a surrogate pair, which UTF-8 cannot hold
        errors.add(where, "invalid Unicode", f" (half a surrogate pair at character {error.start})", "Repair the text.")
        return None


def _lookup(record: Any, key: str) -> Any:
    """The value at a dotted key, or None; a key that contains the dots itself has precedence."""
    if isinstance(record, dict) and key in record:
        return record[key]
    for part in key.split("."):
        if not isinstance(record, dict):
            return None
        record = record.get(part)
    return record
