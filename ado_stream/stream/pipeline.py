"""Makes batches ahead of the training loop: one thread draws, waits for shards and gathers; others fetch.

Invariants: batches come in the order of their steps and depend on nothing but (data, seed, cursors, mixtures); an error
anywhere behind reaches `next` as the same exception; every wait has a deadline and says what it waited for.
"""

import logging
import sys
import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass

import numpy as np

from ado_stream.errors import StorageError
from ado_stream.stream.draw import advance, draw_domains
from ado_stream.stream.lookahead import Lookahead, LookaheadLimits
from ado_stream.stream.mixture import MixtureBoard
from ado_stream.stream.order import DomainOrder, StreamingOrder
from ado_stream.stream.shards import Shards
from ado_stream.stream.statistics import Statistics

_JOIN_S = 30
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What decides the batches, besides the data and the mixtures."""

    global_batch_size: int
    num_lanes: int
    seed: int
    sampling: str
    first_slot: int  # this rank's slots of the global batch: [first_slot, last_slot)
    last_slot: int

    @property
    def lanes(self) -> range:
        """The lanes that this rank's slots belong to."""
        first = self.first_slot * self.num_lanes // self.global_batch_size
        last = (self.last_slot - 1) * self.num_lanes // self.global_batch_size
        return range(first, last + 1)


@dataclass(frozen=True)
class PipelineOptions:
    """How far and with how many threads to run ahead; changes no batch."""

    prefetch: int
    pin_memory: bool
    timeout_s: float
    lookahead: LookaheadLimits


@dataclass(frozen=True)
class Draw:
    """The global batch of one step, before any byte is read."""

    step: int
    mixture_K: np.ndarray  # (K,) float64, in force
    domain_B: np.ndarray  # (B,) int32
    position_B: np.ndarray  # (B,) int64, in the order of domain and lane

    def ids(self, orders: list[DomainOrder | StreamingOrder], slots: slice) -> np.ndarray:
        """(len(slots),) int64: sample ids within their domains."""
        num_slots = self.domain_B.size
        slot_N = np.arange(num_slots)[slots]
        domain_N, position_N = self.domain_B[slots], self.position_B[slots]
        lane_N = slot_N * orders[0].num_lanes // num_slots
        order_N = np.lexsort((position_N, lane_N, domain_N))
        group_N = domain_N[order_N].astype(np.int64) * orders[0].num_lanes + lane_N[order_N]
        id_N = np.empty(slot_N.size, np.int64)
        for member_N in np.split(order_N, np.flatnonzero(np.diff(group_N)) + 1):
            first = member_N[0]  # members of a group are consecutive positions
            order = orders[domain_N[first]]
            id_N[member_N] = order.ids(int(lane_N[first]), int(position_N[first]), member_N.size)
        return id_N


@dataclass(frozen=True)
class Batch:
    """One step's rows of this rank, and the draw they come from."""

    draw: Draw
    domain_N: np.ndarray  # (b,) int64
    id_N: np.ndarray  # (b,) int64
    tokens_NT: np.ndarray  # (b, T + 1) int64


_probe = [np.empty(0)]
_UNUSED = sys.getrefcount(_probe[0])  # of an array that only a list holds


class _Buffers:
    """Token arrays that are used again once nobody holds them; fresh memory costs a page fault every 4 KiB.

    With pin_memory, arrays come from torch's caching allocator of page-locked memory instead, which itself waits for
    copies to the GPU before it hands memory out again.
    """

    def __init__(self, shape: tuple[int, int], pin_memory: bool):
        self._shape, self._pin_memory = shape, pin_memory
        self._free: list[np.ndarray] = []

    def get(self) -> np.ndarray:
        if self._pin_memory:
            import torch

            return torch.empty(self._shape, dtype=torch.int64, pin_memory=True).numpy()
        for number in range(len(self._free)):
            if sys.getrefcount(self._free[number]) == _UNUSED:
                return self._free[number]
        self._free.append(np.empty(self._shape, np.int64))
        return self._free[-1]


