"""Keeps a second run out of a run directory: two of them would rename each other's record and checkpoints.

The lock is flock(2) on RUN/.lock: the kernel drops it when its holder ends, however it ends. A job that was told to
stop may still be saving when its successor starts, which waits for it.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ado_stream.errors import StorageError
from ado_stream.storage.object_locks import try_flock
from ado_stream.visible import show

LOCK_NAME = ".lock"
WAIT_S = 120.0  # longer than a network file system keeps the lock of a machine that is gone
_log = logging.getLogger(__name__)


@contextmanager
def run_dir_errors(run_dir: Path) -> Iterator[None]:
    """Turns an OSError inside into a StorageError that says what to do."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"'run_dir' is {run_dir}: cannot be written: {error.strerror}.\n"
            "  Choose another one; --resume takes a checkpoint of any run."
        ) from error


@contextmanager
def run_lock(run_dir: Path, wait_s: float) -> Iterator[None]:
    """Holds `run_dir`, which is made if missing. Raises StorageError where another run has it for over `wait_s`."""
    with run_dir_errors(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        # not inherited by programs that this one starts, which may outlive it
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(run_dir / LOCK_NAME, flags, 0o666)
    try:
        _lock(descriptor, run_dir, wait_s)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, run_dir: Path, wait_s: float) -> None:
    until_s, told = time.monotonic() + wait_s, False
    while True:
        try:
            if try_flock(descriptor):
                return
        except OSError as error:  # Lustre, for one, has locks only where it is mounted with them
            _log.warning("%s: %s: nothing keeps a second run out of it", run_dir, error.strerror)
            return
        if time.monotonic() >= until_s:
            raise StorageError(
                f"'run_dir' is {run_dir}: another run has been writing there for over {wait_s:.0f} s.\n"
                "  Wait until it ends, or choose another run_dir."
            )
        if not told:
            show(f"waiting for the run in {run_dir} to end")
            told = True
        time.sleep(0.1)
