"""Atomic, durable writes of files, also across a power cut; errors of the disk. Standard library only.

The order is everywhere the same: write a temporary file in the same file system, fsync it, rename it, fsync the folder.
Without the first fsync a power cut may leave the new name with no bytes; without the second, the old name.

Names of temporary files and locks can be guessed: an existing file or symbolic link of that name is never opened, and
the folders of such files must belong to this user.
"""

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ado_stream.errors import DataError, StorageError

_DAMAGE = (ValueError, LookupError, TypeError, AttributeError, EOFError, RecursionError, OverflowError)
_libc = ctypes.CDLL(None, use_errno=True)


class DiskError(StorageError):
    """The local disk failed or refused; `full`: because no space is left; `gone`: a file was removed by others."""

    def __init__(self, path: Path | str, error: OSError, advice: str) -> None:
        super().__init__(f"{error.filename or path}: {error.strerror or error}.\n  {advice}")
        self.full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        self.gone = error.errno == errno.ENOENT


@contextmanager
def disk_errors(
    path: Path | str, advice: str = "Check that the local folder exists, is writable and has room."
) -> Iterator[None]:
    """Turns an OSError inside into a DiskError with the error's own file, else `path`, and `advice`."""
    try:
        yield
    except OSError as error:
        raise DiskError(path, error, advice) from error


@contextmanager
def damage_errors(path: Path) -> Iterator[None]:
    """Turns what a damaged file of a folder of ours raises inside into a StorageError that names it."""
    try:
        yield
    except (DataError, *_DAMAGE) as error:
        raise StorageError(
            f"{path}: damaged: {' '.join(str(error).split())}.\n  Remove its folder to start again."
        ) from error


def write_durably(path: Path, data: bytes | str) -> None:
    """Writes `path` whole or not at all; text as UTF-8. The folder is made when it is missing.

    Raises OSError; the old file, if there was one, is then unchanged. One writer of a path at a time.
    """
    with durable_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def durable_file(path: Path, temporary: Path | None = None) -> Iterator[IO[bytes]]:
    """A file to write in parts, which appears as `path` when the block ends, and never when it raises.

    temporary: its name until then, of the same file system; several writers of a path at once need one each.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary or path.with_name(f".{path.name}.tmp")
    try:
        with os.fdopen(new_file(temporary), "wb") as file:
            yield file
            rename_durably(file, temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def new_file(path: Path, mode: int = 0o666) -> int:
    """The descriptor of a new, empty file; a file of that name, left by a killed process, is removed first."""
    path.unlink(missing_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)


def private_folder(path: Path) -> None:
    """Makes a folder for this user alone. Raises OSError when the name is a link, a file or another user's folder."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # made by a peer meanwhile: checked like any other
            path.mkdir(mode=0o700)
        status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "is a link or a file, not a folder", str(path))
    if status.st_uid not in (0, os.geteuid()):  # root's is as safe as one's own
        raise PermissionError(errno.EPERM, f"belongs to another user (number {status.st_uid})", str(path))


def rename_durably(file: IO[bytes], temporary: Path, path: Path) -> None:
    """Gives the open `file` its name: fsync, rename from `temporary` to `path`, fsync of the folder."""
    file.flush()  # fsync writes what the kernel has, not what Python still buffers
    os.fsync(file.fileno())
    os.replace(temporary, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """fsync of a file's bytes, or of a folder's names: renames, creations and removals so far survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file_system(path: Path) -> None:
    """All that was written so far to the file system of `path` survives a power cut: one syncfs instead of many fsync.

    It takes about as long as one fsync, and waits for what other processes write there, too. Raises OSError.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if _libc.syncfs(descriptor):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)
