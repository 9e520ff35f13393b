"""Fetching ahead follows the mixture, keeps its budgets and hides no failure; against a cache that only records."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from ado_stream.errors import StorageError
from ado_stream.storage.object_spec import Fetched
from ado_stream.stream.lookahead import Lookahead, LookaheadLimits
from ado_stream.stream.sample_order import DomainOrder
from ado_stream.stream.stream_statistics import StreamStatistics
from tests.waiting import wait_until

SHARD_SAMPLES, NUM_SHARDS, SHARD_BYTES = 10, 200, 1000
BATCH = 40


@dataclass
class FakeCache:
    """A cache whose fetches wait for `gate` and are listed in their order, and the indexes of some domains."""

    num_domains: int
    gate: threading.Event = field(default_factory=threading.Event)
    started: list[tuple[int, int]] = field(default_factory=list)
    num_done: int = 0
    most_bytes: int = 0
    failing: tuple[int, int] | None = None

    def __post_init__(self):
        self.indexes = [FakeIndex(domain) for domain in range(self.num_domains)]
        self.lock = threading.Lock()

    def fetch(self, spec, stop=None):
        with self.lock:
            self.started.append(spec)
            self.most_bytes = max(self.most_bytes, SHARD_BYTES * (len(self.started) - self.num_done))
        self.gate.wait()
        if spec == self.failing:
            raise OSError("injected")
        with self.lock:
            self.num_done += 1
        return Fetched(Path("x"), SHARD_BYTES, False, 0.0)


@dataclass
class FakeIndex:
    domain: int
    raw_bytes_S: np.ndarray = field(default_factory=lambda: np.full(NUM_SHARDS, SHARD_BYTES))
    samples_S: np.ndarray = field(default_factory=lambda: np.full(NUM_SHARDS, SHARD_SAMPLES))

    def shards_at(self, id_N):
        return id_N // SHARD_SAMPLES

    def spec(self, shard):
        return self.domain, shard


class CountingOrder(DomainOrder):
    """Counts the positions it was asked for."""

    num_asked = 0

    def ids(self, lane, position, count):
        self.num_asked += count
        return super().ids(lane, position, count)


@pytest.fixture
def make():
    made = []

    def build(num_domains, lanes=range(1), num_lanes=1, **limits):
        shards = FakeCache(num_domains)
        orders = [CountingOrder(str(k), np.full(NUM_SHARDS, SHARD_SAMPLES), 3, num_lanes) for k in range(num_domains)]
        chosen = {"samples": 800, "flight_bytes": 1 << 40, "unopened_bytes": 1 << 40, "threads": 2, "timeout_s": 60.0}
        statistics = StreamStatistics([str(k) for k in range(num_domains)])
        lookahead = Lookahead(shards.indexes, shards, orders, lanes, LookaheadLimits(**(chosen | limits)), statistics)
        made.append((lookahead, shards))
        return lookahead, shards, orders

    yield build
    for lookahead, shards in made:
        shards.gate.set()
        lookahead.close()


def all_fetched(lookahead, shards):
    """Waits until no request is left and none is being fetched; returns the shards in the order of their fetches."""

    def ended():
        with lookahead._lock:
            return not lookahead._waiting and not lookahead._num_flying

    wait_until(ended)
    return shards.started


def started_of(shards, count):
    """Waits until `count` fetches started, and a moment for one too many."""
    wait_until(lambda: len(shards.started) >= count)
    time.sleep(0.05)
    return shards.started


def test_shards_are_fetched_ahead_in_proportion_to_the_mixture(make):
    lookahead, shards, _ = make(3)
    shards.gate.set()
    lookahead.follow(np.zeros((3, 1), np.int64), np.array([0.7, 0.3, 0.0]), BATCH)
    fetched = all_fetched(lookahead, shards)
    by_domain = np.bincount([domain for domain, _ in fetched], minlength=3)
    # 560 and 240 samples of the next 800; orders mix the samples of some shards, so a few shards more are touched.
    assert 56 <= by_domain[0] <= 2 * 56
    assert 24 <= by_domain[1] <= 2 * 24
    assert by_domain[2] <= 1  # the one sample that every domain keeps ready
    assert len(set(fetched)) == len(fetched)


def test_a_change_of_the_mixture_changes_what_is_fetched(make):
    lookahead, shards, _ = make(2)
    shards.gate.set()
    cursors = np.zeros((2, 1), np.int64)
    lookahead.follow(cursors, np.array([1.0, 0.0]), BATCH)
    before = len(all_fetched(lookahead, shards))
    lookahead.follow(cursors, np.array([0.0, 1.0]), BATCH)
    assert {domain for domain, _ in all_fetched(lookahead, shards)[before:]} == {1}


def test_what_is_due_first_is_fetched_first(make):
    lookahead, shards, orders = make(2, threads=1)
    shards.gate.set()
    lookahead.follow(np.zeros((2, 1), np.int64), np.array([0.5, 0.5]), BATCH)
    fetched = all_fetched(lookahead, shards)
    for domain in (0, 1):
        needed = list(dict.fromkeys((orders[domain].ids(0, 0, 401) // SHARD_SAMPLES).tolist()))
        assert [shard for k, shard in fetched if k == domain] == needed
    first_half = np.array([domain for domain, _ in fetched])[: len(fetched) // 2]
    assert 0.3 < first_half.mean() < 0.7  # neither domain waits for the other to be through


def test_only_own_lanes_are_fetched(make):
    lookahead, shards, orders = make(1, lanes=range(2, 4), num_lanes=4)
    shards.gate.set()
    lookahead.follow(np.zeros((1, 4), np.int64), np.ones(1), BATCH)
    needed = {int(i) for lane in (2, 3) for i in orders[0].ids(lane, 0, 201) // SHARD_SAMPLES}
    assert {shard for _, shard in all_fetched(lookahead, shards)} == needed


@pytest.mark.parametrize(("limit", "most"), [("flight_bytes", 3), ("unopened_bytes", 4)])
def test_bytes_in_flight_and_not_yet_opened_stay_within_their_budgets(make, limit, most):
    lookahead, shards, _ = make(2, threads=16, **{limit: most * SHARD_BYTES + 1})
    lookahead.follow(np.zeros((2, 1), np.int64), np.array([0.5, 0.5]), BATCH)
    assert len(started_of(shards, most)) == most
    shards.gate.set()
    if limit == "unopened_bytes":  # fetched, and nobody reads: nothing more may come
        time.sleep(0.05)
        assert len(shards.started) == most
        lookahead.fetch(*shards.started[0])
        started_of(shards, most + 1)
    else:
        all_fetched(lookahead, shards)
    assert shards.most_bytes <= most * SHARD_BYTES


def test_what_is_needed_now_goes_before_the_budget_and_the_queue(make):
    lookahead, shards, _ = make(2, threads=2, flight_bytes=SHARD_BYTES)
    lookahead.follow(np.zeros((2, 1), np.int64), np.array([1.0, 0.0]), BATCH)
    started_of(shards, 1)
    reader = threading.Thread(target=lookahead.fetch, args=(1, 77))
    reader.start()
    wait_until(lambda: (1, 77) in shards.started)
    assert shards.started.index((1, 77)) == 1
    shards.gate.set()
    reader.join(60)
    assert not reader.is_alive()


def test_the_first_failure_is_kept_and_raised_to_the_reader(make):
    lookahead, shards, orders = make(1)
    first = int(orders[0].ids(0, 0, 1)[0]) // SHARD_SAMPLES
    shards.failing = (0, first)
    lookahead.follow(np.zeros((1, 1), np.int64), np.ones(1), BATCH)
    shards.gate.set()
    wait_until(lambda: lookahead.failure is not None)
    with pytest.raises(OSError, match="injected"):
        lookahead.fetch(0, first)


def test_nothing_is_asked_or_fetched_twice_while_cursors_move(make):
    lookahead, shards, orders = make(2)
    shards.gate.set()
    cursors = np.zeros((2, 1), np.int64)
    for _ in range(100):
        lookahead.follow(cursors, np.array([0.5, 0.5]), BATCH)
        cursors += BATCH // 2
    started = all_fetched(lookahead, shards)
    assert len(set(started)) == len(started)
    assert all(order.num_asked <= 99 * BATCH // 2 + 400 + 1 for order in orders)


def test_an_open_shard_is_fetched_ahead_only_after_its_release(make):
    """The reader holds it mapped: the file may be evicted meanwhile, and must come back only to be opened again."""
    lookahead, shards, orders = make(1)
    shards.gate.set()
    first = int(orders[0].ids(0, 0, 1)[0]) // SHARD_SAMPLES
    lookahead.fetch(0, first)
    lookahead.follow(np.zeros((1, 1), np.int64), np.ones(1), BATCH)
    assert all_fetched(lookahead, shards).count((0, first)) == 1
    lookahead.release(0, first)
    lookahead.follow(np.full((1, 1), NUM_SHARDS * SHARD_SAMPLES - BATCH), np.ones(1), BATCH)  # up to the next epoch
    all_fetched(lookahead, shards)
    again = set((orders[0].ids(0, NUM_SHARDS * SHARD_SAMPLES - BATCH, 800) // SHARD_SAMPLES).tolist())
    assert shards.started.count((0, first)) == 1 + (first in again)


def test_closing_waits_for_a_fetch_that_is_being_started(make):
    """`close` comes after `_pump` has looked at `stop` and before it has handed the fetch to the pool."""
    lookahead, shards, _ = make(1)
    shards.gate.set()
    may_start, closers = lookahead._may_start, []

    def closing(due, size):
        if not closers:
            closers.append(threading.Thread(target=lookahead.close))
            closers[0].start()
            assert lookahead.stop.wait(5)
            time.sleep(0.05)  # in which the pool would be shut down
        return may_start(due, size)

    lookahead._may_start = closing
    submit = lookahead._pool.submit
    refused = []

    def noting(*arguments):
        try:
            return submit(*arguments)
        except RuntimeError as error:  # which `_start` takes for the end of the interpreter
            refused.append(str(error))
            raise

    lookahead._pool.submit = noting
    lookahead.follow(np.zeros((1, 1), np.int64), np.ones(1), BATCH)
    closers[0].join(5)
    assert not closers[0].is_alive()
    assert refused == []
    assert lookahead.failure is None


def test_closing_before_a_thread_has_begun_a_fetch_is_no_other_error(make):
    class IdlePool:
        """Has no thread free yet."""

        future = None

        def submit(self, *_):
            self.future = Future()
            return self.future

        def shutdown(self, **_):
            self.future.cancel()

    lookahead, _, _ = make(1)
    lookahead._pool.shutdown()
    lookahead._pool = IdlePool()
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(lookahead.fetch, 0, 3)
        wait_until(lambda: lookahead._pool.future)
        lookahead.close()
        with pytest.raises(StorageError, match="the stream was closed"):
            reading.result(30.0)
