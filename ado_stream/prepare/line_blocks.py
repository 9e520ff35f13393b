"""One file's bytes in blocks of whole lines, from raw, gzip or zstd files, in bounded memory.

A .json file that holds an array counts as the lines of its elements (json_arrays.py).

A damaged or truncated compressed file is an error with its position, never a file that silently ends early: there must
be a frame, and the last one must be complete (zstandard's own stream_reader does not check that). All whole lines
before the damage come out first. A line that is too long is left out alone.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol

import zstandard

from ado_stream.errors import DataError
from ado_stream.prepare.json_arrays import DamagedFile, array_lines
from ado_stream.prepare.record_errors import RecordErrors

MAX_LINE_BYTES = 1 << 27
_READ_BYTES = 1 << 20
_ZSTD_FEED_BYTES = 1 << 12  # a block of 4 bytes may expand to 128 KiB, so 4 KiB to 128 MiB at worst
_ZSTD_WINDOW_BYTES = 1 << 31  # what `zstd --long=31` writes
_GZIP_FEED_BYTES = 1 << 16  # expands to 64 MiB at worst
_GZIP_FORMAT = 16 + zlib.MAX_WBITS  # header and checksum included


class _Frame(Protocol):
    """A decompressor of zlib or zstandard."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


@dataclass(frozen=True)
class LineBlock:
    """Whole lines of a file."""

    data: bytes
    first_line: int  # counted from 1
    source_bytes: int  # bytes of the file on disk that were read for it


def line_blocks(path: str, block_bytes: int, errors: RecordErrors) -> Iterator[LineBlock]:
    """Blocks of whole lines of about `block_bytes`, cut at places that depend on the content alone.

    Damaged compression and lines over MAX_LINE_BYTES go to `errors`.
    """
    with open(path, "rb") as file:
        parts: list[bytes] = []  # of the block to be, `size` bytes, the last `unended` of them after the last newline
        size = unended = done = 0
        too_long = 0  # bytes so far of a line that is being left out
        line = 1
        damage = None
        chunks = _plain_bytes(path, file)
        while True:
            try:
                chunk = next(chunks, None)
            except DamagedFile as error:
                damage, chunk = error, None
            if chunk is None:
                break
            if too_long:
                end = chunk.find(b"\n")
                too_long += end if end >= 0 else len(chunk)
                if end < 0:
                    continue
                _add_too_long(errors, path, line, too_long)
                chunk, line, too_long = chunk[end + 1 :], line + 1, 0
            parts.append(chunk)
            size += len(chunk)
            last_end = chunk.rfind(b"\n") + 1
            unended = len(chunk) - last_end if last_end else unended + len(chunk)
            if unended > MAX_LINE_BYTES:
                too_long = unended
            if not too_long and (size < block_bytes or not last_end):
                continue
            data = b"".join(parts)
            parts = [] if too_long else [data[size - unended :]]  # before the yield: one line may be all of `data`
            data = data[: size - unended]
            first_line, line = line, line + data.count(b"\n")
            if too_long and not errors.skip:
                _add_too_long(errors, path, line, too_long)
            if data:
                source_bytes, done = file.tell() - done, file.tell()
                yield LineBlock(data, first_line, source_bytes)
            size = unended = 0 if too_long else unended
        if too_long:
            _add_too_long(errors, path, line, too_long)
        rest = b"".join(parts)
        if damage is not None:  # its last line may have lost its end
            rest = rest[: size - unended]
        if rest:
            yield LineBlock(rest, line, file.tell() - done)
        if damage is not None:
            errors.add_damage(DataError(str(damage)), file.seek(0, 2) - damage.good_bytes + unended)


def _add_too_long(errors: RecordErrors, path: str, line: int, num_bytes: int) -> None:
    advice = "One line is one document; split it, or check that the file is JSON lines."
    errors.add(f"{path}:{line}", f"line longer than {MAX_LINE_BYTES >> 20} MiB", "", advice, num_bytes)


