"""Worker processes that are spawned, not forked, and that end with their parent.

One worker means no process at all: the calls run in this process. Spawned, because a fork would copy the locks of the
tokenizers library's threads in an arbitrary state. A worker waits on its parent's sentinel, since a killed parent
cannot stop it.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from ado_stream.errors import AdoStreamError
from ado_stream.prepare.config import PrepareConfig
from ado_stream.prepare.prepare_worker import Worker

_P = ParamSpec("_P")
_R = TypeVar("_R")
_worker: Worker | None = None  # of a worker process


class WorkerPool:
    """Runs methods of `Worker(config, work)`, in as many processes as the settings say or, with one, in this one."""

    def __init__(self, config: PrepareConfig, work: Path):
        self._local = Worker(config, work) if config.workers == 1 else None
        self._executor: Executor | None = None
        if self._local is None:
            self._executor = ProcessPoolExecutor(
                config.workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(config, work)
            )

    def submit(
        self, method: Callable[Concatenate[Worker, _P], _R], *args: _P.args, **kwargs: _P.kwargs
    ) -> "Future[_R]":
        """A future of `method(worker, *args)`, `method` being a function of Worker."""
        if self._executor is not None:
            return self._executor.submit(_call, method.__name__, args, kwargs)
        assert self._local is not None
        future: Future[_R] = Future()
        try:
            future.set_result(method(self._local, *args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        """Ends the workers; calls that have not begun are cancelled."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)


def worker_result(future: "Future[_R]") -> _R:
    """The future's result. Raises AdoStreamError when the worker died."""
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise AdoStreamError(
            "a worker process died (killed, or out of memory).\n"
            "  Finished work is kept: run the same command again, with fewer --workers if memory was short."
        ) from error


def _start(config: PrepareConfig, work: Path) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    threading.Thread(target=_exit_with_parent, name="parent-watch", daemon=True).start()
    _worker = Worker(config, work)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _call(method: str, args: tuple[object, ...], kwargs: dict[str, object]) -> Any:
    assert _worker is not None
    return getattr(_worker, method)(*args, **kwargs)
