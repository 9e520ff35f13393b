"""The cache of a node: any object of a data set, verified, on the local disk; files and advisory locks only.

Invariants (docs/design.md, promises 10 and 11)
- A path that `fetch` returns held, when it was checked, exactly the bytes of the index; a file found on disk is checked
  before its first use in this process; a bad one is set aside and fetched again, at most `max_downloads` times.
- `map` maps the file that was checked, not one that has replaced it under its name.
- Per object one lock that the kernel drops when its holder dies: any number of threads, ranks and jobs on a machine
  share the cache, and each object is downloaded once.
- Objects without a remote are never deleted, renamed or evicted.
"""

import mmap
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ado_stream.durable import DiskError, disk_errors, private_folder
from ado_stream.errors import CacheFull, ConfigError, DataError, NotFound, ShardCorrupt
from ado_stream.regular_files import open_regular
from ado_stream.storage.complete_file import quarantine, remove_free_leftovers, remove_leftovers
from ado_stream.storage.decompress import decompress
from ado_stream.storage.download import download, local_path, object_version
from ado_stream.storage.evict import Evictor
from ado_stream.storage.object_locks import object_lock
from ado_stream.storage.object_spec import Fetched, ObjectSpec
from ado_stream.storage.retry import Deadline, RetryPolicy
from ado_stream.storage.verify import ContentError, Mismatch, check_file, check_sealed
from ado_stream.visible import visible

T = TypeVar("T")
_DISK = "Check the disk, the permissions, and what is mounted there."
_NO_REMOTE = "on disk, and there is no remote to fetch it from"
_Identity = tuple[int, int, int]


