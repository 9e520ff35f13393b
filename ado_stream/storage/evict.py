"""Eviction: the files of the cache, which of them may be deleted, and the byte limit.

Invariants: only files that can be downloaded again are deleted, never a pinned one, never one whose lock is held (so an
unfinished file is deleted only when its maker died); deleting is unlink, so an open or mapped file stays readable.
Order: least recently used first. A use sets the file's access time (os.utime), which every process sees.
"""

import os
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ado_stream.errors import CacheFull, ConfigError
from ado_stream.storage.complete_file import TEMP_DIR
from ado_stream.storage.object_locks import lock_if_free, lock_path
from ado_stream.storage.object_spec import ObjectSpec
from ado_stream.storage.retry import Deadline

SHARD = re.compile(r"(.*\.mds)(\.|$)")


@dataclass(frozen=True)
class _Entry:
    path: Path
    raw: Path  # the raw file of the same shard, which names its lock and its pins
    num_bytes: int
    used_ns: int


class Evictor:
    """Keeps the folders of remote datasets within `limit_bytes` (None: until the disk is full). Thread-safe.

    The limit holds for all processes together, since each counts what lies on disk, unfinished files included; each
    shard that is being downloaded or decompressed at the moment may pass it by its own size.
    """

    def __init__(self, limit_bytes: int | None) -> None:
        self.limit_bytes = limit_bytes
        self.num_evicted = 0
        self._folders: set[Path] = set()
        self._pins: Counter[Path] = Counter()
        self._lock = threading.Lock()

    def add_folder(self, folder: Path) -> None:
        """Counts and evicts the shards of `folder` from now on."""
        self._folders.add(folder)

    def pin(self, path: Path) -> None:
        """Protects `path` from eviction by this process until unpinned as often."""
        with self._lock:
            self._pins[path] += 1

    def unpin(self, path: Path) -> None:
        """Takes one pin back."""
        with self._lock:
            self._pins[path] -= 1
            if self._pins[path] <= 0:
                del self._pins[path]

    def make_room(self, spec: ObjectSpec, deadline: Deadline) -> None:
        """Evicts until `spec` fits under the limit, waiting for peers that are making shards.

        Raises CacheFull when pinned files leave no room, or when `deadline` has passed.
        """
        if self.limit_bytes is None:
            return
        while True:
            with self._lock:
                entries = [entry for entry in self._entries() if entry.raw != spec.raw]
                excess = sum(entry.num_bytes for entry in entries) + spec.peak_bytes - self.limit_bytes
                if excess <= 0 or self._evict(entries, excess) >= excess:
                    return
                pinned_bytes = sum(entry.num_bytes for entry in entries if entry.raw in self._pins)
            # Outside `_lock`, which other threads need to unpin.
            if pinned_bytes + spec.peak_bytes > self.limit_bytes or not deadline.wait():
                raise CacheFull(
                    f"{spec.label}: needs {spec.peak_bytes} bytes, but the shards in use fill the cache limit of "
                    f"{self.limit_bytes} bytes.\n  Raise the cache limit, or use fewer lanes or a smaller read-ahead."
                )

    def relieve(self, spec: ObjectSpec, deadline: Deadline) -> None:
        """After the disk was full: evicts enough for `spec`, or waits a moment for peers that are making shards.

        Raises CacheFull when nothing may be deleted and no peer is at work, or when `deadline` has passed.
        """
        with self._lock:
            entries = list(self._entries())
            if self._evict(entries, max(spec.peak_bytes, 1)) > 0:
                return
            peers = any(entry.raw not in self._pins and entry.raw != spec.raw for entry in entries)
        if not (peers and deadline.wait()):
            free_bytes = shutil.disk_usage(spec.raw.parent).free
            raise CacheFull(
                f"{spec.label}: needs {spec.peak_bytes} bytes, but {spec.raw.parent} has {free_bytes} free and "
                "nothing left to evict.\n  Free disk space, or put the cache on a larger disk."
            )

    def check_fits(self, specs: Iterable[ObjectSpec]) -> None:
        """Raises ConfigError when the limit, or the disk with everything evicted, is smaller than one of `specs`."""
        with self._lock:
            evictable_bytes = sum(entry.num_bytes for entry in self._entries() if entry.raw not in self._pins)
        for spec in specs:
            need_bytes, folder = spec.peak_bytes, spec.raw.parent
            # Up to half of the limit is for open shards (dataset.py), which are not evicted, the rest for the next one.
            if self.limit_bytes is not None and spec.remote is not None and self.limit_bytes < 2 * need_bytes:
                raise ConfigError(
                    f"{spec.label}: one shard needs {need_bytes} bytes but the cache limit is {self.limit_bytes}, and "
                    f"two must fit.\n  Set the cache limit to several shards, at least {2 * need_bytes}."
                )
            free_bytes = shutil.disk_usage(folder).free + evictable_bytes
            if free_bytes < need_bytes and not spec.raw.exists():
                raise ConfigError(
                    f"{spec.label}: one shard needs {need_bytes} bytes but {folder} has {free_bytes} free.\n"
                    "  Free disk space, or choose a local folder on a larger disk."
                )

    def _evict(self, entries: list[_Entry], need_bytes: int) -> int:
        freed_bytes = 0
        for entry in sorted(entries, key=lambda entry: entry.used_ns):
            if freed_bytes >= need_bytes:
                break
            if entry.raw in self._pins:
                continue
            with lock_if_free(lock_path(entry.raw)) as held:  # else a peer makes it, or it is the one to be made
                if held:
                    with suppress(FileNotFoundError):
                        entry.path.unlink()
                        self.num_evicted += 1
                    freed_bytes += entry.num_bytes
        return freed_bytes

    def _entries(self) -> Iterable[_Entry]:
        for folder in list(self._folders):
            yield from _shard_files(folder, folder)
            yield from _shard_files(folder / TEMP_DIR, folder)


def touch(path: Path, status: os.stat_result) -> None:
    """Marks `path` as just used; its modification time stays. A file that is gone or not ours is left alone."""
    with suppress(FileNotFoundError, PermissionError):
        os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))


def _shard_files(folder: Path, home: Path) -> Iterable[_Entry]:
    """Shards whose raw files belong in `home`: raw, stored, unfinished or set aside. Other files do not count."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if shard := SHARD.match(entry.name):
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    yield _Entry(Path(entry.path), home / shard[1], status.st_size, status.st_atime_ns)
