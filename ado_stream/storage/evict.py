"""Eviction: the files of the cache, which of them may be deleted, and the byte limit.

Invariants: only files that can be downloaded again are deleted, never a pinned one, never one whose lock is held (so an
unfinished file is deleted only when its maker died); deleting is unlink, so an open or mapped file stays readable.
Order: least recently used first. A use sets the file's access time (os.utime), which every process sees; where the
clock was set back, to the latest time seen.

Folders are scanned once; from then on a download costs the same whatever the number of files. Bytes: each process adds
what it reserves, makes and deletes to the folder's account, a file of int64 changes that only grows (appends need no
lock), and reads there what others added. Order: a heap of the times found by the scan; a file that was used since is
put back when it is popped. Files that others made since are newer than all of it. When the heap has nothing left
to delete, or as many files were deleted as it had, the folders are scanned again, which also corrects the accounts of
processes that were killed.
"""

import heapq
import os
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import numpy as np

from ado_stream.durable import private_folder
from ado_stream.errors import CacheFull, ConfigError
from ado_stream.storage.complete_file import TEMP_DIR
from ado_stream.storage.object_locks import LOCK_DIR, lock_if_free, lock_path
from ado_stream.storage.object_spec import ObjectSpec
from ado_stream.storage.retry import Deadline

SHARD = re.compile(r"(.*\.(?:mds|tokens))(\.|$)")
_CACHE_FOLDER = re.compile(r"[0-9a-f]{32}")  # named by open_indexes.py


