"""Fetches the next shards of every domain before they are needed, most urgent first.

The future order of each lane is known, and so are the shards of its next samples: a domain with share p needs sample
number i of a lane in about i C / (p B) steps. A small pool of threads fetches shards in the order of these steps,
within a budget of bytes in flight and, where the cache is limited, of bytes fetched but not yet opened. A shard that
the reader waits for precedes all others and ignores both budgets.

Invariant: the first failure of any fetch is kept and raised to the reader.

Threads: the reader calls `follow`, `fetch` and `release`; pool threads run `_fetched`. One lock guards what both use.
It is reentrant because a future that is done when its callback is added runs it at once, in `_start`'s thread.
"""

import heapq
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import numpy as np

from ado_stream.errors import StorageError
from ado_stream.storage.node_cache import NodeCache
from ado_stream.storage.object_spec import Fetched
from ado_stream.storage.parallel_reads import DaemonThreads
from ado_stream.stream import numba_order
from ado_stream.stream.sample_index import SampleIndex
from ado_stream.stream.sample_order import SampleOrder
from ado_stream.stream.stream_statistics import StreamStatistics
from ado_stream.value_types import Floats, Ints

_POLL_S = 0.2  # between checks of the deadline
_IDS_AT_ONCE = 1 << 20
_LEAST_CAP = 1 << 16
_NOW = -1.0  # steps until needed, of a shard that the reader waits for


@dataclass(frozen=True)
class LookaheadLimits:
    """How far and how wide to fetch ahead, and how long the reader waits for one shard."""

    samples: int  # of the mixture
    flight_bytes: int  # being fetched
    unopened_bytes: int  # being fetched, or fetched and not yet opened
    threads: int
    timeout_s: float


