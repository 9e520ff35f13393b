"""Several reads of a store side by side: all results, or the first failure at once.

The failure ends the retries and waits of the other reads. A read that hangs in a client cannot be ended: the threads
are daemons, for which the end of the process does not wait, as it would for those of a ThreadPoolExecutor.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, as_completed, wait
from contextlib import suppress
from typing import TypeVar

from ado_stream.storage.retry import StoppedError

T = TypeVar("T")


class DaemonThreads:
    """Runs calls in the order in which they are submitted."""

    def __init__(self, number: int, name: str) -> None:
        self._waiting: queue.SimpleQueue[tuple[Callable[[], None], Callable[[], bool]] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._run, name=name, daemon=True) for _ in range(number)]
        self._ended = False
        for thread in self._threads:
            thread.start()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """The future of what `call` returns."""
        assert not self._ended
        future: Future[T] = Future()
        self._waiting.put((lambda: settle(call, future), future.cancel))
        return future

    def end(self) -> None:
        """Ends each thread once what was submitted is done; acquires no lock."""
        for _ in self._threads:
            self._waiting.put(None)

    def shutdown(self) -> None:
        """Cancels the calls that no thread has begun, and waits for the others."""
        self._ended = True
        with suppress(queue.Empty):
            while True:
                if (task := self._waiting.get_nowait()) is not None:
                    task[1]()
        self.end()
        self.join(None)

    def join(self, timeout_s: float | None) -> None:
        """Waits for the threads, at most so long."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))

    def _run(self) -> None:
        while (task := self._waiting.get()) is not None:
            task[0]()


def settle(call: Callable[[], T], future: Future[T]) -> None:
    """Gives `future` what `call` returns or raises, for the thread that waits for it."""
    try:
        future.set_result(call())
    except BaseException as error:  # noqa: BLE001 (raised in the waiting thread)
        future.set_exception(error)


def watched(work: Callable[[], T], check: Callable[[], None], drop: Callable[[T], None] = lambda _: None) -> T:
    """What `work` returns or raises, in a daemon thread, since no client bounds all of its waits.

    The thread is abandoned when `check`, which is called every so often meanwhile, raises; `drop` gets what it returns.
    """
    outcome: Future[T] = Future()
    threading.Thread(target=settle, args=(work, outcome), name="ado-download", daemon=True).start()
    try:
        while not wait([outcome], 0.05).done:
            check()
    except BaseException:
        outcome.add_done_callback(lambda done: None if done.exception() else drop(done.result()))
        raise
    return outcome.result()


def read_in_parallel(reads: Sequence[Callable[[], T]], num_threads: int, stop: threading.Event | None) -> list[T]:
    """The results of `reads` in their order, whose retry policies have this `stop`.

    Raises what the first failed read raised, and sets `stop`.
    """
    threads = DaemonThreads(min(num_threads, len(reads)), "ado-read")
    futures = [threads.submit(read) for read in reads]
    threads.end()
    try:
        for future in as_completed(futures):
            if not isinstance(future.exception(), StoppedError):  # else another read failed first
                future.result()
        return [future.result() for future in futures]
    except BaseException:
        if stop is not None:
            stop.set()
        raise