class Evictor:
    """Keeps the folders of remote datasets within `limit_bytes` (None: until the disk is full). Thread-safe.

    The limit holds for all processes together, since each counts what is on disk, unfinished files included; each
    shard that is being downloaded or decompressed may exceed it by its own size.
    """

    def __init__(self, limit_bytes: int | None) -> None:
        self.limit_bytes = limit_bytes
        self.num_evicted = 0
        self._read_bytes: dict[Path, int] = {}  # by folder: of its account, so far
        self._total_bytes = 0
        self._queue: list[tuple[int, str]] = []  # heap of (access time in ns, file)
        self._size_bytes: dict[str, int] = {}
        self._until_scan = 0  # files to delete before the next scan
        self._latest_ns = 0
        self._pins: Counter[Path] = Counter()
        self._lock = threading.Lock()

    def add_folder(self, folder: Path) -> None:
        """Counts and evicts the shards of `folder` from now on, and of caches of other data beside it."""
        with self._lock:
            for each in [folder, *(path for path in folder.parent.iterdir() if _CACHE_FOLDER.fullmatch(path.name))]:
                self._read_bytes.setdefault(each, 0)
            self._until_scan = 0

    def pin(self, path: Path) -> None:
        """Protects `path` from eviction by this process until unpinned as often."""
        with self._lock:
            self._pins[path] += 1

    def unpin(self, path: Path) -> None:
        """Undoes one `pin`."""
        with self._lock:
            self._pins[path] -= 1
            if self._pins[path] <= 0:
                del self._pins[path]

    def touch(self, path: Path, status: os.stat_result) -> None:
        """Marks `path` as just used; its modification time stays. Skipped where the file is missing, another user's, or
        on a disk that takes no writes any more."""
        with suppress(OSError):
            # Set here: reading a map does not, nor mounts with noatime. The modification time is part of the identity
            # of a checked file (node_cache.py).
            os.utime(path, ns=(self._now_ns(), status.st_mtime_ns))

    @contextmanager
    def reserve(self, spec: ObjectSpec, deadline: Deadline) -> Iterator[None]:
        """Reserves disk space for `spec` while this block makes it, then counts the file that was made.

        Evicts, and waits for peers that are making shards. Raises CacheFull when pinned files leave too little, or when
        `deadline` has passed.
        """
        while not self._try_to_reserve(spec):
            with self._lock:
                pinned_bytes = sum(self._size_bytes.get(str(path), 0) for path in self._pins)
            if pinned_bytes + spec.peak_bytes > (self.limit_bytes or 0) or not deadline.wait():
                raise CacheFull(
                    f"{spec.label}: needs {spec.peak_bytes} bytes, but the shards in use fill the cache limit of "
                    f"{self.limit_bytes} bytes.\n  Raise the cache limit, or use fewer lanes or a smaller read-ahead."
                )
        try:
            yield
        finally:
            with self._lock:
                made_bytes = os.path.getsize(spec.raw) if spec.raw.exists() else 0
                # What was reserved and not used: all of it after a failure, the stored file's bytes after unpacking.
                self._record(spec.raw.parent, made_bytes - spec.peak_bytes)
                if made_bytes:
                    self._size_bytes[str(spec.raw)] = made_bytes
                    heapq.heappush(self._queue, (self._now_ns(), str(spec.raw)))

    def make_room(self, spec: ObjectSpec, deadline: Deadline) -> None:
        """After the disk was full: evicts enough for `spec`, or waits briefly for peers that are making shards.

        Raises CacheFull when nothing may be deleted and no peer is making a shard, or when `deadline` has passed.
        """
        with self._lock:
            if self._evict(max(spec.peak_bytes, 1), spec) > 0 and not deadline.passed:
                return
            raws = map(_raw, self._size_bytes)  # of the scan that found nothing to delete
            peers = any(raw not in self._pins and raw != spec.raw for raw in raws)
        if not (peers and deadline.wait()):
            free_bytes = shutil.disk_usage(spec.raw.parent).free
            raise CacheFull(
                f"{spec.label}: needs {spec.peak_bytes} bytes, but {spec.raw.parent} has {free_bytes} free and "
                "nothing left to evict.\n  Free disk space, or put the cache on a larger disk."
            )

    def check_fits(self, specs: Iterable[ObjectSpec]) -> None:
        """Raises ConfigError when the limit, or the disk with everything evicted, is smaller than one of `specs`."""
        for spec in specs:
            need_bytes, folder = spec.peak_bytes, spec.raw.parent
            # Up to half of the limit is for open shards (dataset.py), which are not evicted, the rest for the next one.
            if self.limit_bytes is not None and spec.remote is not None and self.limit_bytes < 2 * need_bytes:
                raise ConfigError(
                    f"{spec.label}: one shard needs {need_bytes} bytes but the cache limit is {self.limit_bytes}, and "
                    f"two must fit.\n  Set the cache limit to several shards, at least {2 * need_bytes}."
                )
            free_bytes = shutil.disk_usage(folder).free
            if free_bytes < need_bytes:
                free_bytes += self._evictable_bytes()
            if free_bytes < need_bytes and not spec.raw.exists():
                raise ConfigError(
                    f"{spec.label}: one shard needs {need_bytes} bytes but {folder} has {free_bytes} free.\n"
                    "  Free disk space, or choose a local folder on a larger disk."
                )

    def _try_to_reserve(self, spec: ObjectSpec) -> bool:
        """Adds `spec` to the account of its folder if it fits, or can be made to."""
        with self._lock:
            if self.limit_bytes is not None:
                if self._until_scan <= 0:
                    self._scan()
                self._read_accounts()
                excess = self._total_bytes + spec.peak_bytes - self.limit_bytes
                if excess > 0 and self._evict(excess, spec) < excess:
                    return False
            self._record(spec.raw.parent, spec.peak_bytes)
            return True

    def _evict(self, need_bytes: int, spec: ObjectSpec) -> int:
        """Deletes files, the least recently used first, until `need_bytes` are freed; returns how many were."""
        freed_bytes = self._evict_queued(need_bytes, spec)
        if freed_bytes < need_bytes:
            self._scan()
            freed_bytes += self._evict_queued(need_bytes - freed_bytes, spec)
        return freed_bytes

    def _evict_queued(self, need_bytes: int, spec: ObjectSpec) -> int:
        freed_bytes, kept = 0, []
        for _ in range(len(self._queue)):  # each file once at most: those used since are put back
            if freed_bytes >= need_bytes:
                break
            used_ns, path = heapq.heappop(self._queue)
            raw = _raw(path)
            with suppress(FileNotFoundError):
                status = os.lstat(path)
                if status.st_atime_ns > used_ns:
                    heapq.heappush(self._queue, (status.st_atime_ns, path))
                elif raw in self._pins or raw == spec.raw:
                    kept.append(path)
                else:
                    # Only tried: this thread holds the lock of `spec`, and a maker of this file may wait for that one.
                    with lock_if_free(lock_path(raw)) as held:  # else a peer makes it
                        if held:
                            os.unlink(path)
                            self.num_evicted += 1
                            self._until_scan -= 1
                            freed_bytes += status.st_size
                            self._record(_home(path), -status.st_size)
                        else:
                            kept.append(path)
                    if held:
                        self._size_bytes.pop(path, None)
                continue
            self._size_bytes.pop(path, None)  # deleted by a peer, who has recorded it
        for path in kept:  # in use: to the end of the queue
            heapq.heappush(self._queue, (self._now_ns(), path))
        return freed_bytes

    def _scan(self) -> None:
        self._queue, self._size_bytes = [], {}
        for folder in self._read_bytes:
            self._read_bytes[folder] = _account_bytes(folder)
            for home in (folder, folder / TEMP_DIR):
                for path, status in _shard_files(home):
                    self._queue.append((status.st_atime_ns, path))
                    self._size_bytes[path] = status.st_size
        heapq.heapify(self._queue)
        self._latest_ns = max([self._latest_ns, *(used_ns for used_ns, _ in self._queue)])
        self._total_bytes = sum(self._size_bytes.values())
        self._until_scan = max(len(self._queue), 1000)  # at least 1000: a scan's cost is shared by as many deletions

    def _read_accounts(self) -> None:
        for folder, read_bytes in self._read_bytes.items():
            num_bytes = _account_bytes(folder)
            if num_bytes > read_bytes:
                with open(_account(folder), "rb", buffering=0) as file:
                    changes = os.pread(file.fileno(), num_bytes - read_bytes, read_bytes)
                self._total_bytes += int(np.frombuffer(changes, np.int64).sum())
                self._read_bytes[folder] = num_bytes

    def _record(self, folder: Path, num_bytes: int) -> None:
        path = _account(folder)
        try:
            private_folder(path.parent)
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, np.int64(num_bytes).tobytes())
            finally:
                os.close(descriptor)
        except OSError:  # a full disk, for instance: count what is there instead
            self._until_scan = 0

    def _now_ns(self) -> int:
        """The time of a use: after all others that this process has set or seen, also where the clock was set back."""
        self._latest_ns = max(time.time_ns(), self._latest_ns + 1)
        return self._latest_ns

    def _evictable_bytes(self) -> int:
        with self._lock:
            self._scan()
            return sum(size for path, size in self._size_bytes.items() if _raw(path) not in self._pins)


@cache  # each download asks for that of every folder
def _account(folder: Path) -> Path:
    return folder / LOCK_DIR / "account"


def _account_bytes(folder: Path) -> int:
    try:
        return os.stat(_account(folder)).st_size // 8 * 8  # a peer's last entry may be partly written
    except FileNotFoundError:
        return 0


def _home(path: str) -> Path:
    """The cache folder of a file in it or in its folder of unfinished files."""
    folder = Path(path).parent
    return folder.parent if folder.name == TEMP_DIR else folder


def _raw(path: str) -> Path:
    """The raw file of the same shard, which names its lock and its pins."""
    shard = SHARD.match(os.path.basename(path))
    assert shard is not None
    return _home(path) / shard[1]


def _shard_files(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Files of shards: raw, stored, unfinished or set aside. Other files do not count."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if SHARD.match(entry.name):
                with suppress(FileNotFoundError):
                    yield entry.path, entry.stat(follow_symlinks=False)