class Lookahead:
    """Keeps the shards of the next `limits.samples` samples on the local disk, for the lanes in `lanes`.

    A ShardTable's fetcher. limits.threads 0: nothing is fetched ahead; a shard is fetched when it is opened.
    """

    def __init__(
        self,
        indexes: Sequence[SampleIndex],
        cache: NodeCache,
        orders: Sequence[SampleOrder],
        lanes: range,
        limits: LookaheadLimits,
        statistics: StreamStatistics,
    ):
        self._indexes, self._cache, self._orders, self._lanes, self._limits = indexes, cache, orders, lanes, limits
        self._statistics = statistics
        self._pool = DaemonThreads(limits.threads, "ado-fetch") if limits.threads else None
        self.stop = threading.Event()  # ends every fetch and wait
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)  # a fetch ended, or `close` was called
        self._waiting: list[tuple[float, int, int]] = []  # (steps until needed, domain, shard)
        self._futures: dict[tuple[int, int], Future[Fetched]] = {}
        self._open: set[tuple[int, int]] = set()  # shards that the reader has opened, or is opening
        self._num_shards = sum(int((index.samples_S > 0).sum()) for index in indexes)
        self._num_flying = self._flight_bytes = self._unopened_bytes = 0
        # The most samples requested ahead of a lane: an epoch has all its shards; of a small domain several epochs,
        # since requests that end where the last ended would be made at every step.
        self._most_K = np.array([max(order.num_samples // order.num_lanes + 1, _LEAST_CAP) for order in orders])
        self._until_KL = np.zeros((len(orders), len(lanes)), np.int64)
        self.failure: BaseException | None = None

    def follow(self, cursors_KC: Ints, mixture_K: Floats, batch_size: int) -> None:
        """Requests the shards of every lane's next samples, given the cursors and the mixture of the step to come."""
        if self._pool is None or len(self._open) == self._num_shards:
            return
        num_lanes = cursors_KC.shape[1]
        cursor_KL = cursors_KC[:, self._lanes.start : self._lanes.stop]
        wanted_K = np.ceil(mixture_K * (self._limits.samples / num_lanes))
        wanted_K = np.minimum(wanted_K, self._most_K).astype(np.int64) + 1
        for group in numba_order.short_groups(cursor_KL, wanted_K, self._until_KL).tolist():
            domain, column = divmod(group, len(self._lanes))
            rate = max(mixture_K[domain], 1e-9) * batch_size / num_lanes  # samples a step; without a share: last of all
            self._request_ahead(domain, column, int(cursor_KL[domain, column]), int(wanted_K[domain]), rate)
        if self._waiting:
            self._pump()

    def fetch(self, domain: int, shard: int) -> None:
        """Returns when the shard is verified on the local disk; it precedes every shard requested ahead."""
        started = time.monotonic()
        with self._lock:
            self._open.add((domain, shard))
        if self._pool is None:
            fetched = self._cache.fetch(self._indexes[domain].spec(shard), self.stop)
        else:
            self._request(_NOW, domain, shard)
            self._pump()
            fetched = self._wait(domain, shard)
        self._statistics.count_fetch(domain, fetched, time.monotonic() - started)

    def release(self, domain: int, shard: int) -> None:
        """The reader has closed the shard: it may be fetched ahead again."""
        with self._lock:
            self._open.discard((domain, shard))

    def request_stop(self) -> None:
        """Makes every fetch and thread end soon."""
        self.stop.set()
        if self._pool is not None:
            self._pool.end()

    def join(self, timeout_s: float) -> None:
        """Waits for the threads, at most so long."""
        if self._pool is not None:
            self._pool.join(timeout_s)

    def close(self) -> None:
        """Stops every fetch and waits for its threads; a fetch checks `stop` between two reads."""
        self.stop.set()
        with self._changed:
            self._waiting.clear()
            self._changed.notify_all()
        # Outside the lock: a pool thread needs it to finish.
        if self._pool is not None:
            self._pool.shutdown()

    def _request_ahead(self, domain: int, column: int, cursor: int, wanted: int, rate: float) -> None:
        """Requests the shards of a lane's samples up to `cursor + wanted`, each for when its first sample is due."""
        past, end = int(self._until_KL[domain, column]), cursor + wanted
        self._until_KL[domain, column] = end
        for begin in range(past, end, _IDS_AT_ONCE):
            ids_N = self._orders[domain].ids(self._lanes[column], begin, min(_IDS_AT_ONCE, end - begin))
            shard_N, first_N = np.unique(self._indexes[domain].shards_at(ids_N), return_index=True)
            due_N = (begin - cursor + first_N) / rate
            for shard, due in zip(shard_N.tolist(), due_N.tolist(), strict=True):
                self._request(due, domain, shard)

    def _request(self, due: float, domain: int, shard: int) -> None:
        with self._lock:
            heapq.heappush(self._waiting, (due, domain, shard))

    def _pump(self) -> None:
        """Starts requested fetches while threads are free and the budgets allow."""
        assert self._pool is not None
        with self._lock:
            while self._waiting and self._num_flying < self._limits.threads and not self.stop.is_set():
                due, domain, shard = self._waiting[0]
                if not self._may_start(due, self._size(domain, shard)):
                    return
                heapq.heappop(self._waiting)
                # A shard may be requested several times: by several lanes, ahead and now.
                key = (domain, shard)
                if key not in self._futures and (due == _NOW or key not in self._open):
                    self._start(domain, shard)

    def _may_start(self, due: float, size: int) -> bool:
        """Always for a shard that the reader waits for; one larger than a whole budget may be in flight alone."""
        over_flight = self._flight_bytes and self._flight_bytes + size > self._limits.flight_bytes
        over_unopened = self._unopened_bytes and self._unopened_bytes + size > self._limits.unopened_bytes
        return due == _NOW or not (over_flight or over_unopened)

    def _start(self, domain: int, shard: int) -> None:
        size = self._size(domain, shard)
        spec = self._indexes[domain].spec(shard)
        assert self._pool is not None
        future = self._pool.submit(partial(self._cache.fetch, spec, self.stop))
        self._futures[domain, shard] = future
        self._num_flying += 1
        self._flight_bytes += size
        self._unopened_bytes += size
        future.add_done_callback(lambda done: self._fetched(done, size))

    def _fetched(self, future: Future[Fetched], size: int) -> None:
        with self._changed:
            self._num_flying -= 1
            self._flight_bytes -= size
            if not future.cancelled() and future.exception() is not None and not self.stop.is_set():
                self.failure = self.failure or future.exception()
            self._changed.notify_all()
        if not self.stop.is_set():
            self._pump()

    def _size(self, domain: int, shard: int) -> int:
        return int(self._indexes[domain].raw_bytes_S[shard])

    def _wait(self, domain: int, shard: int) -> Fetched:
        key = (domain, shard)
        end = time.monotonic() + self._limits.timeout_s
        with self._changed:
            while not ((future := self._futures.get(key)) and future.done()):
                if self.failure is not None:
                    raise self.failure
                if self.stop.is_set():
                    raise StorageError("the stream was closed.")
                if time.monotonic() > end:
                    label = self._indexes[domain].spec(shard).label
                    raise StorageError(
                        f"{label}: not fetched within {self._limits.timeout_s:.0f} s. Is the store reachable?"
                    )
                self._changed.wait(_POLL_S)
            del self._futures[key]
            self._unopened_bytes -= self._size(domain, shard)
        if future.cancelled():  # by `close`
            raise StorageError("the stream was closed.")
        self._pump()
        return future.result()
