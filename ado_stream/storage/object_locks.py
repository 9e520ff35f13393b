"""Locks between the processes and threads of a machine, one for each object or folder.

Locks are flock(2) on empty files: the kernel releases them when their holder ends. Lock files are never unlinked: a
process that waits on an unlinked file and one that creates it again would both hold the lock.
A lock belongs to the open file, not to the process: threads exclude each other, too. O_CLOEXEC: programs that
this one starts would otherwise inherit the lock and hold it.
Order: a thread holds at most one object's lock while it waits. Eviction, which runs under the lock of the object to be
made, only tries the locks of others (`lock_if_free`), so that two makers cannot wait for each other.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ado_stream.durable import disk_errors, private_folder
from ado_stream.errors import StorageError
from ado_stream.storage.retry import Deadline

LOCK_DIR = ".ado-locks"
COMPRESSED_SUFFIXES = (".zstd", ".gz", ".bz2", ".br", ".snappy")


@contextmanager
def object_lock(destination: Path, deadline: Deadline, made: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Holds the one lock of `destination`; without it once `made()` says that another process has made the object.

    Raises StorageError when `deadline` has passed, StoppedError when its `stop` is set.
    """
    path = lock_path(destination)
    with _open_lock(path) as descriptor:
        # Polled and not blocked in flock: a blocking call has no deadline, and no other thread could end it.
        while not made() and not _try_flock(descriptor, path):
            if not deadline.wait():
                raise StorageError(
                    f"{destination}: another process held {path} for over {deadline.seconds:.0f} s.\n"
                    "  It may be stopped in a debugger or on a dead network disk; end it and start again."
                )
        yield


@contextmanager
def lock_if_free(path: Path) -> Iterator[bool]:
    """Holds the lock file `path` if it is free; yields whether it does.

    A file that its last holder removed, as `prepare` does at its end, counts as held: others may lock its successor.
    """
    with _open_lock(path) as descriptor:
        yield _try_flock(descriptor, path) and os.fstat(descriptor).st_nlink > 0


def lock_path(destination: Path) -> Path:
    """The lock file of `destination`, in a hidden folder beside it; a compressed file shares its raw file's lock."""
    name = destination.stem if destination.suffix in COMPRESSED_SUFFIXES else destination.name
    return destination.parent / LOCK_DIR / f"{name}.lock"


@contextmanager
def _open_lock(path: Path) -> Iterator[int]:
    with disk_errors(path):
        private_folder(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)  # drops the lock


def try_flock(descriptor: int) -> bool:
    """Takes the lock of an open file if it is free; whether it was. Raises OSError on a file system without locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _try_flock(descriptor: int, path: Path) -> bool:
    with disk_errors(
        path, "This file system has no working locks: use a folder on a local disk, or mount it with locks."
    ):
        return try_flock(descriptor)
