"""Decompresses a stored file, with a limit on the output against decompression bombs.

Invariant: never more than the raw size in the index (at most 4 GiB, the range of MDS offsets) is written. zstd, gz, bz2
and br are streamed in bounded memory; snappy is decompressed as a whole, to a size that its stored bytes can hold.
"""

import bz2
import gzip
import io
import itertools
import os
import threading
import zlib
from collections.abc import Iterator
from typing import IO, Any

import zstandard

from ado_stream.errors import IndexInvalid
from ado_stream.regular_files import open_regular
from ado_stream.storage.complete_file import CompleteFile
from ado_stream.storage.object_spec import ObjectSpec
from ado_stream.storage.retry import raise_if_stopped
from ado_stream.storage.verify import CHUNK_BYTES, ContentError, Mismatch

MAX_RAW_BYTES = 1 << 32
_FREE_RAW_BYTES = 1 << 28  # that anything may decompress to
_MAX_RATIO = 1000
_BROTLI_FEED_BYTES = 1 << 16
_SNAPPY_RATIO = 22  # an element of three bytes copies 64 at most


def decompress(spec: ObjectSpec, stop: threading.Event | None = None) -> os.stat_result:
    """Makes spec.raw from spec.stored, complete and verified; returns its status.

    Raises ContentError when the stored bytes are not a valid stream or the raw ones differ from the index, DiskError
    when the disk fails, StoppedError when `stop` is set, IndexInvalid for an unknown compression.
    """
    max_bytes = MAX_RAW_BYTES if spec.raw_bytes is None else spec.raw_bytes
    with CompleteFile(spec.raw, spec.raw_bytes, spec.raw_hashes) as file:
        for chunk in _raw_chunks(spec):
            raise_if_stopped(stop, spec.where)
            if file.verifier.num_bytes + len(chunk) > max_bytes:
                raise ContentError(Mismatch("raw size", f"over {max_bytes}", str(max_bytes)))
            file.write(chunk)
        return file.commit()


def _raw_chunks(spec: ObjectSpec) -> Iterator[bytes]:
    family = (spec.compression or "").partition(":")[0]
    try:
        with open_regular(spec.stored) as source, _reader(spec, family, source) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk
    except (zstandard.ZstdError, zlib.error, EOFError, OSError) as error:
        raise ContentError(Mismatch(family, str(error), "a complete stream")) from error


def is_bomb(raw_bytes: int, stored_bytes: int) -> bool:
    """Whether no real text compresses that well: over 256 MiB raw, and over 1,000 times the stored bytes."""
    return raw_bytes > max(_FREE_RAW_BYTES, _MAX_RATIO * stored_bytes)


def _reader(spec: ObjectSpec, family: str, source: IO[bytes]) -> Any:
    if family == "br":
        return _BrotliReader(source)
    if family == "snappy":
        return io.BytesIO(_snappy(source.read(), MAX_RAW_BYTES if spec.raw_bytes is None else spec.raw_bytes))
    if family == "zstd":
        return zstandard.ZstdDecompressor().stream_reader(source, read_across_frames=True)
    if family == "gz":
        return gzip.GzipFile(fileobj=source)
    if family == "bz2":
        return bz2.BZ2File(source)
    raise IndexInvalid(f"{spec.label}: unknown compression {spec.compression!r}; known: zstd, gz, bz2, br, snappy.")


class _BrotliReader(io.RawIOBase):
    """Brotli's decoder as a stream. Raises EOFError where the data end early, are damaged, or go on after the end."""

    def __init__(self, source: IO[bytes]):
        import brotli

        self._source = source
        self._decoder = brotli.Decompressor()
        self._error = brotli.error

    def read(self, size: int = CHUNK_BYTES) -> bytes:
        """The next bytes, about `size` at most; b"" at the end."""
        raw = b""
        while not raw and not self._decoder.is_finished():
            stored = self._source.read(_BROTLI_FEED_BYTES) if self._decoder.can_accept_more_data() else b""
            try:
                raw = self._decoder.process(stored, output_buffer_limit=size)
            except self._error as error:
                raise EOFError(str(error)) from error
            if not (stored or raw or self._decoder.is_finished()):
                raise EOFError("the stream ends early")
        if not raw and self._source.read(1):
            raise EOFError("bytes after the end of the stream")
        return raw


def _snappy(stored: bytes, max_bytes: int) -> bytes:
    """The raw bytes. The library allocates what the header claims; a byte of snappy expands to 22 at most."""
    import snappy

    # The size is a varint of at most five bytes: seven bits each, low ones first, the high bit set in all but the last.
    varint = itertools.takewhile(lambda place: place == 0 or stored[place - 1] & 0x80, range(min(5, len(stored))))
    size = sum((stored[place] & 0x7F) << (7 * place) for place in varint)
    if size > min(max_bytes, _SNAPPY_RATIO * len(stored)):
        raise ContentError(Mismatch("raw size", str(size), f"at most {min(max_bytes, _SNAPPY_RATIO * len(stored))}"))
    try:
        raw: bytes = snappy.decompress(stored)
        return raw
    except Exception as error:  # the type differs between releases; any exception means damaged bytes
        raise EOFError(str(error)) from error