class Pipeline:
    """An endless iterator of Batches from `step` on. `close` ends its threads; so does letting go of it.

    prefetch: batches made ahead; 0 makes each when asked, in the caller's thread.
    """

    def __init__(
        self,
        shards: Shards,
        orders: list[DomainOrder | StreamingOrder],
        board: MixtureBoard,
        settings: Settings,
        start: tuple[int, np.ndarray],
        options: PipelineOptions,
    ):
        self._maker = _Maker(shards, orders, board, settings, start, options)
        self._options = options
        if options.prefetch:
            self._maker.thread.start()
        self._finalizer = weakref.finalize(self, self._maker.close)

    @property
    def statistics(self) -> Statistics:
        """What was read and waited for so far."""
        return self._maker.statistics

    def next(self) -> Batch:
        """The next step's batch. Raises what failed behind, or StorageError past the deadline."""
        return self._maker.next() if self._options.prefetch else self._maker.make()

    def close(self) -> None:
        """Stops and joins every thread; idempotent."""
        self._finalizer()


class _Maker:
    """The making side; it does not know the Pipeline, so that the Pipeline can be collected while threads run."""

    def __init__(
        self,
        shards: Shards,
        orders: list[DomainOrder | StreamingOrder],
        board: MixtureBoard,
        settings: Settings,
        start: tuple[int, np.ndarray],
        options: PipelineOptions,
    ):
        self.shards, self.orders, self.board, self.settings, self.options = shards, orders, board, settings, options
        self.step, self.cursors_KC = start[0], start[1].copy()
        self.statistics = Statistics([index.name for index in shards.indexes])
        self.lookahead = Lookahead(shards, orders, settings.lanes, options.lookahead, self.statistics)
        shards.before_open = self.lookahead.fetch
        num_rows = settings.last_slot - settings.first_slot
        self.buffers = _Buffers((num_rows, shards.row_tokens()), options.pin_memory)
        self.thread = threading.Thread(target=self._run, name="ado-batches", daemon=True)
        self.stop = threading.Event()
        self.changed = threading.Condition()
        self.ready: deque[Batch] = deque()
        self.failure: BaseException | None = None
        self.doing = "starting"

    def make(self) -> Batch:
        """Draws, fetches and gathers the next step."""
        step = self.step
        self.doing = f"the mixture of step {step}"
        started = time.monotonic()
        mixture_K = self.board.take(step, self.options.timeout_s, self.stop)
        self.statistics.mixture_wait_s += time.monotonic() - started
        if mixture_K is None:
            raise StorageError("the stream was closed.")
        settings = self.settings
        domain_B = draw_domains(mixture_K, settings.global_batch_size, settings.seed, step, settings.sampling)
        self.lookahead.follow(self.cursors_KC, mixture_K, settings.global_batch_size)
        draw = Draw(step, mixture_K, domain_B, advance(domain_B, self.cursors_KC))
        slots = slice(settings.first_slot, settings.last_slot)
        domain_N, id_N = domain_B[slots].astype(np.int64), draw.ids(self.orders, slots)
        tokens_NT = self.buffers.get()
        self.doing = f"the shards of step {step}"
        self.shards.read(domain_N, id_N, tokens_NT)
        self.statistics.read(domain_N)
        self.step = step + 1
        return Batch(draw, domain_N, id_N, tokens_NT)

    def next(self) -> Batch:
        """Takes the oldest finished batch."""
        started = time.monotonic()
        end = started + self.options.timeout_s
        with self.changed:
            while not self.ready:
                if (failure := self.failure or self.lookahead.failure) is not None:
                    raise failure
                if time.monotonic() > end:
                    raise StorageError(f"no batch for {self.options.timeout_s:.0f} s; waiting for {self.doing}.")
                self.changed.wait(0.2)
            if self.lookahead.failure is not None:
                raise self.lookahead.failure
            batch = self.ready.popleft()
            self.changed.notify_all()
        self.statistics.consumer_wait_s += time.monotonic() - started
        return batch

    def close(self) -> None:
        """Stops and joins the threads."""
        self.stop.set()
        self.board.wake()
        with self.changed:
            self.changed.notify_all()
        self.lookahead.close()
        if self.thread.is_alive() and threading.current_thread() is not self.thread:
            self.thread.join(timeout=_JOIN_S)
            if self.thread.is_alive():
                _log.warning("a thread of the stream did not end within %d s; it was doing: %s", _JOIN_S, self.doing)
        self.shards.close()

    def _run(self) -> None:
        try:
            while not self.stop.is_set():
                batch = self.make()
                with self.changed:
                    self.ready.append(batch)
                    self.changed.notify_all()
                    while len(self.ready) >= self.options.prefetch and not self.stop.is_set():
                        self.changed.wait(1.0)
                del batch
        except BaseException as error:
            if not self.stop.is_set():
                with self.changed:
                    self.failure = error
                    self.changed.notify_all()
