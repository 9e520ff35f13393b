"""The cache of a node: any object of a dataset, verified, on local disk; files and advisory locks only.

Invariants (DESIGN.md, promises 10 and 11)
- A path that `fetch` returns held, when it was checked, exactly the bytes of the index; a file found on disk is checked
  before its first use in this process; a bad one is set aside and fetched again, at most `max_downloads` times.
- Per object one lock that the kernel drops when its holder dies: any number of threads, ranks and jobs on a machine
  share the cache, and each object is downloaded once.
- Objects without a remote are never deleted, renamed or evicted.
"""

import mmap
import os
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from ado_stream.errors import CacheFull, ConfigError, NotFound, ShardCorrupt
from ado_stream.storage.decompress import decompress
from ado_stream.storage.download import download
from ado_stream.storage.evict import Evictor, touch
from ado_stream.storage.files import DiskError, object_lock, quarantine, remove_leftovers, remove_old_leftovers
from ado_stream.storage.retry import RetryPolicy, raise_if_stopped
from ado_stream.storage.spec import Fetched, ObjectSpec
from ado_stream.storage.verify import ContentError, Mismatch, check_file

T = TypeVar("T")
_Identity = tuple[int, int, int]


class NodeCache:
    """Verified local files for ObjectSpecs; thread-safe, and safe among processes on one machine.

    Args:
        limit_bytes: disk that all remote datasets of this cache may use together; None: until the disk is full.
        retry: bounds of every download.
    """

    def __init__(self, limit_bytes: int | None = None, retry: RetryPolicy | None = None) -> None:
        if limit_bytes is not None and limit_bytes <= 0:
            raise ConfigError(f"cache limit {limit_bytes} bytes: must be positive, or None for the whole disk.")
        self.retry = retry or RetryPolicy()
        self._evictor = Evictor(limit_bytes)
        self._verified: dict[Path, _Identity] = {}
        self._folders: set[Path] = set()
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(("hits", "misses", "downloaded_bytes", "retries", "refetches"), 0)

    def fetch(self, spec: ObjectSpec, stop: threading.Event | None = None) -> Fetched:
        """The raw file of `spec`, verified; blocks until it is there, bounded by the retry policy.

        Raises:
            ShardCorrupt: the content differs from the index after every download.
            NotFound, AccessDenied, Throttled, StorageError, CacheFull: the store or the disk failed.
            StoppedError: `stop` was set.
        """
        started = time.monotonic()
        downloaded_bytes = 0
        if not self._is_verified(spec):
            self._prepare_folder(spec)
            longest_s = (self.retry.total_deadline_s + self.retry.read_timeout_s) * self.retry.max_downloads
            with object_lock(spec.raw, longest_s, lambda: raise_if_stopped(stop, spec.where)):
                downloaded_bytes = self._make(spec, stop)
        self._count(
            hits=int(downloaded_bytes == 0), misses=int(downloaded_bytes > 0), downloaded_bytes=downloaded_bytes
        )
        return Fetched(spec.raw, downloaded_bytes, downloaded_bytes == 0, time.monotonic() - started)

    def pin(self, spec: ObjectSpec) -> None:
        """Keeps `spec` from eviction by this process until `unpin`; counted."""
        self._evictor.pin(spec.raw)

    def unpin(self, spec: ObjectSpec) -> None:
        """Takes back one `pin`."""
        self._evictor.unpin(spec.raw)

    def check_fits(self, specs: Iterable[ObjectSpec]) -> None:
        """Checks before anything is downloaded that every object can be cached.

        Raises ConfigError when a folder cannot be written, or the limit or the disk is smaller than one object.
        """
        largest: dict[Path, ObjectSpec] = {}
        for spec in specs:
            if spec.remote is None and not spec.compressed:
                continue
            folder = spec.raw.parent
            if folder not in largest or spec.peak_bytes > largest[folder].peak_bytes:
                largest[folder] = spec
        for folder, spec in largest.items():
            self._prepare_folder(spec)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise ConfigError(
                    f"{folder}: not writable, but {spec.label} is cached there.\n  Choose another local folder."
                )
        limit_bytes = self._evictor.limit_bytes
        evictable_bytes = self._evictor.evictable_bytes()
        for folder, spec in largest.items():
            free_bytes = shutil.disk_usage(folder).free + evictable_bytes
            if limit_bytes is not None and spec.remote is not None and limit_bytes < spec.peak_bytes:
                raise ConfigError(
                    f"{spec.label}: one shard needs {spec.peak_bytes} bytes but the cache limit is {limit_bytes}.\n"
                    f"  Set the cache limit to several shards, at least {spec.peak_bytes}."
                )
            if free_bytes < spec.peak_bytes and not spec.raw.exists():
                raise ConfigError(
                    f"{spec.label}: one shard needs {spec.peak_bytes} bytes but {folder} has {free_bytes} free.\n"
                    "  Free disk space, or choose a local folder on a larger disk."
                )

    def map(self, spec: ObjectSpec, stop: threading.Event | None = None) -> tuple[mmap.mmap, Fetched]:
        """A read-only map of the raw file, and what `fetch` said; the map stays readable when the file is evicted.

        A peer may evict between fetching and mapping; then the file is fetched again, `max_downloads` times at most.
        """
        for _ in range(self.retry.max_downloads):
            fetched = self.fetch(spec, stop)
            with suppress(FileNotFoundError), open(fetched.path, "rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), fetched
        raise CacheFull(
            f"{spec.label}: evicted by another process {self.retry.max_downloads} times before it could be read.\n"
            "  Raise the cache limit: the jobs on this machine need more shards at once than it allows."
        )

    def statistics(self) -> dict[str, int]:
        """Counts since the start: hits, misses, downloaded_bytes, retries, refetches, evictions."""
        with self._lock:
            return {**self._counts, "evictions": self._evictor.num_evicted}

    def _is_verified(self, spec: ObjectSpec) -> bool:
        """Whether the file on disk is the very one this process has checked; marks it as used."""
        try:
            status = os.stat(spec.raw)
        except FileNotFoundError:
            return False
        if self._verified.get(spec.raw) != _identity(status):
            return False
        touch(spec.raw, status)
        return True

    def _make(self, spec: ObjectSpec, stop: threading.Event | None) -> int:
        """Brings spec.raw into being, under its lock; returns the bytes downloaded."""
        if self._is_verified(spec):
            return 0
        remove_leftovers(spec.raw)
        remove_leftovers(spec.stored)
        try:
            if self._take_from_disk(spec, stop):
                return 0
        except ContentError as error:
            if spec.remote is None:
                raise _corrupt(spec, error.mismatch, "on disk, and there is no remote to fetch it from") from error
            self._count(refetches=1)
        if spec.remote is None:
            raise NotFound(
                f"{spec.stored}: {spec.label} does not exist and has no remote.\n  Check `local`, or give `remote`."
            )
        return self._download_until_good(spec, stop)

    def _take_from_disk(self, spec: ObjectSpec, stop: threading.Event | None) -> bool:
        """Whether files found on disk were good and gave spec.raw; raises ContentError where they were bad."""
        stored_found = spec.compressed and spec.stored.exists()
        if spec.raw.exists():
            mismatch = check_file(spec.raw, spec.raw_bytes, spec.raw_hashes)
            if mismatch is None:
                self._accept(spec)
                return True
            self._set_aside(spec, spec.raw)
            if not stored_found:
                raise ContentError(mismatch)
        if stored_found:
            mismatch = check_file(spec.stored, spec.stored_bytes, spec.stored_hashes)
            if mismatch is not None:
                self._set_aside(spec, spec.stored)
                raise ContentError(mismatch)
            self._unpack(spec, stop)
        return stored_found

    def _download_until_good(self, spec: ObjectSpec, stop: threading.Event | None) -> int:
        assert spec.remote is not None
        remote = spec.remote
        for _ in range(self.retry.max_downloads):
            try:
                got = self._with_room(
                    spec,
                    lambda: download(
                        remote,
                        spec.stored,
                        expected_bytes=spec.stored_bytes if spec.compressed else spec.raw_bytes,
                        hashes=spec.stored_hashes if spec.compressed else spec.raw_hashes,
                        retry=self.retry,
                        stop=stop,
                    ),
                )
                self._count(retries=got.attempts - 1)
                if spec.compressed:
                    self._unpack(spec, stop)
                else:
                    self._accept(spec)
                return got.num_bytes
            except ContentError as error:
                self._count(refetches=1)
                mismatch = error.mismatch
        raise _corrupt(spec, mismatch, f"after {self.retry.max_downloads} downloads")

    def _unpack(self, spec: ObjectSpec, stop: threading.Event | None) -> None:
        """Makes spec.raw from a verified spec.stored; raises ContentError, the stored file then being set aside."""
        try:
            self._with_room(spec, lambda: decompress(spec, stop))
        except ContentError:
            self._set_aside(spec, spec.stored)
            raise
        self._accept(spec)
        if spec.remote is not None:
            spec.stored.unlink(missing_ok=True)

    def _with_room(self, spec: ObjectSpec, write: Callable[[], T]) -> T:
        """The result of `write`, repeated for as long as the disk is full and something can be evicted."""
        if spec.remote is not None:
            self._evictor.make_room(spec)
        while True:
            try:
                return write()
            except DiskError as error:
                if not error.full:
                    raise
                self._evictor.relieve(spec)

    def _accept(self, spec: ObjectSpec) -> None:
        status = os.stat(spec.raw)
        self._verified[spec.raw] = _identity(status)
        touch(spec.raw, status)

    def _set_aside(self, spec: ObjectSpec, path: Path) -> None:
        """Quarantines a bad file that the remote can give again; a user's own file stays where it is."""
        if spec.remote is not None:
            quarantine(path)

    def _prepare_folder(self, spec: ObjectSpec) -> None:
        """On first sight of a folder: makes it, clears what killed processes left, warns of missing hashes."""
        folder = spec.raw.parent
        with self._lock:
            if folder in self._folders:
                return
            self._folders.add(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{folder}: cannot be made ({error.strerror}).\n  Choose a local folder that is writable."
            ) from error
        if spec.remote is not None:
            self._evictor.add_folder(folder)
            remove_old_leftovers(folder)
        if spec.raw_bytes is not None and not spec.raw_hashes and not spec.stored_hashes:
            warnings.warn(
                f"{spec.where}: the index holds no hashes, so only sizes are checked.\n"
                "  Write the shards with hashes=['xxh64'].",
                UserWarning,
                stacklevel=3,
            )

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, value in more.items():
                self._counts[name] += value


def _identity(status: os.stat_result) -> _Identity:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _corrupt(spec: ObjectSpec, mismatch: Mismatch, when: str) -> ShardCorrupt:
    folder = spec.where.rpartition("/")[0]
    return ShardCorrupt(
        f"{spec.where}: {spec.label}: {mismatch} {when}.\n"
        f"  The object is damaged or index.json is stale. Rewrite the shard, or run `ado-stream lint {folder}`."
    )
