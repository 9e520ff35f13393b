"""Opens files that others may have made: regular ones alone. Standard library only.

A read of a FIFO, a socket or a device may wait, or give bytes, without end; so may the mere opening of a FIFO.
"""

import errno
import os
import stat
from functools import partial
from typing import Any

_MAX_BYTES = 1 << 30  # of a file that is parsed whole: a sparse one can have any size
PERMANENT = (errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO)  # ENXIO: a socket


def open_regular(path: str | os.PathLike[str], mode: str = "rb", buffering: int = -1, pipe: bool = False) -> Any:
    """As open(). Raises OSError for anything but a regular file and, with `pipe`, a FIFO.

    A FIFO without a writer is empty. What a shell puts in place of <(command) is one with a writer.
    """
    return open(path, mode, buffering, opener=partial(_open, pipe=pipe))


def read_regular(path: str | os.PathLike[str], pipe: bool = False) -> bytes:
    """The content. Raises OSError as `open_regular`, and where it is too large to be parsed."""
    with open_regular(path, pipe=pipe) as file:
        if os.fstat(file.fileno()).st_size > _MAX_BYTES:
            raise OSError(errno.EFBIG, f"over {_MAX_BYTES} bytes, too large for such a file", os.fspath(path))
        data: bytes = file.read()
        return data


def check_regular(path: str | os.PathLike[str], status: os.stat_result) -> None:
    """Raises OSError where `status`, of `path`, is neither a regular file's nor a folder's, which open() refuses."""
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))


def file_id(path: str | os.PathLike[str]) -> tuple[int, int]:
    """The same for two paths exactly when they name one file."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _open(path: str, flags: int, pipe: bool) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)  # else a FIFO waits here for its other end
    try:
        status = os.fstat(descriptor)
        if not (pipe and stat.S_ISFIFO(status.st_mode)):
            check_regular(path, status)
        os.set_blocking(descriptor, True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
