"""A file to pieces, a piece to documents: the two halves of reading, on either side of a process boundary.

The coordinator cuts (`cut_pieces`), a worker parses (`read_documents`). A piece is a few MB of self-contained
input; where pieces are cut depends on the files alone, so that the result does not depend on the workers.
A piece of lines holds their bytes, so that a compressed file is decompressed once, and one of a data set that is
streamed its records; text files and tables are passed by
name and read by the worker.
"""

import codecs
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice

import xxhash

from ado_stream.json_files import unique_names
from ado_stream.prepare.columnar import NotUtf8, RowRange, cut_rows, read_rows
from ado_stream.prepare.dotted_keys import MISSING, lookup, names_in
from ado_stream.prepare.hub_datasets import RecordBlock, record_blocks
from ado_stream.prepare.input_files import InputFile
from ado_stream.prepare.line_blocks import MAX_LINE_BYTES, LineBlock, line_blocks
from ado_stream.prepare.prepare_config import PrepareConfig
from ado_stream.prepare.record_errors import RecordErrors
from ado_stream.value_types import JsonObject

PIECE_BYTES = 4 << 20
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_MOST_NULS = 32  # one in as many bytes
_SHOWN_KEYS, _SHOWN_DEPTH = 20, 3  # of a record's keys in an error message


@dataclass(frozen=True)
class Piece:
    """A part of the input: lines of one file, rows of one table, or some whole text files."""

    files: tuple[InputFile, ...]
    source_bytes: int
    part: LineBlock | RowRange | RecordBlock | None = None  # None: all of every file


@dataclass(frozen=True)
class Document:
    """One document: its text, the size and xxh64 of that as UTF-8, its domain, the split that its file is for."""

    text: str
    text_bytes: int
    text_hash: int
    domain: str
    split: str

    @classmethod
    def of(cls, text: str, utf8: bytes, domain: str, split: str) -> "Document":
        """The document of a text, given in both forms."""
        return cls(text, len(utf8), xxhash.xxh64_intdigest(utf8), domain, split)


def cut_pieces(files: Sequence[InputFile], errors: RecordErrors, keys: Sequence[str] = ()) -> Iterator[Piece]:
    """All of `files` in order, in pieces of about PIECE_BYTES; keys: those that `read_documents` will look up."""
    for is_text, group in groupby(files, lambda file: file.kind == "text"):
        if is_text:
            yield from _group_texts(group)
            continue
        for file in group:
            parts: Iterator[LineBlock | RowRange | RecordBlock]
            if file.kind == "lines":
                parts = line_blocks(file.path, PIECE_BYTES, errors)
            elif file.kind == "hf":
                parts = record_blocks(file.path, file.size_bytes, PIECE_BYTES, keys, errors)
            else:
                parts = cut_rows(file.path, file.kind, errors)
            for part in parts:
                yield Piece((file,), part.source_bytes, part)


def read_documents(piece: Piece, config: PrepareConfig, errors: RecordErrors) -> Iterator[Document]:
    """The documents of a piece, in order; unreadable records go to `errors`."""
    file = piece.files[0]
    if isinstance(piece.part, LineBlock):
        documents = _from_lines(file, piece.part, config, errors)
    elif isinstance(piece.part, RowRange):
        documents = _from_rows(file, piece.part, config, errors)
    elif isinstance(piece.part, RecordBlock):
        documents = (
            _from_record(_Place(f"{file.path}: row {row}", file, record), config, errors)
            for row, record in enumerate(piece.part.records, piece.part.first_row)
        )
    else:
        documents = (_read_text(text_file, errors) for text_file in piece.files)
    yield from (document for document in documents if document is not None)


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


def _from_lines(
    file: InputFile, block: LineBlock, config: PrepareConfig, errors: RecordErrors
) -> Iterator[Document | None]:
    names = set[str]().union(*map(names_in, config.keys))
    decoder = json.JSONDecoder(object_pairs_hook=partial(unique_names, among=names))
    for number, line in enumerate(block.data.split(b"\n"), start=block.first_line):
        where = f"{file.path}:{number}"
        line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            continue
        try:
            record = decoder.decode(line.decode())
        except UnicodeDecodeError as error:
            detail = f" at byte {error.start} of the line"
            errors.add(where, "invalid UTF-8", detail, "Convert the file to UTF-8.", len(line))
        except (ValueError, RecursionError) as error:
            errors.add(where, "unreadable line", f" ({error})", "Expected one JSON object per line.", len(line))
        else:
            yield _from_record(_Place(where, file, record, len(line)), config, errors)


