"""concurrent.futures' Executor on a Ray cluster (extra `ray`): a call is a task on any node, for one core.

A task whose worker or node dies runs again elsewhere, at most _RETRIES times, and not when it raises: tasks leave
files behind only complete, so twice is once. The nodes must have this package, and see the files by the same paths.
"""

import logging
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from ado_stream.errors import AdoStreamError, ConfigError

_P = ParamSpec("_P")
_R = TypeVar("_R")
_RETRIES = 3
_CHECK_S = 60.0


class RayExecutor(Executor):
    """The cluster at `address`: "ray": the one that RAY_ADDRESS or this machine has, else a new one of this machine."""

    def __init__(self, address: str):
        try:
            import ray
        except ImportError:
            raise ConfigError("--executor ray needs the package ray: pip install 'ado-stream[ray]'.") from None
        self._ray: Any = ray  # most of which is untyped
        self._own = not ray.is_initialized()
        if self._own:
            try:
                ray.init(
                    address if "://" in address else None, log_to_driver=False, logging_level=logging.WARNING,
                    configure_logging=False,
                )  # fmt: skip
            except (ConnectionError, RuntimeError, ValueError, ImportError) as error:
                raise ConfigError(f"{address}: no Ray cluster: {str(error).partition(chr(10))[0]}") from error
        self._task = self._ray.remote(num_cpus=1, max_retries=_RETRIES)(_run)
        self._running: dict[Future[Any], Any] = {}
        self.num_workers = max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def submit(self, fn: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> "Future[_R]":
        reference = self._task.remote(fn, args, kwargs)
        answer: Future[_R] = Future()
        self._running[answer] = reference
        reference.future().add_done_callback(lambda done: self._hand_over(done, answer))
        return answer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for reference in list(self._running.values()):
            self._ray.cancel(reference)
        if self._own:
            self._ray.shutdown()

    def check_shared(self, paths: Iterable[Path]) -> None:
        """Raises ConfigError when a node does not see one of `paths`."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        paths = [path.absolute() for path in paths]
        nodes = [node["NodeID"] for node in self._ray.nodes() if node["Alive"]]
        look = self._ray.remote(num_cpus=0)(_first_missing)
        asked = [
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(paths)
            for node in nodes
        ]
        try:
            answers = self._ray.get(asked, timeout=_CHECK_S)
        except self._ray.exceptions.RayError as error:
            raise AdoStreamError(
                f"a node of the Ray cluster does not answer within {_CHECK_S:.0f} s: {error}"
            ) from error
        for host, missing in answers:
            if missing is not None:
                raise ConfigError(
                    f"{missing}: not there on the Ray node {host}.\n"
                    "  Inputs, --out and the working folder must be on a file system that all nodes share; for an "
                    "--out in object storage set XDG_CACHE_HOME to a folder of one."
                )

    def _hand_over(self, done: "Future[_R]", answer: "Future[_R]") -> None:
        """Ray's outcome in the terms of concurrent.futures."""
        self._running.pop(answer, None)
        error = done.exception()
        if error is None:
            answer.set_result(done.result())
        elif isinstance(error, self._ray.exceptions.RayTaskError):
            cause = getattr(error, "cause", None)
            answer.set_exception(cause if isinstance(cause, (AdoStreamError, OSError)) else error)
        else:  # the worker or its node died too often, or the cluster is gone
            answer.set_exception(BrokenExecutor(str(error)))


def _run(fn: Callable[..., _R], args: Sequence[object], kwargs: Mapping[str, object]) -> _R:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the tasks are the parallelism
    return fn(*args, **kwargs)


def _first_missing(paths: list[Path]) -> tuple[str, Path | None]:
    """(this host, the first of `paths` that it does not see)."""
    return socket.gethostname(), next((path for path in paths if not path.exists()), None)
