"""Files that appear complete or not at all, and the lock that says who makes them.

Invariants: a visible name always holds all of its bytes, synced; a temporary file without the holder of its object's
lock is left over from a dead process and may be deleted by whoever takes the lock.
Locks are flock(2): the kernel drops them when their holder dies. Lock files are empty and stay, since unlinking a lock
file lets two holders exist at once.
"""

import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ado_stream.durable import sync_folder
from ado_stream.errors import StorageError
from ado_stream.storage.retry import Deadline
from ado_stream.storage.verify import ContentError, Verifier

LOCK_DIR = ".ado-locks"
TEMP_DIR = ".ado-tmp"
COMPRESSED_SUFFIXES = (".zstd", ".gz", ".bz2", ".br", ".snappy")
BAD_PREFIX = ".bad-"
LEFTOVER_AGE_S = 3600.0  # longer than any download may take


class DiskError(StorageError):
    """Writing to the local disk failed; `errno` says how, so that the cache can tell a full disk from others."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(
            f"{path}: cannot write ({error.strerror}).\n  Check that the local folder exists, is writable and has room."
        )
        self.errno = error.errno

    @property
    def full(self) -> bool:
        """Whether the disk or the quota is used up."""
        return self.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns an OSError inside into a DiskError that names `path`."""
    try:
        yield
    except OSError as error:
        raise DiskError(path, error) from error


def temporary_path(destination: Path) -> Path:
    """A name for unfinished bytes of `destination` on the same file system; unique per process and thread."""
    return destination.parent / TEMP_DIR / f"{destination.name}.{os.getpid()}-{threading.get_native_id()}"


def remove_leftovers(destination: Path) -> None:
    """Deletes unfinished files of `destination`; only for the holder of its lock."""
    _unlink_temporaries(destination.parent, lambda entry: entry.name.startswith(destination.name + "."))


def remove_old_leftovers(folder: Path) -> None:
    """Deletes unfinished files that nobody has written to for an hour: left by processes that were killed."""
    oldest_s = time.time() - LEFTOVER_AGE_S
    _unlink_temporaries(folder, lambda entry: entry.stat(follow_symlinks=False).st_mtime < oldest_s)


class CompleteFile:
    """A file under way: written and verified under a temporary name, then synced and renamed by `commit`.

    As a context manager it leaves no temporary file behind on any path. The full size is set at once (sparse), so that
    peers which count the disk see what is reserved.
    """

    def __init__(self, destination: Path, expected_bytes: int | None, hashes: Mapping[str, str]) -> None:
        self.destination = destination
        self.temporary = temporary_path(destination)
        self._expected_bytes, self._hashes = expected_bytes, hashes

    def __enter__(self) -> "CompleteFile":
        with disk_errors(self.destination):
            self.temporary.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.temporary, "wb", buffering=0)  # noqa: SIM115 (closed in __exit__)
        self.restart()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        with suppress(FileNotFoundError):
            self.temporary.unlink()

    def restart(self) -> None:
        """Forgets what was written: the next attempt starts at the first byte."""
        self.verifier = Verifier(self._expected_bytes, self._hashes)
        with disk_errors(self.destination):
            self._file.seek(0)
            self._file.truncate(self._expected_bytes or 0)

    def write(self, chunk: bytes) -> None:
        """Appends and hashes; raises ContentError beyond the expected size, DiskError when the disk refuses."""
        self.verifier.update(chunk)
        view = memoryview(chunk)
        with disk_errors(self.destination):
            while view:
                view = view[self._file.write(view) :]

    def commit(self) -> None:
        """Makes the file visible under its name; raises ContentError when it is not what the index says."""
        mismatch = self.verifier.mismatch()
        if mismatch is not None:
            raise ContentError(mismatch)
        with disk_errors(self.destination):
            os.fsync(self._file.fileno())
            os.replace(self.temporary, self.destination)
            sync_folder(self.destination.parent)


def quarantine(path: Path) -> None:
    """Sets a bad file aside as .bad-NAME for a look at it; its folder keeps only the newest such file."""
    aside = path.with_name(BAD_PREFIX + path.name)
    with disk_errors(path):
        os.replace(path, aside)
        for old in path.parent.glob(f"{BAD_PREFIX}*"):
            if old != aside:
                old.unlink(missing_ok=True)


@contextmanager
def object_lock(destination: Path, patience: Deadline) -> Iterator[None]:
    """Holds the one lock of `destination` among all threads and processes of the machine.

    Raises StorageError when `patience` is over, StoppedError when it is told to stop.
    """
    path = lock_path(destination)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        while not _try_flock(descriptor):
            if not patience.wait():
                raise StorageError(
                    f"{destination}: another process held {path} for over {patience.seconds:.0f} s.\n"
                    "  It may be stopped in a debugger or on a dead network disk; end it and start again."
                )
        yield
    finally:
        os.close(descriptor)  # drops the lock


@contextmanager
def lock_if_free(destination: Path) -> Iterator[bool]:
    """Holds the lock of `destination` when nobody has it; yields whether it does."""
    path = lock_path(destination)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield _try_flock(descriptor)
    finally:
        os.close(descriptor)


def lock_path(destination: Path) -> Path:
    """The lock file of `destination`, in a hidden folder beside it; a compressed file shares its raw file's lock."""
    name = destination.stem if destination.suffix in COMPRESSED_SUFFIXES else destination.name
    return destination.parent / LOCK_DIR / f"{name}.lock"


def _unlink_temporaries(folder: Path, dead: Callable[[os.DirEntry], bool]) -> None:
    try:
        with os.scandir(folder / TEMP_DIR) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if dead(entry):
                        os.unlink(entry.path)
    except FileNotFoundError:
        return


def _try_flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