class NodeCache:
    """Verified local files for ObjectSpecs; thread-safe, and safe among processes on one machine.

    Args:
        limit_bytes: disk that all remote datasets of this cache may use together; None: until the disk is full.
        retry: bounds of every download.
    """

    def __init__(self, limit_bytes: int | None = None, retry: RetryPolicy | None = None) -> None:
        if limit_bytes is not None and not (type(limit_bytes) is int and limit_bytes > 0):
            raise ConfigError(f"cache limit {limit_bytes!r}: must be a positive number of bytes, or None for all.")
        self.retry = retry or RetryPolicy()
        self._evictor = Evictor(limit_bytes)
        self._verified: dict[Path, _Identity] = {}
        self._done: set[tuple[str, Path]] = set()  # what was done once for a folder
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(("hits", "misses", "downloaded_bytes", "retries", "refetches"), 0)

    def fetch(self, spec: ObjectSpec, stop: threading.Event | None = None) -> Fetched:
        """The raw file of `spec`, verified; blocks until it is on the disk, bounded by the retry policy.

        Raises:
            ShardCorrupt: the content differs from the index after every download.
            NotFound, AccessDenied, Throttled, StorageError, CacheFull: the store or the disk failed.
            StoppedError: `stop` was set.
        """
        with disk_errors(spec.raw, _DISK):
            return self._fetch(spec, stop)

    def _fetch(self, spec: ObjectSpec, stop: threading.Event | None) -> Fetched:
        started = time.monotonic()
        # The fast paths take no lock: files appear complete. Under the lock both are tried again, since a peer may have
        # made the file while this process waited.
        downloaded_bytes = 0
        spec = _without_own_remote(spec)
        if not self._is_verified(spec):
            self._warn_without_hashes(spec)
            if not self._accept_raw(spec):
                self._prepare_folder(spec)
                # Its holder may download several times, and each download ends one read timeout late.
                longest_s = (self.retry.total_deadline_s + self.retry.read_timeout_s) * self.retry.max_downloads
                with object_lock(spec.raw, Deadline(longest_s, spec.where, stop)):
                    downloaded_bytes = self._make_despite_removals(spec, stop)
        self._count(
            hits=int(downloaded_bytes == 0), misses=int(downloaded_bytes > 0), downloaded_bytes=downloaded_bytes
        )
        return Fetched(spec.raw, downloaded_bytes, downloaded_bytes == 0, time.monotonic() - started)

    def pin(self, spec: ObjectSpec) -> None:
        """Keeps `spec` from eviction by this process until `unpin`; counted."""
        self._evictor.pin(spec.raw)

    def unpin(self, spec: ObjectSpec) -> None:
        """Undoes one `pin`."""
        self._evictor.unpin(spec.raw)

    def check_fits(self, specs: Iterable[ObjectSpec]) -> None:
        """Checks before anything is downloaded that every object can be cached.

        Raises ConfigError when a folder cannot be written, or the limit or the disk is smaller than one object.
        """
        largest: dict[Path, ObjectSpec] = {}
        for spec in map(_without_own_remote, specs):
            folder = spec.raw.parent
            written = spec.remote is not None or (spec.compressed and not spec.raw.is_file())
            if written and (folder not in largest or spec.peak_bytes > largest[folder].peak_bytes):
                largest[folder] = spec
        for folder, spec in largest.items():
            self._prepare_folder(spec)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise ConfigError(
                    f"{folder}: not writable, but {spec.label} is cached there.\n  Choose another local folder."
                )
        self._evictor.check_fits(largest.values())

    def map(self, spec: ObjectSpec, stop: threading.Event | None = None) -> tuple[memoryview, Fetched]:
        """The object's bytes, mapped, and the result of `fetch`; they stay readable when the file is evicted.

        Another process may evict or replace the file between fetching and mapping; then it is fetched again, until the
        total deadline. Raises as `fetch`, and CacheFull when that happens every time.
        """
        deadline = Deadline(self.retry.total_deadline_s, spec.where, stop)
        while True:
            fetched = self.fetch(spec, stop)
            with disk_errors(fetched.path, _DISK), suppress(FileNotFoundError), open_regular(fetched.path) as file:
                status = os.fstat(file.fileno())
                if _identity(status) == self._verified.get(fetched.path):
                    if status.st_size == 0:
                        raise ShardCorrupt(
                            f"{spec.where}: {spec.label} is empty, as index.json says. Rewrite the shard."
                        )
                    return _mapped(file.fileno(), spec), fetched
            if not deadline.wait():
                raise CacheFull(
                    f"{spec.label}: other processes evicted or replaced it for {deadline.seconds:.0f} s "
                    "before it could be read.\n"
                    "  Raise the cache limit: the jobs on this machine need more shards at once than it allows."
                )

    def statistics(self) -> dict[str, int]:
        """Counts since the start: hits, misses, downloaded_bytes, retries, refetches, evictions."""
        with self._lock:
            return {**self._counts, "evictions": self._evictor.num_evicted}

    def _is_verified(self, spec: ObjectSpec) -> bool:
        """Whether the file on disk is the one this process has checked; marks it as used."""
        try:
            status = os.stat(spec.raw)
        except FileNotFoundError:
            return False
        if self._verified.get(spec.raw) != _identity(status):
            return False
        self._touch(spec, status)
        return True

    def _accept_raw(self, spec: ObjectSpec) -> bool:
        """Whether a raw file found on disk is good. Needs no lock: files appear complete, and it writes nothing.

        Raises ShardCorrupt or NotFound when it is not and there is nothing to make it from.
        """
        last_chance = spec.remote is None and not (spec.compressed and spec.stored.is_file())
        try:
            status = os.stat(spec.raw)  # before the check: a file that replaces it later must be checked again
            mismatch = _check_raw(spec)
            if mismatch is None:
                self._accept(spec, status)
                return True
        except FileNotFoundError:
            if last_chance:
                raise NotFound(f"{spec.raw}: {spec.label} is not there and has no remote.\n  Check `local`.") from None
            return False
        if last_chance:
            raise _corrupt(spec, mismatch, _NO_REMOTE)
        return False

    def _make_despite_removals(self, spec: ObjectSpec, stop: threading.Event | None) -> int:
        """As `_make`, again where another host, whose locks do not reach here, removed a file meanwhile."""
        for _ in range(1, self.retry.max_downloads):
            try:
                with disk_errors(spec.raw, _DISK):
                    return self._make(spec, stop)
            except DiskError as error:
                if not error.gone:
                    raise
                self._count(refetches=1)
        return self._make(spec, stop)

    def _make(self, spec: ObjectSpec, stop: threading.Event | None) -> int:
        """Makes spec.raw, under its lock; returns the bytes downloaded."""
        if self._is_verified(spec) or self._accept_raw(spec):  # made by another process before the lock was free
            return 0
        # This process holds the lock, so unfinished files of the object were left by a killed one.
        remove_leftovers(spec.raw)
        remove_leftovers(spec.stored)
        if spec.raw.exists():
            self._set_aside(spec, spec.raw)
        if spec.compressed and spec.stored.exists():
            try:
                mismatch = check_file(spec.stored, spec.stored_bytes, spec.stored_hashes)
                if mismatch is not None:
                    raise ContentError(mismatch)
                self._unpack(spec, stop)
                return 0
            except ContentError as error:
                if spec.remote is None:
                    raise _corrupt(spec, error.mismatch, _NO_REMOTE) from error
                self._set_aside(spec, spec.stored)
        assert spec.remote is not None
        with self._evictor.reserve(spec, Deadline(self.retry.total_deadline_s, spec.where, stop)):
            return self._download_until_good(spec, spec.remote, stop)

    def _download_until_good(self, spec: ObjectSpec, remote: str, stop: threading.Event | None) -> int:
        for _ in range(self.retry.max_downloads):
            try:
                got = self._with_room(
                    spec,
                    lambda: download(
                        remote,
                        spec.stored,
                        expected_bytes=spec.stored_bytes if spec.compressed else spec.raw_bytes,
                        hashes=spec.stored_hashes if spec.compressed else spec.raw_hashes,
                        retry=replace(self.retry, stop=stop),
                        part=spec.part,
                        seal=spec.part is not None,
                    ),
                    stop,
                )
                self._count(retries=got.attempts - 1)
                if spec.compressed:
                    self._unpack(spec, stop)
                else:
                    self._accept(spec, got.status)
                return got.num_bytes
            except ContentError as error:
                if spec.stored.exists():  # good as stored, bad as unpacked: a bad download never gets its name
                    self._set_aside(spec, spec.stored)
                else:
                    self._count(refetches=1)
                mismatch = error.mismatch
        raise _corrupt(spec, mismatch, f"after {self.retry.max_downloads} downloads")

    def _unpack(self, spec: ObjectSpec, stop: threading.Event | None) -> None:
        """Makes spec.raw from a verified spec.stored, which is deleted then if the remote has it too."""
        self._accept(spec, self._with_room(spec, lambda: decompress(spec, stop), stop))
        if spec.remote is not None:
            spec.stored.unlink(missing_ok=True)

    def _with_room(self, spec: ObjectSpec, write: Callable[[], T], stop: threading.Event | None) -> T:
        """The result of `write`, repeated while the disk is full and room can be made."""
        deadline = Deadline(self.retry.total_deadline_s, spec.where, stop)
        while True:
            try:
                return write()
            except DiskError as error:
                if not error.full:
                    raise
                self._evictor.make_room(spec, deadline)

    def _accept(self, spec: ObjectSpec, status: os.stat_result) -> None:
        self._verified[spec.raw] = _identity(status)
        self._touch(spec, status)

    def _touch(self, spec: ObjectSpec, status: os.stat_result) -> None:
        if spec.remote is not None:
            self._evictor.touch(spec.raw, status)

    def _set_aside(self, spec: ObjectSpec, path: Path) -> None:
        """Quarantines a bad file that can be downloaded again; a file without a remote stays where it is."""
        if spec.remote is not None:
            quarantine(path)
            self._count(refetches=1)

    def _prepare_folder(self, spec: ObjectSpec) -> None:
        """Once per folder: makes it, registers it for eviction, removes what killed processes left."""
        folder = spec.raw.parent
        if not self._is_first("prepare", folder):
            return
        try:
            if spec.remote is not None:
                private_folder(folder)
            else:
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{folder}: cannot be made ({error.strerror}).\n  Choose a local folder that is writable."
            ) from error
        if spec.remote is not None:
            self._evictor.add_folder(folder)
            remove_free_leftovers(folder)

    def _warn_without_hashes(self, spec: ObjectSpec) -> None:
        hashes = spec.raw_hashes or spec.stored_hashes
        bare = spec.raw_bytes is not None and spec.part is None and not hashes
        if bare and self._is_first("warn", spec.raw.parent):
            warnings.warn(
                f"{visible(spec.where)}: the index holds no hashes, so only sizes are checked.\n"
                "  Write the shards with hashes=['xxh64'].",
                UserWarning,
                stacklevel=4,
            )

    def _is_first(self, what: str, folder: Path) -> bool:
        """Whether this is the first call for `what` and `folder`."""
        with self._lock:
            first = (what, folder) not in self._done
            self._done.add((what, folder))
            return first

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, value in more.items():
                self._counts[name] += value


