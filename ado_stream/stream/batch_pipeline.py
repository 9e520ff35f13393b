"""Makes batches ahead of the training loop: one thread draws, waits for shards and gathers; a pool fetches shards.

Invariants: batches come in the order of their steps and depend on nothing but (data, seed, cursors, mixtures); an
exception in any thread is raised by `next`, unchanged; every wait has a deadline and says what it waited for.
"""

import atexit
import logging
import os
import sys
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import numpy as np
import torch

from ado_stream.errors import ConfigError, StorageError
from ado_stream.storage.node_cache import NodeCache
from ado_stream.stream.batch_draw import DrawSettings, StepDraw, draw_step
from ado_stream.stream.board import MixtureBoard
from ado_stream.stream.device_copies import TokenBatch
from ado_stream.stream.fill_in_middle_rows import FillInMiddleRows
from ado_stream.stream.lookahead import Lookahead, LookaheadLimits
from ado_stream.stream.sample_index import SampleIndex
from ado_stream.stream.sample_order import SampleOrder, UpcomingIds
from ado_stream.stream.shard_table import ShardTable
from ado_stream.stream.stream_statistics import StreamStatistics
from ado_stream.value_types import Ints

_JOIN_S = 30
_EXIT_S = 0.5
_POLL_S = 0.2  # between checks for a failed fetch
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchSource:
    """What batches are made from, and which slots of each are this rank's."""

    indexes: list[SampleIndex]
    cache: NodeCache
    orders: list[SampleOrder]
    board: MixtureBoard
    settings: DrawSettings
    slots: slice  # of the global batch, in samples
    fim: FillInMiddleRows | None = None

    @property
    def lanes(self) -> range:
        """The lanes that this rank's slots belong to."""
        lane_B = self.lane_B[self.slots]
        return range(int(lane_B[0]), int(lane_B[-1]) + 1)

    @property
    def lane_B(self) -> Ints:
        """(B,) int64: the lane of every slot."""
        num_slots = self.settings.num_samples
        return np.arange(num_slots) * self.settings.num_lanes // num_slots


@dataclass(frozen=True)
class PipelineOptions:
    """How batches are made ahead and checked; none of it changes a batch. Raises ConfigError for pin_memory, no GPU."""

    prefetch: int
    pin_memory: bool
    timeout_s: float
    lookahead: LookaheadLimits
    vocab_size: int | None
    open_limit_bytes: int | None

    def __post_init__(self) -> None:
        try:
            if self.pin_memory:
                _pinned((0,))
        except RuntimeError as error:
            raise ConfigError(f"pin_memory is True, but without a GPU it must be False: {error!s:.80}") from None


DrawnBatch = tuple[StepDraw, TokenBatch]  # one step's samples of this rank, and the draw that they come from
_probe = [np.empty(0)]
_UNUSED = sys.getrefcount(_probe[0])  # references to an array that one list alone holds: differs between Pythons


class _Buffers:
    """int64 tensors whose memory is reused once nothing refers to it; fresh memory costs a page fault every 4 KiB.

    With pin_memory, tensors come from torch's caching allocator of page-locked memory instead, which reuses memory only
    after the copies to the GPU that read it. It identifies memory by its storage: a tensor made from the NumPy array of
    such a tensor has another storage, and copies of its row slices would not be waited for.
    """

    def __init__(self, shape: tuple[int, ...], pin_memory: bool):
        self._shape, self._pin_memory = shape, pin_memory
        self._free: list[Ints] = []

    def get(self) -> torch.Tensor:
        if self._pin_memory:
            return _pinned(self._shape)
        for number in range(len(self._free)):
            if sys.getrefcount(self._free[number]) == _UNUSED:
                return torch.from_numpy(self._free[number])
        self._free.append(np.empty(self._shape, np.int64))
        return torch.from_numpy(self._free[-1])


def _pinned(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.int64, device="cpu", pin_memory=True)


