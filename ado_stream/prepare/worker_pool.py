"""Calls of workers behind one interface, concurrent.futures' Executor: in this process, its children, or a Ray cluster.

One local worker means no process at all. Others are spawned, not forked, since a fork would copy the locks of the
tokenizers library's threads in an arbitrary state; they wait on their parent's sentinel, since a killed parent cannot
stop them. A call brings its settings along, so that any process serves it.
"""

import multiprocessing
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from functools import lru_cache
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from ado_stream.errors import AdoStreamError
from ado_stream.prepare.prepare_config import PrepareConfig
from ado_stream.prepare.prepare_worker import Worker

_P = ParamSpec("_P")
_R = TypeVar("_R")


class WorkerPool:
    """Runs functions of a `Worker(config, work)` in `num_workers` places at once."""

    def __init__(self, config: PrepareConfig, work: Path):
        self._settings = (config, work, uuid.uuid4().hex)
        self.num_workers = config.workers
        self._executor: Executor
        if config.on_ray:
            from ado_stream.prepare.ray_executor import RayExecutor

            self._executor = RayExecutor(config.executor)
            self.num_workers = self._executor.num_workers
        elif config.workers == 1:
            self._executor = _Here()
        else:
            self._executor = ProcessPoolExecutor(
                config.workers, multiprocessing.get_context("spawn"), initializer=_start
            )

    def submit(
        self, function: Callable[Concatenate[Worker, _P], _R], *args: _P.args, **kwargs: _P.kwargs
    ) -> "Future[_R]":
        """A future of `function(worker, *args)`, `function` being a method of Worker or of a module."""
        return self._executor.submit(_call, self._settings, function, args, kwargs)

    def as_completed(self, jobs: Iterable["Future[_R]"]) -> Iterator[_R]:
        """Results as they come; memory is bounded by taking only a few of `jobs` ahead."""
        running: set[Future[_R]] = set()
        for job in jobs:
            running.add(job)
            if len(running) >= 2 * self.num_workers:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from map(worker_result, done)
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from map(worker_result, done)

    def check_shared(self, paths: Iterable[Path]) -> None:
        """Raises ConfigError when a machine of the pool does not see one of `paths`."""
        if (check := getattr(self._executor, "check_shared", None)) is not None:
            check(paths)

    def close(self) -> None:
        """Ends the workers; calls that have not begun are cancelled."""
        self._executor.shutdown(wait=True, cancel_futures=True)


class _Here(Executor):
    """Runs each call at once, in this thread."""

    def submit(self, fn: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> "Future[_R]":
        future: Future[_R] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        _worker.cache_clear()


def worker_result(future: "Future[_R]") -> _R:
    """The future's result. Raises AdoStreamError when the worker died."""
    try:
        return future.result()
    except BrokenExecutor as error:
        raise AdoStreamError(
            "a worker process died (killed, or out of memory).\n"
            "  Finished work is kept: run the same command again, with fewer --workers if memory was short."
        ) from error


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    threading.Thread(target=_exit_with_parent, name="parent-watch", daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(1)


@lru_cache(maxsize=1)
def _worker(config: PrepareConfig, work: Path, run: str) -> Worker:
    """This process's worker of a run: another run, even in the same folder, has another."""
    return Worker(config, work)


def _call(
    settings: tuple[PrepareConfig, Path, str],
    function: Callable[..., _R],
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> _R:
    return function(_worker(*settings), *args, **kwargs)
