"""Fetches the next shards of every domain before they are needed, most urgent first.

Each lane's future order is known, so the shards of its next samples are: a domain with share p needs its sample number
i of a lane in about i C / (p B) steps. Shards are fetched in that order by a small pool of threads, within a budget of
bytes in flight and, where the cache is limited, of bytes fetched but not yet opened. What the reader needs now goes
before everything else.

Invariant: the first failure of any fetch is kept and raised to the reader; nothing fails unseen.
"""

import heapq
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ado_stream.errors import StorageError
from ado_stream.storage.spec import Fetched
from ado_stream.stream import compiled
from ado_stream.stream.order import DomainOrder, StreamingOrder
from ado_stream.stream.shard_table import Shards
from ado_stream.stream.statistics import Statistics

_NOW = -1.0


@dataclass(frozen=True)
class LookaheadLimits:
    """How far and how wide to fetch ahead, and how long to wait for a shard that is needed now."""

    samples: int  # of the mixture
    flight_bytes: int  # being fetched
    unopened_bytes: int  # being fetched, or fetched and not yet opened
    threads: int
    timeout_s: float


class Lookahead:
    """Keeps `predownload` samples of the mixture's future on the local disk, for the lanes in `lanes`.

    threads 0: nothing runs ahead; a shard is fetched when it is read.
    """

    def __init__(
        self,
        shards: Shards,
        orders: Sequence[DomainOrder | StreamingOrder],
        lanes: range,
        limits: LookaheadLimits,
        statistics: Statistics,
    ):
        self._shards, self._orders, self._lanes, self._limits = shards, orders, lanes, limits
        self._statistics = statistics
        self._pool = ThreadPoolExecutor(limits.threads, "ado-fetch") if limits.threads else None
        self._stop = threading.Event()
        self._lock = threading.RLock()
        self._arrived = threading.Condition(self._lock)
        self._waiting: list[tuple[float, int, int]] = []  # (steps until needed, domain, shard)
        self._futures: dict[tuple[int, int], Future[Fetched]] = {}
        self._num_flying = self._flight_bytes = self._unopened_bytes = 0
        self._until_KL = np.zeros((len(orders), len(lanes)), np.int64)
        self.failure: BaseException | None = None

    def follow(self, cursors_KC: np.ndarray, mixture_K: np.ndarray, batch_size: int) -> None:
        """Asks for the shards of every lane's next samples, given where its cursors are now."""
        if self._pool is None or self._shards.all_open():
            return
        num_lanes = cursors_KC.shape[1]
        cursor_KL = cursors_KC[:, self._lanes.start : self._lanes.stop]
        wanted_K = np.ceil(mixture_K * (self._limits.samples / num_lanes)).astype(np.int64) + 1
        for group in compiled.short_groups(cursor_KL, wanted_K, self._until_KL).tolist():
            domain, column = divmod(group, len(self._lanes))
            rate = max(mixture_K[domain], 1e-9) * batch_size / num_lanes  # samples a step
            self._ask_ahead(domain, column, int(cursor_KL[domain, column]), int(wanted_K[domain]), rate)
        if self._waiting:
            self._pump()

    def fetch(self, domain: int, shard: int) -> None:
        """Returns when the shard is verified on the local disk; it goes before everything else that is wanted."""
        started = time.monotonic()
        if self._pool is None:
            fetched = self._shards.cache.fetch(self._shards.indexes[domain].spec(shard), self._stop)
        else:
            self._ask(_NOW, domain, shard)
            self._pump()
            fetched = self._wait(domain, shard)
        self._statistics.fetched(domain, fetched, time.monotonic() - started)

    def close(self) -> None:
        """Stops every fetch and waits for its threads; fetches notice `stop` between two reads."""
        self._stop.set()
        with self._arrived:
            self._waiting.clear()
            self._arrived.notify_all()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _ask_ahead(self, domain: int, column: int, cursor: int, wanted: int, rate: float) -> None:
        """Asks for the shards of a lane's samples up to `cursor + wanted`, each by when its first one is due."""
        begin, end = int(self._until_KL[domain, column]), cursor + wanted
        self._until_KL[domain, column] = end
        ids_N = self._orders[domain].ids(self._lanes[column], begin, end - begin)
        shard_N, first_N = np.unique(self._shards.shard_of(domain, ids_N), return_index=True)
        due_N = (begin - cursor + first_N) / rate
        for shard, due in zip(shard_N.tolist(), due_N.tolist(), strict=True):
            self._ask(due, domain, shard)

    def _ask(self, due: float, domain: int, shard: int) -> None:
        with self._lock:
            heapq.heappush(self._waiting, (due, domain, shard))

    def _pump(self) -> None:
        """Starts waiting fetches while threads are free and the budget allows."""
        assert self._pool is not None
        with self._lock:
            while self._waiting and self._num_flying < self._limits.threads and not self._stop.is_set():
                due, domain, shard = self._waiting[0]
                if not self._may_start(due, self._size(domain, shard)):
                    return
                heapq.heappop(self._waiting)
                if (domain, shard) not in self._futures and (due == _NOW or not self._shards.is_open(domain, shard)):
                    self._start(domain, shard)

    def _may_start(self, due: float, size: int) -> bool:
        """What is needed now always may; a shard larger than the whole budget may fly alone."""
        over_flight = self._flight_bytes and self._flight_bytes + size > self._limits.flight_bytes
        over_unopened = self._unopened_bytes and self._unopened_bytes + size > self._limits.unopened_bytes
        return due == _NOW or not (over_flight or over_unopened)

    def _start(self, domain: int, shard: int) -> None:
        size = self._size(domain, shard)
        spec = self._shards.indexes[domain].spec(shard)
        self._num_flying += 1
        self._flight_bytes += size
        self._unopened_bytes += size
        assert self._pool is not None
        future = self._futures[domain, shard] = self._pool.submit(self._shards.cache.fetch, spec, self._stop)
        future.add_done_callback(lambda done: self._landed(done, size))

    def _landed(self, future: Future[Fetched], size: int) -> None:
        with self._arrived:
            self._num_flying -= 1
            self._flight_bytes -= size
            if not future.cancelled() and future.exception() is not None and not self._stop.is_set():
                self.failure = self.failure or future.exception()
            self._arrived.notify_all()
        if not self._stop.is_set():
            self._pump()

    def _size(self, domain: int, shard: int) -> int:
        return int(self._shards.indexes[domain].raw_bytes_S[shard])

    def _wait(self, domain: int, shard: int) -> Fetched:
        key = (domain, shard)
        end = time.monotonic() + self._limits.timeout_s
        with self._arrived:
            while not ((future := self._futures.get(key)) and future.done()):
                if self.failure is not None:
                    raise self.failure
                if self._stop.is_set():
                    raise StorageError("the stream was closed.")
                if time.monotonic() > end:
                    label = self._shards.indexes[domain].spec(shard).label
                    raise StorageError(
                        f"{label}: not there after {self._limits.timeout_s:.0f} s. Is the store reachable?"
                    )
                self._arrived.wait(0.2)
            del self._futures[key]
            self._unopened_bytes -= self._size(domain, shard)
        self._pump()
        return future.result()