def _check_raw(spec: ObjectSpec) -> Mismatch | None:
    """What differs between the file on disk and the index. Raises DataError for a file in place that was replaced."""
    if spec.part is None:
        return check_file(spec.raw, spec.raw_bytes, spec.raw_hashes)
    if spec.remote is not None:
        return check_sealed(spec.raw, spec.raw_bytes or 0)
    if object_version(str(spec.raw)) != spec.part.version:
        raise DataError(
            f"{spec.label}: {spec.raw} was replaced or changed since it was opened.\n"
            "  Open the data again; a saved state of the old data does not fit the new."
        )
    return None


def _mapped(descriptor: int, spec: ObjectSpec) -> memoryview:
    begin, size = (spec.part.begin if spec.part and spec.remote is None else 0), spec.raw_bytes
    aligned = begin // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    length = 0 if size is None else begin - aligned + size  # 0: to the end
    return memoryview(mmap.mmap(descriptor, length, access=mmap.ACCESS_READ, offset=aligned))[begin - aligned :]


def _identity(status: os.stat_result) -> _Identity:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _corrupt(spec: ObjectSpec, mismatch: Mismatch, when: str) -> ShardCorrupt:
    folder = spec.where.rpartition("/")[0]
    return ShardCorrupt(
        f"{spec.where}: {spec.label}: {mismatch} {when}.\n"
        f"  The object is damaged or index.json is stale. Rewrite the shard, or run `ado-stream lint {folder}`."
    )


def _without_own_remote(spec: ObjectSpec) -> ObjectSpec:
    """`spec`, without its remote where that is the same file on this disk, which must never be evicted or renamed."""
    source = local_path(spec.remote) if spec.remote is not None else None
    if source is not None and os.path.realpath(source) == os.path.realpath(spec.stored):
        return replace(spec, remote=None)
    return spec
