"""Worker processes that are spawned, not forked, and that die with their parent.

One worker means no process at all: the calls run where they are made. Spawned, because a fork copies the locks of the
tokenizers library's threads in whatever state they are. A worker watches its parent's end of a pipe, since a killed
parent cannot tell it to go.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any

from ado_stream.errors import AdoStreamError
from ado_stream.prepare.worker import Worker, WorkerSetup

_worker: Worker | None = None  # of a worker process


class WorkerPool:
    """Runs `Worker` methods by name, in `num_workers` processes or, with one, in this one."""

    def __init__(self, setup: WorkerSetup, num_workers: int):
        self._local = Worker(setup) if num_workers == 1 else None
        self._executor: Executor | None = None
        if self._local is None:
            self._executor = ProcessPoolExecutor(
                num_workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(setup,)
            )

    def submit(self, method: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        """A future of `method(worker, *arguments)`, `method` being one of Worker's functions."""
        if self._executor is not None:
            return self._executor.submit(_call, method.__name__, arguments)
        future: Future[Any] = Future()
        try:
            future.set_result(method(self._local, *arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        """Ends the workers; what has not begun is given up."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)


def result_of(future: "Future[Any]") -> Any:
    """The future's result; a worker that died becomes an error that says so."""
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise AdoStreamError(
            "a worker process died (killed, or out of memory).\n"
            "  Finished work is kept: run the same command again, with fewer --workers if memory was short."
        ) from error


def _start(setup: WorkerSetup) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    threading.Thread(target=_die_with_parent, name="parent-watch", daemon=True).start()
    _worker = Worker(setup)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _call(method: str, arguments: tuple[Any, ...]) -> Any:
    assert _worker is not None
    return getattr(_worker, method)(*arguments)
