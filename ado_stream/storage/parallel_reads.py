"""Several reads of a store side by side: all results, or the first failure at once.

The failure ends the retries and waits of the other reads. A read that hangs in a client cannot be ended: the threads
are daemons, so that the process can still end.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, as_completed
from contextlib import suppress
from typing import TypeVar

from ado_stream.storage.retry import StoppedError

T = TypeVar("T")


def settle(call: Callable[[], T], future: Future[T]) -> None:
    """Gives `future` what `call` returns or raises, for the thread that waits for it."""
    try:
        future.set_result(call())
    except BaseException as error:  # noqa: BLE001 (raised in the waiting thread)
        future.set_exception(error)


def read_in_parallel(reads: Sequence[Callable[[], T]], num_threads: int, stop: threading.Event | None) -> list[T]:
    """The results of `reads` in their order, whose retry policies have this `stop`.

    Raises what the first failed read raised, and sets `stop`.
    """
    waiting: queue.SimpleQueue[tuple[Callable[[], T], Future[T]]] = queue.SimpleQueue()
    futures: list[Future[T]] = [Future() for _ in reads]
    for task in zip(reads, futures, strict=True):
        waiting.put(task)

    def work() -> None:
        with suppress(queue.Empty):
            while True:
                settle(*waiting.get_nowait())

    try:
        for _ in range(min(num_threads, len(reads))):
            threading.Thread(target=work, name="ado-read", daemon=True).start()
        for future in as_completed(futures):
            if not isinstance(future.exception(), StoppedError):  # else another read failed first
                future.result()
        return [future.result() for future in futures]
    except BaseException:
        if stop is not None:
            stop.set()
        raise
