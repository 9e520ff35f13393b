"""One file's bytes in blocks of whole lines, from raw, gzip or zstd files, in bounded memory.

A damaged or truncated compressed file is a DataError with its position, never a file that silently ends early: the
zstd frame must be complete at the end of the file (zstandard's own stream_reader does not check that).
"""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import zstandard

from ado_stream.errors import DataError

MAX_LINE_BYTES = 1 << 27
_READ_BYTES = 1 << 20
_ZSTD_FEED_BYTES = 1 << 12  # a block of 4 bytes may expand to 128 KiB, so 4 KiB to 128 MiB at worst
_ZSTD_WINDOW_BYTES = 1 << 31  # what `zstd --long=31` writes


@dataclass(frozen=True)
class LineBlock:
    """Whole lines of a file."""

    data: bytes
    first_line: int  # counted from 1
    source_bytes: int  # bytes of the file on disk that were read for it


def line_blocks(path: str, block_bytes: int) -> Iterator[LineBlock]:
    """Blocks of whole lines of about `block_bytes`, cut at places that depend on the content alone.

    Raises DataError: damaged compression, a line over MAX_LINE_BYTES.
    """
    with open(path, "rb") as file:
        parts: list[bytes] = []  # of the block to be, `size` bytes, the last `unended` of them after the last newline
        size = unended = done = 0
        line = 1
        for chunk in _plain_bytes(path, file):
            parts.append(chunk)
            size += len(chunk)
            last_end = chunk.rfind(b"\n") + 1
            unended = len(chunk) - last_end if last_end else unended + len(chunk)
            if unended > MAX_LINE_BYTES:
                raise _too_long(path, line + b"".join(parts).count(b"\n"))
            if size < block_bytes or not last_end:
                continue
            data = b"".join(parts)
            cut = size - unended
            yield LineBlock(data[:cut], line, file.tell() - done)
            line += data.count(b"\n", 0, cut)
            done = file.tell()
            parts, size = [data[cut:]], unended
        if size:
            yield LineBlock(b"".join(parts), line, file.tell() - done)


def _plain_bytes(path: str, file: BinaryIO) -> Iterator[bytes]:
    """The file's content uncompressed, in chunks whose boundaries depend on the content alone."""
    if path.endswith(".zst"):
        return _unzstd(path, file)
    if path.endswith(".gz"):
        return _gunzip(path, file)
    return iter(lambda: file.read(_READ_BYTES), b"")


def _unzstd(path: str, file: BinaryIO) -> Iterator[bytes]:
    frames = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
    frame = None
    produced = 0
    data = b""
    try:
        while data := data or file.read(_ZSTD_FEED_BYTES):
            frame = frame or frames.decompressobj()
            chunk = frame.decompress(data)
            data = b""
            if frame.eof:  # a file may hold several frames
                data, frame = frame.unused_data, None
            produced += len(chunk)
            for start in range(0, len(chunk), _READ_BYTES):
                yield chunk[start : start + _READ_BYTES]
    except zstandard.ZstdError as error:
        raise _damaged(path, "zstd", file.tell(), produced, str(error)) from error
    if frame is not None:
        raise _damaged(path, "zstd", file.tell(), produced, "the file ends inside a frame")


def _gunzip(path: str, file: BinaryIO) -> Iterator[bytes]:
    produced = 0
    try:
        with gzip.GzipFile(fileobj=file) as stream:
            while chunk := stream.read(_READ_BYTES):
                produced += len(chunk)
                yield chunk
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(path, "gzip", file.tell(), produced, str(error)) from error


def _too_long(path: str, line: int) -> DataError:
    return DataError(
        f"{path}:{line}: line longer than {MAX_LINE_BYTES >> 20} MiB.\n"
        "  One line is one document; split it, or check that the file is JSON lines."
    )


def _damaged(path: str, kind: str, position: int, produced: int, why: str) -> DataError:
    return DataError(
        f"{path}: corrupt {kind} data before byte {position:,} of the file, {produced:,} bytes decompressed: {why}.\n"
        "  The file is damaged or truncated. Download it again."
    )