class BatchPipeline:
    """The batches from `step` and `cursors_KC` on, without end. Its threads end at `close` or when it is collected.

    options.prefetch: batches made ahead; 0 makes each in `next`, in the caller's thread.
    """

    def __init__(self, source: BatchSource, step: int, cursors_KC: Ints, options: PipelineOptions):
        self._maker = _BatchMaker(source, step, cursors_KC, options)
        if options.prefetch:
            self._maker.thread.start()
        # Only requests the stop: a finalizer runs in whichever thread drops the last reference, which may be one of
        # them, or hold a lock that `close` needs.
        self._finalizer = weakref.finalize(self, self._maker.request_stop)
        _open_makers.add(self._maker)

    @property
    def statistics(self) -> StreamStatistics:
        """Counts and waits so far."""
        return self._maker.statistics

    def check_process(self) -> None:
        """Raises ConfigError in a fork, whose wait would have no end."""
        if self._maker.is_inherited:
            raise ConfigError(
                "this process is a fork of one that reads the data set, whose threads it has not.\n"
                "  Make the data set in the new process, or fork before the first batch."
            )

    def next(self) -> DrawnBatch:
        """The next step's batch. Raises the exception of a thread that failed, StorageError past the deadline."""
        return self._maker.next()

    def next_if_ready(self) -> DrawnBatch | None:
        """The next step's batch if it is made already."""
        return self._maker.take(wait_s=0.0)

    def close(self) -> None:
        """Stops and joins every thread; idempotent."""
        self._finalizer.detach()
        _open_makers.discard(self._maker)
        self._maker.close()


