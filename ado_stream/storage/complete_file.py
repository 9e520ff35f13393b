"""Files that appear complete and verified or not at all; removal of unfinished and bad ones.

Invariants: a visible name always has all of its bytes, synced; a temporary file whose object's lock is free was left by
a killed process, and the next holder of the lock may delete it.
Hosts may share a folder on a file system whose locks do not reach from one to the other. Both then make the object,
under names that no two writers have: neither gives its name to bytes of the other's.
"""

import os
import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import xxhash

from ado_stream.durable import DiskError, disk_errors, new_file, private_folder, rename_durably
from ado_stream.storage.object_locks import lock_if_free, lock_path
from ado_stream.storage.verify import ContentError, Verifier

TEMP_DIR = ".ado-tmp"
BAD_PREFIX = ".bad-"
_SUFFIX = re.compile(r"\.\d+-[0-9a-f]+(\.\d+)?$")  # process, a random number, and the number of a scratch file
_REMOVED = (
    "It was removed while it was written: by a cleaner of temporary files, or by another host that shares the folder "
    "without\n  its locks. Give each host a folder of its own, on a local disk."
)


def temporary_path(destination: Path) -> Path:
    """A name for unfinished bytes of `destination` on the same file system, which no other writer has on any host."""
    return destination.parent / TEMP_DIR / f"{destination.name}.{os.getpid()}-{secrets.token_hex(8)}"


def remove_leftovers(destination: Path) -> None:
    """Deletes unfinished files of `destination`; only for the holder of its lock."""

    def unlink(entry: os.DirEntry[str]) -> None:
        if entry.name.startswith(destination.name + "."):
            os.unlink(entry.path)

    _for_temporaries(destination.parent, unlink)


def remove_free_leftovers(folder: Path) -> None:
    """Deletes every unfinished file of `folder` whose object's lock is free: left by processes that were killed."""

    def unlink(entry: os.DirEntry[str]) -> None:
        with lock_if_free(lock_path(folder / _SUFFIX.sub("", entry.name))) as held:
            if held:
                os.unlink(entry.path)

    _for_temporaries(folder, unlink)


class CompleteFile:
    """A file written and verified under a temporary name, then synced and renamed by `commit`.

    Unlike durable_file, it can start over, verifies what it commits, and has a temporary name by which other processes
    can remove it when this one was killed. As a context manager it leaves no temporary file behind. The full size is
    set at the start (sparse), so that other processes that sum up the cache's files count what is reserved. seal: see
    verify.py.
    """

    def __init__(
        self, destination: Path, expected_bytes: int | None, hashes: Mapping[str, str], seal: bool = False
    ) -> None:
        self.destination = destination
        self.temporary = temporary_path(destination)
        self._expected_bytes, self._hashes, self._seal = expected_bytes, hashes, seal

    def __enter__(self) -> "CompleteFile":
        with disk_errors(self.destination):
            private_folder(self.temporary.parent)
            self._file = os.fdopen(new_file(self.temporary, 0o600), "wb", buffering=0)  # closed in __exit__
        self.restart()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        with suppress(FileNotFoundError):
            self.temporary.unlink()

    def restart(self) -> None:
        """Discards what was written: the next attempt starts at the first byte."""
        self.verifier = Verifier(self._expected_bytes, self._hashes)
        self._seal_state = xxhash.xxh64()
        with disk_errors(self.destination):
            self._file.seek(0)
            self._file.truncate(self._expected_bytes or 0)

    def write(self, chunk: bytes) -> None:
        """Appends and hashes; raises ContentError beyond the expected size, DiskError when the disk refuses."""
        self.verifier.update(chunk)
        if self._seal:
            self._seal_state.update(chunk)
        self._append(chunk)

    def commit(self) -> os.stat_result:
        """Makes the file visible under its name; raises ContentError when it differs from the index.

        Returns the status of this file, not of one that may have replaced it under its name since.
        """
        mismatch = self.verifier.mismatch()
        if mismatch is not None:
            raise ContentError(mismatch)
        if self._seal:
            self._append(self._seal_state.digest())
        with disk_errors(self.destination):
            try:
                rename_durably(self._file, self.temporary, self.destination)
            except FileNotFoundError as error:
                raise DiskError(self.temporary, error, _REMOVED) from error
            return os.fstat(self._file.fileno())

    def _append(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        with disk_errors(self.destination):
            while view:
                view = view[self._file.write(view) :]


def quarantine(path: Path) -> None:
    """Renames a bad file to .bad-NAME, for inspection; its folder keeps only the newest such file."""
    aside = path.with_name(BAD_PREFIX + path.name)
    with disk_errors(path):
        os.replace(path, aside)
        for old in path.parent.glob(f"{BAD_PREFIX}*"):
            if old != aside:
                old.unlink(missing_ok=True)


def _for_temporaries(folder: Path, act: Callable[[os.DirEntry[str]], object]) -> None:
    with suppress(FileNotFoundError), os.scandir(folder / TEMP_DIR) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                act(entry)