def _from_rows(
    file: InputFile, part: RowRange, config: PrepareConfig, errors: RecordErrors
) -> Iterator[Document | None]:
    for where, values in read_rows(file.path, part, config.text_key, config.domain_key, errors):
        text, domain = values if config.domain_key is not None else (*values, file.domain)
        yield _document(_Place(where, file), text, domain, config, errors)


def _read_text(file: InputFile, errors: RecordErrors) -> Document | None:
    if file.size_bytes > MAX_LINE_BYTES:
        add_too_long(file.path, file.size_bytes, errors, MAX_LINE_BYTES)
        return None
    with open(file.path, "rb") as stream:
        utf8 = stream.read().removeprefix(codecs.BOM_UTF8)
    try:
        text = utf8.decode()
    except UnicodeDecodeError as error:
        errors.add(file.path, "invalid UTF-8", f" at byte {error.start}", "Convert the file to UTF-8.", file.size_bytes)
        return None
    if not text:
        errors.add_empty()
        return None
    if utf8.startswith(_LFS_POINTER):
        errors.add(file.path, "a Git LFS pointer, not the text", "", "Fetch the file: git lfs pull.", file.size_bytes)
        return None
    if utf8.count(0) * _MOST_NULS > len(utf8):  # English in UTF-16 is valid UTF-8, with a NUL after each letter
        detail = " (NUL bytes: UTF-16, or no text at all)"
        errors.add(file.path, "invalid UTF-8", detail, "Convert the file to UTF-8.", file.size_bytes)
        return None
    return Document.of(text, utf8, file.domain, file.split)


def add_too_long(where: str, num_bytes: int, errors: RecordErrors, most: int, condition: str = "") -> None:
    """Counts, or raises, a document of more than `most` bytes, which is the limit under `condition`."""
    detail = f" ({num_bytes:,} bytes; at most {most:,}{condition})"
    errors.add(where, "document too long", detail, "Split it.", num_bytes)


@dataclass(frozen=True)
class _Place:
    """Where a record is, and what an error about it needs."""

    where: str
    file: InputFile
    record: object = None  # of a line: the whole of it
    num_bytes: int = 0


def _from_record(place: _Place, config: PrepareConfig, errors: RecordErrors) -> Document | None:
    text = lookup(place.record, config.text_key)
    domain = place.file.domain if config.domain_key is None else lookup(place.record, config.domain_key)
    return _document(place, text, domain, config, errors)


def _document(
    place: _Place, text: object, domain: object, config: PrepareConfig, errors: RecordErrors
) -> Document | None:
    if text == "":
        errors.add_empty()
        return None
    advices = {"text": "Name the key with --text-key.", "domain": "Correct --domain-key."}
    for kind, key, value in (("text", config.text_key, text), ("domain", config.domain_key, domain)):
        if isinstance(value, NotUtf8):
            errors.add(place.where, "invalid UTF-8", f" under key {key!r}", "Repair the text.", place.num_bytes)
            return None
        if not isinstance(value, str) or not value:
            detail = f" under key {key!r}{_found(value, place.record)}"
            errors.add(place.where, f"no {kind}", detail, advices[kind], place.num_bytes)
            return None
    assert isinstance(text, str)
    assert isinstance(domain, str)
    try:
        domain.encode()
        utf8 = text.encode()
    except UnicodeEncodeError as error:  # JSON may escape half of a surrogate pair, which UTF-8 cannot hold
        detail = f" (half a surrogate pair at character {error.start})"
        errors.add(place.where, "invalid Unicode", detail, "Repair the text.", place.num_bytes)
        return None
    if len(utf8) > MAX_LINE_BYTES:
        add_too_long(place.where, len(utf8), errors, MAX_LINE_BYTES)
        return None
    return Document.of(text, utf8, domain, place.file.split)


def _found(value: object, record: object) -> str:
    """What was found instead of a text, for an error message: its kind, or the record's keys."""
    if value is MISSING and isinstance(record, dict):
        keys = list(islice(_dotted(record), _SHOWN_KEYS + 1))
        return f"; keys: {', '.join(keys[:_SHOWN_KEYS])}{', ...' if len(keys) > _SHOWN_KEYS else ''}"
    whole = value is MISSING
    value = record if whole else value
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "text" if whole else "an empty text",
             bytes: "binary data", list: "a list", dict: "an object"}  # fmt: skip
    kind = "null" if value is None else kinds.get(type(value), f"a {type(value).__name__}")
    shown = f" ({value!r})" if isinstance(value, (bool, int, float)) else ""
    return f"{'; the record itself is' if whole else ': found'} {kind}{shown}"


def _dotted(record: JsonObject, prefix: str = "") -> Iterator[str]:
    """The dotted keys of a record, those inside of objects too."""
    for key, value in record.items():
        if isinstance(value, dict) and value and prefix.count(".") < _SHOWN_DEPTH:
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