def _plain_bytes(path: str, file: BinaryIO) -> Iterator[bytes]:
    """The file's content uncompressed, in chunks whose boundaries depend on the content alone."""
    chunks = _decompressed_file(path, file)
    return array_lines(path, file, chunks) if ".json" in Path(path.lower()).suffixes[-2:] else chunks


def _decompressed_file(path: str, file: BinaryIO) -> Iterator[bytes]:
    name = path.lower()
    if name.endswith(".zst"):
        frames = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        return _split(_decompressed(path, file, "zstd", frames.decompressobj, _ZSTD_FEED_BYTES))
    if name.endswith(".gz"):
        gunzip = partial(zlib.decompressobj, _GZIP_FORMAT)
        return _regrouped(_decompressed(path, file, "gzip", gunzip, _GZIP_FEED_BYTES))
    return iter(lambda: file.read(_READ_BYTES), b"")


def _split(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """`chunks`, those over _READ_BYTES in parts."""
    for chunk in chunks:
        for start in range(0, len(chunk), _READ_BYTES):
            yield chunk[start : start + _READ_BYTES]


def _regrouped(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """`chunks` in chunks of exactly _READ_BYTES, and the rest, also before damage."""
    buffer = bytearray()
    damage = None
    while True:
        try:
            chunk = next(chunks, None)
        except DamagedFile as error:
            damage, chunk = error, None
        if chunk is None:
            break
        buffer += chunk
        while len(buffer) >= _READ_BYTES:
            yield bytes(buffer[:_READ_BYTES])
            del buffer[:_READ_BYTES]
    if buffer:
        yield bytes(buffer)
    if damage is not None:
        raise damage


def _decompressed(
    path: str, file: BinaryIO, kind: str, new_frame: Callable[[], _Frame], feed_bytes: int
) -> Iterator[bytes]:
    """What each feed of a file of one or several frames (members, in gzip) decompresses to."""
    frame = None
    frame_start = produced = good_bytes = 0  # good_bytes: up to the end of the last feed that gave output
    data = b""
    while data := data or file.read(feed_bytes):
        if frame is None:
            if kind == "gzip" and file.tell() > len(data):  # members may be followed by zeros
                data = data.lstrip(b"\0")
                if not data:
                    continue
            frame, frame_start = new_frame(), file.tell() - len(data)
        try:
            chunk = frame.decompress(data)
        except (zstandard.ZstdError, zlib.error) as error:
            chunk, end = _before_damage(path, new_frame, frame_start, file.tell() - len(data), feed_bytes)
            yield chunk
            raise _damaged(path, kind, end or good_bytes, produced + len(chunk), str(error)) from error
        data = b""
        if frame.eof:
            data, frame = frame.unused_data, None
        if chunk or frame is None:
            good_bytes = file.tell() - len(data)
        produced += len(chunk)
        yield chunk
    if frame is not None or not file.tell():
        why = "the file ends inside a frame" if frame is not None else "the file is empty"
        raise _damaged(path, kind, good_bytes, produced, why)


def _before_damage(
    path: str, new_frame: Callable[[], _Frame], frame_start: int, feed_start: int, feed_bytes: int
) -> tuple[bytes, int]:
    """What the feed at `feed_start`, which failed as a whole, decompresses to before the damage, and where that ends.

    0 where it gives no output: a block of zstd gives all of its output with its last byte.
    """
    frame = new_frame()
    parts = []
    end = 0
    with open(path, "rb") as file:
        file.seek(frame_start)
        while file.tell() < feed_start:
            frame.decompress(file.read(min(feed_bytes, feed_start - file.tell())))
        while byte := file.read(1):
            try:
                parts.append(frame.decompress(byte))
            except (zstandard.ZstdError, zlib.error):
                break
            if parts[-1]:
                end = file.tell()
        return b"".join(parts), end


def _damaged(path: str, kind: str, good_bytes: int, produced: int, why: str) -> DamagedFile:
    return DamagedFile(
        f"{path}: corrupt {kind} data after byte {good_bytes:,} of the file, {produced:,} bytes decompressed: {why}.\n"
        "  The file is damaged or truncated. Download it again.",
        good_bytes,
    )
