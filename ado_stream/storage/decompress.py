"""A stored file to its raw bytes, with a cap on the output against decompression bombs.

Invariant: never more than the raw size in the index (at most 4 GiB, the reach of MDS offsets) is written. zstd, gz and
bz2 are streamed in bounded memory; br and snappy go through Streaming's compression module, a whole shard at a time.
"""

import bz2
import gzip
import os
import threading
import zlib
from collections.abc import Iterator
from typing import IO, Any

import zstandard

from ado_stream.errors import IndexInvalid
from ado_stream.storage.complete_file import CompleteFile
from ado_stream.storage.object_spec import ObjectSpec
from ado_stream.storage.retry import raise_if_stopped
from ado_stream.storage.verify import CHUNK_BYTES, ContentError, Mismatch

MAX_RAW_BYTES = 1 << 32


def decompress(spec: ObjectSpec, stop: threading.Event | None = None) -> os.stat_result:
    """Makes spec.raw from spec.stored, complete and verified; returns its status.

    Raises ContentError when the stored bytes are no such stream or the raw ones not what the index says, DiskError
    when the disk refuses, StoppedError when `stop` is set, IndexInvalid for an unknown compression.
    """
    most_bytes = MAX_RAW_BYTES if spec.raw_bytes is None else spec.raw_bytes
    with CompleteFile(spec.raw, spec.raw_bytes, spec.raw_hashes) as file:
        for chunk in _raw_chunks(spec):
            raise_if_stopped(stop, spec.where)
            if file.verifier.num_bytes + len(chunk) > most_bytes:
                raise ContentError(Mismatch("raw size", f"over {most_bytes}", str(most_bytes)))
            file.write(chunk)
        return file.commit()


def _raw_chunks(spec: ObjectSpec) -> Iterator[bytes]:
    family = (spec.compression or "").partition(":")[0]
    if family in ("br", "snappy"):
        if family == "snappy":
            _check_snappy_size(spec, MAX_RAW_BYTES if spec.raw_bytes is None else spec.raw_bytes)
        yield _whole(spec, family)
        return
    try:
        with open(spec.stored, "rb") as source, _reader(spec, family, source) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                yield chunk
    except (zstandard.ZstdError, zlib.error, EOFError, OSError) as error:
        raise ContentError(Mismatch(family, str(error), "a complete stream")) from error


def _reader(spec: ObjectSpec, family: str, source: IO[bytes]) -> Any:
    if family == "zstd":
        return zstandard.ZstdDecompressor().stream_reader(source, read_across_frames=True)
    if family == "gz":
        return gzip.GzipFile(fileobj=source)
    if family == "bz2":
        return bz2.BZ2File(source)
    raise IndexInvalid(f"{spec.label}: unknown compression {spec.compression!r}; known: zstd, gz, bz2, br, snappy.")


def _check_snappy_size(spec: ObjectSpec, most_bytes: int) -> None:
    """Raises ContentError when the stream's head claims more bytes than the index says: they would be allocated."""
    with open(spec.stored, "rb") as source:
        head = source.read(5)
    size = sum((byte & 0x7F) << (7 * place) for place, byte in enumerate(head[: _varint_bytes(head)]))
    if size > most_bytes:
        raise ContentError(Mismatch("raw size", str(size), str(most_bytes)))


def _varint_bytes(head: bytes) -> int:
    return next((place + 1 for place, byte in enumerate(head) if byte < 0x80), len(head))


def _whole(spec: ObjectSpec, family: str) -> bytes:
    from streaming.base.compression import decompress as streaming_decompress

    try:
        return streaming_decompress(family, spec.stored.read_bytes())
    except Exception as error:  # these codecs share no base class; whatever they raise means damaged bytes
        raise ContentError(Mismatch(family, str(error), "a complete stream")) from error
