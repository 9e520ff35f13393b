"""A file to pieces, a piece to documents: the two halves of reading, either side of a process border.

The coordinator cuts (`cut_pieces`), a worker parses (`read_documents`). A piece is a few MB of input and needs nothing
but itself; where pieces are cut depends on the files alone, so that the result does not depend on the workers.
Lines carry their bytes along (a compressed file is unpacked once); text files and tables are named and read by the
worker.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from ado_stream.errors import DataError
from ado_stream.prepare.lines import MAX_LINE_BYTES, Block, line_blocks
from ado_stream.prepare.source import SourceFile
from ado_stream.prepare.tables import Rows, cut_rows, read_rows

PIECE_BYTES = 4 << 20


@dataclass(frozen=True)
class Piece:
    """A part of the input: lines of one file, rows of one table, or some whole text files."""

    files: tuple[SourceFile, ...]
    source_bytes: int
    part: Block | Rows | None = None  # None: all of every file


@dataclass(frozen=True)
class Fields:
    """Where a record holds its text and its domain: dotted keys; no domain key means the file's place."""

    text: str = "text"
    domain: str | None = None


@dataclass(frozen=True)
class Document:
    """One document: its UTF-8 text as str and bytes, its domain, the split its file is meant for."""

    text: str
    utf8: bytes
    domain: str
    split: str


@dataclass
class Refusals:
    """What happens to a record that cannot be read: raise, or count by reason and go on."""

    skip: bool
    counts: Counter[str] = field(default_factory=Counter)

    def refuse(self, where: str, reason: str, detail: str, advice: str) -> None:
        """Counts the record under `reason`, or raises DataError with all of it."""
        if not self.skip:
            raise DataError(
                f"{where}: {reason}{detail}.\n  {advice} Or pass --on-error skip to leave such records out."
            )
        self.counts[reason] += 1


def cut_pieces(files: Sequence[SourceFile], refusals: Refusals) -> Iterator[Piece]:
    """All of `files` in order, in pieces of about PIECE_BYTES."""
    for is_text, group in groupby(files, lambda file: file.kind == "text"):
        if is_text:
            yield from _cut_texts(group)
            continue
        for file in group:
            parts: Iterator[Any] = (
                line_blocks(file.path, PIECE_BYTES) if file.kind == "lines" else cut_rows(file.path, file.kind)
            )
            for part in _up_to_damage(parts, file.path, refusals):
                yield Piece((file,), part.source_bytes, part)


def read_documents(piece: Piece, fields: Fields, refusals: Refusals) -> Iterator[Document]:
    """The documents of a piece, in order; unreadable records go to `refusals`."""
    file = piece.files[0]
    if isinstance(piece.part, Block):
        records = _parse_lines(file, piece.part, refusals)
    elif isinstance(piece.part, Rows):
        rows = read_rows(file.path, piece.part, fields.text, fields.domain)
        records = _up_to_damage(rows, file.path, refusals)
    else:
        for text_file in piece.files:
            yield from _read_text(text_file, refusals)
        return
    for where, record in records:
        document = _document(where, record, file, fields, refusals.refuse)
        if document is not None:
            yield document


def _cut_texts(files: Iterable[SourceFile]) -> Iterator[Piece]:
    texts: list[SourceFile] = []
    size_bytes = 0
    for file in files:
        texts.append(file)
        size_bytes += file.size_bytes
        if size_bytes >= PIECE_BYTES:
            yield Piece(tuple(texts), size_bytes)
            texts, size_bytes = [], 0
    if texts:
        yield Piece(tuple(texts), size_bytes)


def _up_to_damage(items: Iterator[Any], path: str, refusals: Refusals) -> Iterator[Any]:
    """`items` of a file, up to where it is found damaged: raised, or counted."""
    try:
        yield from items
    except DataError:
        if not refusals.skip:
            raise
        refusals.counts["file damaged, its rest left out"] += 1


def _parse_lines(file: SourceFile, block: Block, refusals: Refusals) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(block.data.split(b"\n"), start=block.first_line):
        if not line.strip():
            continue
        where = f"{file.path}:{number}"
        try:
            yield where, json.loads(line.decode())
        except UnicodeDecodeError as error:
            refusals.refuse(where, "invalid UTF-8", f" at byte {error.start} of the line", "Convert the file to UTF-8.")
        except (ValueError, RecursionError) as error:
            refusals.refuse(where, "unreadable line", f" ({error})", "Expected one JSON object a line.")


def _read_text(file: SourceFile, refusals: Refusals) -> Iterator[Document]:
    if file.size_bytes > MAX_LINE_BYTES:
        refusals.refuse(
            file.path,
            "document too long",
            f" ({file.size_bytes:,} bytes; at most {MAX_LINE_BYTES:,})",
            "Split the file.",
        )
        return
    with open(file.path, "rb") as stream:
        utf8 = stream.read()
    try:
        text = utf8.decode()
    except UnicodeDecodeError as error:
        refusals.refuse(file.path, "invalid UTF-8", f" at byte {error.start}", "Convert the file to UTF-8.")
        return
    if not text:
        refusals.refuse(file.path, "no text", " (the file is empty)", "Remove the file.")
        return
    yield Document(text, utf8, file.domain, file.split)


def _document(
    where: str, record: Any, file: SourceFile, fields: Fields, refuse: Callable[[str, str, str, str], None]
) -> Document | None:
    text = _lookup(record, fields.text)
    if not isinstance(text, str) or not text:
        found = f"; keys: {', '.join(map(str, record))}" if isinstance(record, dict) else ""
        refuse(where, "no text", f" under key {fields.text!r}{found}", "Name the key with --text-key.")
        return None
    domain = file.domain if fields.domain is None else _lookup(record, fields.domain)
    if not isinstance(domain, str) or not domain:
        found = f", got {domain!r}" if domain is not None else ""
        refuse(where, "no domain", f" under key {fields.domain!r}{found}", "Correct --domain-key.")
        return None
    try:
        domain.encode()
        return Document(text, text.encode(), domain, file.split)
    except UnicodeEncodeError as error:
        refuse(where, "invalid Unicode", f" (half a surrogate pair at character {error.start})", "Repair the text.")
        return None


def _lookup(record: Any, key: str) -> Any:
    """The value at a dotted key, or None; a key that holds the dots itself is found first."""
    if isinstance(record, dict) and key in record:
        return record[key]
    for part in key.split("."):
        if not isinstance(record, dict):
            return None
        record = record.get(part)
    return record
