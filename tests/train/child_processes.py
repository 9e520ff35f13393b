"""Runs functions in children of a fork server that has imported everything: a start takes milliseconds, not seconds.

A process has one fork server, which imports what its first user names: all tests start it here. It runs no kernel,
because threads do not survive a fork. Children write to a log file and have one OpenMP thread each; those still running
at the end are killed.
"""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

_CONTEXT = multiprocessing.get_context("forkserver")


class ChildProcesses:
    """Starts children and kills those still running when closed."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._children: list[Any] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", "1")
            _CONTEXT.set_forkserver_preload(["tests.train.fork_server"])
            forkserver.ensure_running()

    def start(self, function: Callable[..., None], *arguments: Any, **environment: str) -> Any:
        """A started multiprocessing.Process that runs `function` of a module of the tests."""
        log = self._folder / f"child{len(self._children)}.log"
        child = _CONTEXT.Process(target=_run, args=(log, environment, function, arguments))
        child.log = log
        child.start()
        self._children.append(child)
        return child

    def pool(self, num_processes: int) -> Any:
        """A multiprocessing.Pool."""
        return _CONTEXT.Pool(num_processes)

    def start_ranks(self, num_ranks: int, function: Callable[..., None], *arguments: Any) -> list[Any]:
        """Starts `function` on ranks with the environment that torchrun sets."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(num_ranks)}
        numbers = [str(rank) for rank in range(num_ranks)]
        return [self.start(function, *arguments, RANK=each, LOCAL_RANK=each, **rendezvous) for each in numbers]

    def run(self, function: Callable[..., None], *arguments: Any, num_ranks: int = 1) -> None:
        """Runs `function` in one process or on several ranks until it returns; fails with the log of a failed one."""
        single = num_ranks == 1
        children = [self.start(function, *arguments)] if single else self.start_ranks(num_ranks, function, *arguments)
        for child in children:
            finish(child)

    def close(self) -> None:
        """Kills every child."""
        for child in self._children:
            child.kill()
            child.join()


def finish(child: Any, timeout_s: float = 120.0) -> None:
    """Waits for `child` and asserts exit code 0."""
    child.join(timeout_s)
    assert child.exitcode == 0, f"exit code {child.exitcode}: {child.log.read_text()[-4000:]}"


def _run(log: Path, environment: dict[str, str], function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    with open(log, "w") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    function(*arguments)
