"""Makes batches ahead of the training loop: one thread draws, waits for shards and gathers; others fetch.

Invariants: batches come in the order of their steps and depend on nothing but (data, seed, cursors, mixtures); an error
anywhere behind reaches `next` as the same exception; every wait has a deadline and says what it waited for.
"""

import logging
import sys
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import numpy as np

from ado_stream.errors import StorageError
from ado_stream.stream.board import MixtureBoard
from ado_stream.stream.draw import Draw, Settings, draw_step
from ado_stream.stream.lookahead import Lookahead, LookaheadLimits
from ado_stream.stream.order import DomainOrder, StreamingOrder, UpcomingIds
from ado_stream.stream.shard_table import Shards
from ado_stream.stream.statistics import Statistics

_JOIN_S = 30
_GLANCE_S = 0.2  # between looks at what may have failed
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """What batches are made of, and which part of each is this rank's."""

    shards: Shards
    orders: list[DomainOrder | StreamingOrder]
    board: MixtureBoard
    settings: Settings
    slots: slice  # of the global batch

    @property
    def lanes(self) -> range:
        """The lanes that this rank's slots belong to."""
        lane_B = self.lane_B[self.slots]
        return range(int(lane_B[0]), int(lane_B[-1]) + 1)

    @property
    def lane_B(self) -> np.ndarray:
        """(B,) int64: the lane of every slot."""
        num_slots = self.settings.global_batch_size
        return np.arange(num_slots) * self.settings.num_lanes // num_slots


@dataclass(frozen=True)
class PipelineOptions:
    """How far and with how many threads to run ahead; changes no batch."""

    prefetch: int
    pin_memory: bool
    timeout_s: float
    lookahead: LookaheadLimits


@dataclass(frozen=True)
class Batch:
    """One step's rows of this rank, and the draw they come from."""

    draw: Draw
    domain_N: np.ndarray  # (b,) int64
    tokens_NT: np.ndarray  # (b, T + 1) int64


_probe = [np.empty(0)]
_UNUSED = sys.getrefcount(_probe[0])  # of an array that only a list holds


class _Buffers:
    """int64 arrays that are used again once nobody holds them; fresh memory costs a page fault every 4 KiB.

    With pin_memory, arrays come from torch's caching allocator of page-locked memory instead, which itself waits for
    copies to the GPU before it hands memory out again.
    """

    def __init__(self, shape: tuple[int, ...], pin_memory: bool):
        self._shape, self._pin_memory = shape, pin_memory
        self._free: list[np.ndarray] = []

    def get(self) -> np.ndarray:
        if self._pin_memory:
            return _pinned(self._shape)
        for number in range(len(self._free)):
            if sys.getrefcount(self._free[number]) == _UNUSED:
                return self._free[number]
        self._free.append(np.empty(self._shape, np.int64))
        return self._free[-1]


def _pinned(shape: tuple[int, ...]) -> np.ndarray:
    import torch

    return torch.empty(shape, dtype=torch.int64, pin_memory=True).numpy()


class Pipeline:
    """An endless iterator of Batches from `step` and `cursors_KC` on. `close` ends its threads; so does letting go.

    options.prefetch: batches made ahead; 0 makes each when asked, in the caller's thread.
    """

    def __init__(self, source: Source, step: int, cursors_KC: np.ndarray, options: PipelineOptions):
        self._maker = _Maker(source, step, cursors_KC, options)
        if options.prefetch:
            self._maker.thread.start()
        self._finalizer = weakref.finalize(self, self._maker.close)

    @property
    def statistics(self) -> Statistics:
        """What was read and waited for so far."""
        return self._maker.statistics

    def next(self) -> Batch:
        """The next step's batch. Raises what failed behind, or StorageError past the deadline."""
        return self._maker.next()

    def next_if_ready(self) -> Batch | None:
        """The next step's batch if it is made already."""
        return self._maker.take_ready()

    def close(self) -> None:
        """Stops and joins every thread; idempotent."""
        self._finalizer()


