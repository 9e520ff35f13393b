"""A JSON array as lines, one element each, byte by byte of equal length and in bounded memory.

Of the array's own syntax nothing is left: its bracket becomes a space, its commas and its end newlines; the newlines
within its elements become carriage returns, which JSON takes for space between tokens as well and refuses within
a text as well. A file whose first byte is not a bracket, such as JSON lines that are named .json, passes unchanged.
"""

import codecs
import re
from collections.abc import Iterator
from typing import BinaryIO

from ado_stream.errors import DataError

_TEXT_END = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_SYNTAX = re.compile(rb'["\[\]{},]')
_NEWLINE, _SPACE = b"\n "


class DamagedFile(DataError):
    """The data is damaged after `good_bytes` of the file."""

    def __init__(self, message: str, good_bytes: int):
        super().__init__(message)
        self.good_bytes = good_bytes


def array_lines(path: str, file: BinaryIO, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The content `chunks` of the open `file`, a byte for a byte; an array's as lines.

    Raises DamagedFile when an array has no end, or something follows it.
    """
    scan = None
    for chunk in chunks:
        if scan is None and chunk.strip():
            if not chunk.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
                yield chunk
                yield from chunks
                return
            scan = _Scan()
        lines = scan.lines(chunk) if scan else chunk
        if scan and scan.rest and scan.rest.strip():
            yield lines[: len(lines) - len(scan.rest)]
            rest_bytes = len(scan.rest) if path.lower().endswith(".json") else 0  # of a compressed file not known
            good_bytes = file.tell() - rest_bytes
            raise DamagedFile(f"{path}: data after the end of its array.\n  Expected one array.", good_bytes)
        yield lines
    if scan and scan.rest is None:
        raise DamagedFile(f"{path}: the file ends inside its array.\n  Download it again.", file.tell())


class _Scan:
    """Where in an array the bytes so far end."""

    def __init__(self) -> None:
        self.depth = 0  # of brackets and braces
        self.in_text = False
        self._escaped = False  # the next byte is, by a backslash before it
        self.rest: bytes | None = None  # what followed the array, once it has ended

    def lines(self, chunk: bytes) -> bytes:
        """The next bytes, as lines."""
        if self.rest is not None:
            self.rest = chunk
            return chunk
        out = bytearray(chunk.replace(b"\n", b"\r"))
        place = 0
        while place < len(chunk):
            if self.in_text:
                place = self._text_end(chunk, place)
                continue
            found = _SYNTAX.search(chunk, place)
            if found is None:
                break
            place, byte = found.end(), found[0]
            if byte == b'"':
                self.in_text = True
            elif byte in b"[{":
                self.depth += 1
                if self.depth == 1:
                    out[found.start()] = _SPACE
            elif byte in b"]}":
                self.depth -= 1
                if self.depth == 0:
                    out[found.start()] = _NEWLINE  # what follows belongs to no element
                    self.rest = chunk[place:]
                    break
            elif self.depth == 1:
                out[found.start()] = _NEWLINE
        return bytes(out)

    def _text_end(self, chunk: bytes, place: int) -> int:
        """Where the text that `place` is in ends in `chunk`, or the chunk does."""
        found = _TEXT_END.match(chunk, place + self._escaped)
        if found is None:
            rest = chunk[place + self._escaped :]
            self._escaped = (len(rest) - len(rest.rstrip(b"\\"))) % 2 == 1
            return len(chunk)
        self._escaped = self.in_text = False
        return found.end()