class _BatchMaker:
    """What the threads run. It does not refer to its BatchPipeline, so that can be collected while they run."""

    def __init__(self, source: BatchSource, step: int, cursors_KC: Ints, options: PipelineOptions):
        self.source, self.options = source, options
        self._process = os.getpid()
        self.step, self.cursors_KC = step, cursors_KC.copy()
        indexes, cache, lanes = source.indexes, source.cache, source.lanes
        self.lane_N = source.lane_B[source.slots]
        self.upcoming = UpcomingIds(source.orders, lanes)
        self.statistics = StreamStatistics([index.name for index in indexes])
        self.lookahead = Lookahead(indexes, cache, source.orders, lanes, options.lookahead, self.statistics)
        self.shards = ShardTable(
            indexes, cache, self.lookahead, vocab_size=options.vocab_size, open_limit_bytes=options.open_limit_bytes
        )
        num_rows = self.lane_N.size
        self.domain_buffers = _Buffers((num_rows,), options.pin_memory)
        self.token_buffers = _Buffers((num_rows, self.shards.row_tokens()), options.pin_memory)
        self.calling = threading.Lock()  # held by a caller that makes a batch itself
        self.thread = threading.Thread(target=self._run, name="ado-batches", daemon=True)
        self.stop = threading.Event()
        self.ready: SimpleQueue[DrawnBatch | None] = SimpleQueue()  # None: look at `failure`
        self.free_slots: SimpleQueue[None] = SimpleQueue()  # one entry for each batch that may still be made ahead
        for _ in range(options.prefetch):
            self.free_slots.put(None)
        self.failure: BaseException | None = None  # of `thread`; set before None is put into `ready`
        self.waiting_for = "the start"  # of `thread`, for messages

    def make(self) -> DrawnBatch:
        """Draws the next step, fetches its shards and gathers its rows."""
        step, source = self.step, self.source
        self.waiting_for = f"the mixture of step {step}"
        started = time.monotonic()
        mixture_K = source.board.take(step, self.options.timeout_s, self.stop)
        self.statistics.mixture_wait_s += time.monotonic() - started
        if mixture_K is None:
            raise StorageError("the stream was closed.")
        # Before the draw moves the cursors: this step's own shards are the first to be requested.
        self.lookahead.follow(self.cursors_KC, mixture_K, source.settings.num_samples)
        draw = draw_step(source.settings, step, mixture_K, self.cursors_KC)
        domain, tokens = self.domain_buffers.get(), self.token_buffers.get()
        domain_N, tokens_NT = domain.numpy(), tokens.numpy()
        domain_N[:] = draw.domain_B[source.slots]
        id_N = self.upcoming.at(domain_N, self.lane_N, draw.position_B[source.slots])
        self.waiting_for = f"the shards of step {step}"
        self.shards.read(domain_N, id_N, tokens_NT)
        if source.fim is not None:
            source.fim.apply(tokens_NT, domain_N, id_N)
        self.statistics.count_batch(domain_N)
        self.step = step + 1
        return draw, {"tokens": tokens, "domain": domain, "step": step}

    def next(self) -> DrawnBatch:
        """Takes the oldest finished batch, or makes one."""
        if not self.options.prefetch:
            with self.calling:
                if self.stop.is_set():
                    raise StorageError("the stream was closed.")
                return self.make()
        started = time.monotonic()
        while True:
            batch = self.take(min(_POLL_S, self.options.timeout_s))
            if self.lookahead.failure is not None:
                raise self.lookahead.failure
            if batch is not None:
                self.statistics.consumer_wait_s += time.monotonic() - started
                return batch
            if self.failure is not None:
                raise self.failure
            if self.stop.is_set():
                raise StorageError("the stream was closed.")
            if time.monotonic() > started + self.options.timeout_s:
                raise StorageError(f"no batch for {self.options.timeout_s:.0f} s; waiting for {self.waiting_for}.")

    @property
    def is_inherited(self) -> bool:
        """Whether this process is a fork, which has these objects but none of the threads, and perhaps their locks."""
        return self._process != os.getpid()

    def request_stop(self) -> None:
        """Makes every thread end soon; acquires no lock."""
        if self.is_inherited:
            return
        # `thread` may be waiting in one of three places: for a mixture, for a free slot, or for a shard.
        self.stop.set()
        self.lookahead.request_stop()
        self.free_slots.put(None)

    def close(self) -> None:
        """Stops and joins the threads, and waits for another that is in `next`; then nobody reads the open shards."""
        # The thread may wait for a mixture (`wake`) or a shard (lookahead.close); both must end before it is joined.
        if self.is_inherited:
            return
        self.request_stop()
        if threading.current_thread().name.startswith("ado-"):
            return  # a finalizer called it, which runs in any thread; none waits for itself
        self.source.board.wake()
        self.lookahead.close()
        if self.thread.is_alive():  # else it may not have been started
            self.thread.join(timeout=_JOIN_S)
        if self.thread.is_alive() or not self.calling.acquire(timeout=_JOIN_S):
            _log.warning("a thread of the stream did not end within %d s; waiting for %s", _JOIN_S, self.waiting_for)
            return
        self.shards.close()
        self.calling.release()

    def take(self, wait_s: float) -> DrawnBatch | None:
        """The oldest finished batch; None when there is none within `wait_s`, or when `thread` has failed."""
        with suppress(Empty):
            batch = self.ready.get(block=wait_s > 0, timeout=wait_s)
            if batch is not None:
                self.free_slots.put(None)
            return batch
        return None

    def _run(self) -> None:
        try:
            while True:
                self.free_slots.get()
                if self.stop.is_set():
                    return
                self.ready.put(self.make())
        except BaseException as error:
            if not self.stop.is_set():
                self.failure = error
                self.ready.put(None)
        finally:
            if self.stop.is_set():  # the pipeline may have been collected, and nothing else would end the fetches
                self.lookahead.close()


_open_makers: weakref.WeakSet[_BatchMaker] = weakref.WeakSet()


@atexit.register
def _stop_at_exit() -> None:
    """Lets every fetch remove its unfinished file; one that hangs in a store's client is left to itself."""
    makers = [maker for maker in _open_makers if not maker.is_inherited]
    for maker in makers:
        maker.request_stop()
    for maker in makers:
        if maker.thread.is_alive():
            maker.thread.join(_EXIT_S)
        maker.lookahead.join(_EXIT_S)
        if maker.calling.acquire(timeout=_EXIT_S):  # a thread in `next`: C++ aborts where the interpreter ends it there
            maker.calling.release()