class _Maker:
    """The making side; it does not know the Pipeline, so that the Pipeline can be collected while threads run."""

    def __init__(self, source: Source, step: int, cursors_KC: np.ndarray, options: PipelineOptions):
        self.source, self.options = source, options
        self.step, self.cursors_KC = step, cursors_KC.copy()
        shards, lanes, settings = source.shards, source.lanes, source.settings
        self.lane_N = source.lane_B[source.slots]
        self.upcoming = UpcomingIds(source.orders, lanes, settings.global_batch_size // settings.num_lanes)
        self.statistics = Statistics([index.name for index in shards.indexes])
        self.lookahead = Lookahead(shards, source.orders, lanes, options.lookahead, self.statistics)
        shards.before_open = self.lookahead.fetch
        num_rows = self.lane_N.size
        self.domain_buffers = _Buffers((num_rows,), options.pin_memory)
        self.token_buffers = _Buffers((num_rows, shards.row_tokens()), options.pin_memory)
        self.thread = threading.Thread(target=self._run, name="ado-batches", daemon=True)
        self.stop = threading.Event()
        self.ready: SimpleQueue[Batch | None] = SimpleQueue()  # None: look at `failure`
        self.room: SimpleQueue[None] = SimpleQueue()  # one entry for each batch that may still be made ahead
        for _ in range(options.prefetch):
            self.room.put(None)
        self.failure: BaseException | None = None
        self.doing = "starting"

    def make(self) -> Batch:
        """Draws, fetches and gathers the next step."""
        step, source = self.step, self.source
        self.doing = f"the mixture of step {step}"
        started = time.monotonic()
        mixture_K = source.board.take(step, self.options.timeout_s, self.stop)
        self.statistics.mixture_wait_s += time.monotonic() - started
        if mixture_K is None:
            raise StorageError("the stream was closed.")
        self.lookahead.follow(self.cursors_KC, mixture_K, source.settings.global_batch_size)
        draw = draw_step(source.settings, step, mixture_K, self.cursors_KC)
        domain_N = self.domain_buffers.get()
        domain_N[:] = draw.domain_B[source.slots]
        id_N = self.upcoming.at(domain_N, self.lane_N, draw.position_B[source.slots])
        tokens_NT = self.token_buffers.get()
        self.doing = f"the shards of step {step}"
        source.shards.read(domain_N, id_N, tokens_NT)
        self.statistics.read(domain_N)
        self.step = step + 1
        return Batch(draw, domain_N, tokens_NT)

    def next(self) -> Batch:
        """Takes the oldest finished batch, or makes one."""
        if not self.options.prefetch:
            return self.make()
        started = time.monotonic()
        while True:
            batch = self._take()
            if self.lookahead.failure is not None:
                raise self.lookahead.failure
            if batch is not None:
                self.statistics.consumer_wait_s += time.monotonic() - started
                return batch
            if self.failure is not None:
                raise self.failure
            if time.monotonic() > started + self.options.timeout_s:
                raise StorageError(f"no batch for {self.options.timeout_s:.0f} s; waiting for {self.doing}.")

    def close(self) -> None:
        """Stops and joins the threads."""
        self.stop.set()
        self.source.board.wake()
        self.room.put(None)
        self.lookahead.close()
        if self.thread.is_alive() and threading.current_thread() is not self.thread:
            self.thread.join(timeout=_JOIN_S)
            if self.thread.is_alive():
                _log.warning("a thread of the stream did not end within %d s; it was doing: %s", _JOIN_S, self.doing)
        self.source.shards.close()

    def take_ready(self) -> Batch | None:
        """A finished batch if there is one."""
        return self._take(wait_s=0.0)

    def _take(self, wait_s: float = _GLANCE_S) -> Batch | None:
        """A finished batch; None when there was none for a moment."""
        with suppress(Empty):
            batch = self.ready.get(block=wait_s > 0, timeout=min(wait_s, self.options.timeout_s))
            if batch is not None:
                self.room.put(None)
            return batch
        return None

    def _run(self) -> None:
        try:
            while True:
                self.room.get()
                if self.stop.is_set():
                    return
                self.ready.put(self.make())
        except BaseException as error:
            if not self.stop.is_set():
                self.failure = error
                self.ready.put(None)
