"""Checks bytes against the index: size and hash, of a stream or of a file on disk.

Invariant: a check covers every byte; what was not checked is not served.
A file that no index has a hash of is sealed: it ends with the xxh64 of all bytes before, taken as they arrived.
"""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from ado_stream.errors import IndexInvalid, StorageError
from ado_stream.regular_files import open_regular

CHUNK_BYTES = 1 << 20
SEAL_BYTES = 8


@dataclass(frozen=True)
class Mismatch:
    """What differs between some bytes and the index."""

    check: str  # "size", a hash algorithm, or the decompressor's name
    got: str
    expected: str

    def __str__(self) -> str:
        return f"{self.check} {self.got} but index says {self.expected}"


class ContentError(Exception):
    """Complete bytes that differ from the index; raised within storage, with the Mismatch."""

    def __init__(self, mismatch: Mismatch) -> None:
        super().__init__(str(mismatch))
        self.mismatch = mismatch


class Verifier:
    """Counts and hashes a stream of bytes against what the index expects (None or empty: not checked).

    Raises IndexInvalid when the index names a hash algorithm that does not exist here.
    """

    def __init__(self, expected_bytes: int | None, hashes: Mapping[str, str]) -> None:
        self.expected_bytes = expected_bytes
        self.num_bytes = 0
        self._hashes = [(name, digest.lower(), _new_hash(name)) for name, digest in hashes.items()]

    def update(self, chunk: bytes | memoryview) -> None:
        """Takes the next bytes; raises ContentError as soon as there are more than expected."""
        self.num_bytes += len(chunk)
        if self.expected_bytes is not None and self.num_bytes > self.expected_bytes:
            raise ContentError(Mismatch("size", f"over {self.expected_bytes}", str(self.expected_bytes)))
        for _, _, state in self._hashes:
            state.update(chunk)

    def mismatch(self) -> Mismatch | None:
        """What differs, after the last byte; None when nothing does."""
        if self.expected_bytes is not None and self.num_bytes != self.expected_bytes:
            return Mismatch("size", str(self.num_bytes), str(self.expected_bytes))
        for name, digest, state in self._hashes:
            got = state.hexdigest()
            if got != digest:
                return Mismatch(name, got, digest)
        return None


def check_file(path: Path, expected_bytes: int | None, hashes: Mapping[str, str]) -> Mismatch | None:
    """What differs between a file and the index, None when nothing does; a wrong size is found without reading.

    Raises FileNotFoundError, and StorageError when the disk cannot be read.
    """
    verifier = Verifier(expected_bytes, hashes)
    try:
        with open_regular(path, buffering=0) as file:
            size = file.seek(0, 2)
            if expected_bytes is not None and size != expected_bytes:
                return Mismatch("size", str(size), str(expected_bytes))
            if not hashes:
                return None
            file.seek(0)
            buffer = bytearray(CHUNK_BYTES)
            view = memoryview(buffer)
            while num_bytes := file.readinto(buffer):
                verifier.update(view[:num_bytes])
    except ContentError as error:
        return error.mismatch
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be read ({error.strerror}).\n  Check the disk and the permissions."
        ) from error
    return verifier.mismatch()


def check_sealed(path: Path, expected_bytes: int) -> Mismatch | None:
    """`check_file` of a sealed file of `expected_bytes` and the seal."""
    with open_regular(path, buffering=0) as file:
        if (size := file.seek(0, 2)) != expected_bytes + SEAL_BYTES:
            return Mismatch("size", str(size), str(expected_bytes + SEAL_BYTES))
        state = xxhash.xxh64()
        file.seek(0)
        for begin in range(0, expected_bytes, CHUNK_BYTES):
            state.update(file.read(min(CHUNK_BYTES, expected_bytes - begin)))
        return None if file.read(SEAL_BYTES) == state.digest() else Mismatch("xxh64", state.hexdigest(), "another")


def _new_hash(name: str) -> Any:
    if name in xxhash.algorithms_available:
        return getattr(xxhash, name)()
    if name in hashlib.algorithms_available and not name.startswith("shake_"):  # whose digests have no fixed length
        with suppress(ValueError):  # of OpenSSL that leaves it out, or allows it for no secrets alone (FIPS)
            return hashlib.new(name, usedforsecurity=False)
    raise IndexInvalid(f"the index uses hash {name!r}, which this Python does not support.\n  Rewrite it with xxh64.")
