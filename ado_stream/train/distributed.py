"""torch.distributed for a training run: rank, size and device, the process group, calls and sums over all ranks.

torchrun is the launcher; a process started alone is one rank without a process group. Invariant: every wait for other
ranks ends after the process group's timeout.
"""

import contextlib
import ctypes
import dataclasses
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from ado_stream.errors import AdoStreamError, ConfigError
from ado_stream.option_checks import environment_whole
from ado_stream.storage.parallel_reads import settle
from ado_stream.visible import show

PR_SET_PDEATHSIG = 1  # linux/prctl.h
_FAILURE = "failure"  # key of the store: "rank R: ERROR" of the first rank that failed by itself
_STORE_S = 10.0  # longest wait for its answer
T = TypeVar("T")


@dataclass(frozen=True)
class DistributedContext:
    """This process's rank, the number of ranks, its device, and the timeout of waits for other ranks, in seconds.

    store: where a rank that fails says why; None in a process group of the caller's.
    """

    rank: int
    size: int
    device: torch.device
    timeout_s: float = 600.0
    store: dist.Store | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the run record and every file that exists once."""
        return self.rank == 0


@contextlib.contextmanager
def join_process_group(device: str = "auto", timeout_s: float = 600.0) -> Iterator[DistributedContext]:
    """Creates the process group of the ranks that torchrun started; destroys it at the end. No group without torchrun.

    A process group that the caller has created is used and kept. Raises ConfigError when torchrun's environment is
    incomplete, the device does not exist, or the caller's group has no CPU backend.
    """
    context = detect_context(device, timeout_s)
    if dist.is_initialized() or "RANK" not in os.environ:
        yield context
        return
    _end_with_launcher()
    backend = "cpu:gloo,cuda:nccl" if context.device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_s)
    store = _store(context.rank, context.size, timeout)
    dist.init_process_group(backend, store=store, rank=context.rank, world_size=context.size, timeout=timeout)
    yield dataclasses.replace(context, store=store)
    # Not in a `finally`: destroying the group waits for pending collectives, which after an exception on this rank
    # others may never complete. Exiting instead lets torchrun end the other ranks at once.
    dist.destroy_process_group()


def detect_context(device: str = "auto", timeout_s: float = 600.0) -> DistributedContext:
    """The context that `join_process_group` yields, without creating a group. Raises the same ConfigError."""
    picked = pick_device(device)
    if dist.is_initialized():
        _require_cpu_backend()
        return DistributedContext(dist.get_rank(), dist.get_world_size(), picked, timeout_s)
    if "RANK" not in os.environ:
        return DistributedContext(0, 1, picked, timeout_s)
    _require_launcher_variables()
    size = environment_whole("WORLD_SIZE", 1, 1)
    rank = environment_whole("RANK", 0, most=size - 1)
    return DistributedContext(rank, size, picked, timeout_s)


@contextlib.contextmanager
def log_rank_errors(context: DistributedContext) -> Iterator[None]:
    """Prints an exception raised inside with its rank, before clean-up that may wait for other ranks, and re-raises.

    One that follows from another rank's end is raised as an AdoStreamError that names that rank.
    """
    try:
        yield
    except BaseException as error:
        if context.size == 1 or hasattr(error, "logged_rank"):  # in an inner block
            raise
        raised = AdoStreamError(_lost_rank(context)) if _is_lost_contact(error) else error
        text = f"rank {context.rank}: {type(raised).__name__}: {raised}"
        if raised is error:
            with contextlib.suppress(dist.DistError, TimeoutError):  # rank 0, which may hold the store, has ended
                _ask_store(context, lambda store: store.compare_set(_FAILURE, "", text.partition("\n")[0]))
        raised.logged_rank = context.rank  # type: ignore[attr-defined]
        show(text, error=True)
        if raised is error:
            raise
        raise raised from error


def _is_lost_contact(error: BaseException) -> bool:
    """Whether a collective failed because of another rank or the network; gloo has no type of its own for it."""
    return isinstance(error, dist.DistError) or isinstance(error, RuntimeError) and "gloo/transport" in str(error)


def _lost_rank(context: DistributedContext) -> str:
    """Why another rank is gone, by what it has left in the store."""
    waited = f"rank {context.rank} waited for it in vain"
    try:
        reason = _ask_store(context, lambda store: store.get(_FAILURE) if store.check([_FAILURE]) else None)
    except dist.DistError:
        return f"rank 0 has ended, and with it the key-value store; {waited}. See its own output."
    except TimeoutError:
        reason = None
    if reason is not None:
        return f"{reason.decode()}\n  That ended the run; {waited}."
    return (
        f"another rank was killed, hangs or cannot be reached, and left no message; {waited}.\n  See the launcher's "
        "output for the rank and its signal; the same command resumes from the newest checkpoint."
    )


def _ask_store(context: DistributedContext, ask: Callable[[dist.Store], T]) -> T | None:
    """What `ask` of the store returns; None without one. Raises TimeoutError, DistError."""
    if context.store is None:
        return None
    answer: Future[T] = Future()
    # In a thread: a store behind a link that was cut answers neither with data nor with an error.
    threading.Thread(target=settle, args=(partial(ask, context.store), answer), name="store", daemon=True).start()
    return answer.result(_STORE_S)


def call_on_main(context: DistributedContext, call: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """Calls `call` on rank 0 only; returns its result, or raises its exception, on every rank.

    group: what the outcome is broadcast over; a thread needs a group of its own, because collectives of two threads on
    one group could interleave.
    """
    outcome: list[tuple[T | None, Exception | None]] = [(None, None)]
    if context.is_main:
        try:
            outcome[0] = call(), None
        except Exception as error:  # broadcast, so that the other ranks raise it and do not wait for rank 0
            outcome[0] = None, error
    if context.size > 1:
        dist.broadcast_object_list(outcome, src=0, group=group, device=torch.device("cpu"))
    value, caught = outcome[0]
    if caught is not None:
        raise caught
    return cast(T, value)


def sum_over_ranks(context: DistributedContext, tensor: torch.Tensor) -> torch.Tensor:
    """All-reduces `tensor` in place and returns it."""
    if context.size > 1:
        dist.all_reduce(tensor)
    return tensor


def pick_device(device: str) -> torch.device:
    """The device that "auto", "cpu", "cuda" or "cuda:N" means for this local rank. Raises ConfigError if not there."""
    local_rank = environment_whole("LOCAL_RANK", 0)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ConfigError(f"device {device!r}: use auto, cpu, cuda or cuda:N.")
    picked = torch.device(device)
    if picked.type == "cpu":
        return picked
    if not torch.cuda.is_available():
        raise ConfigError(
            f"device {device!r}: torch {torch.__version__} sees no GPU. Use cpu, or see `ado-stream doctor`."
        )
    picked = torch.device("cuda", local_rank if picked.index is None else picked.index)
    if picked.index >= torch.cuda.device_count():
        raise ConfigError(
            f"device {device!r}: local rank {local_rank} needs GPU {picked.index}, this machine has "
            f"{torch.cuda.device_count()}. Start at most that many ranks on it."
        )
    torch.cuda.set_device(picked)
    return picked


def _require_cpu_backend() -> None:
    backends = dist.get_backend_config()
    if "cpu:" not in backends:
        raise ConfigError(
            f"the process group's backends are {backends}; a CPU backend is needed too.\n"
            f"  Create it with torch.distributed.init_process_group('cpu:gloo,cuda:nccl'), or let this program do so."
        )


def _require_launcher_variables() -> None:
    missing = [name for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"RANK is set, but {', '.join(missing)} is not: this process was not started by torchrun.\n"
            f"  Start it with `torchrun --nproc-per-node N -m ado_stream.cli train CONFIG.yaml`, or unset RANK."
        )


def _store(rank: int, size: int, timeout: timedelta) -> dist.Store:
    """The key-value store for rendezvous.

    Prefixed with torchrun's restart count: a restarted worker group that reuses the keys of the previous one can read
    its stale port.
    """
    agent_serves = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        environment_whole("MASTER_PORT", 0, most=(1 << 16) - 1),
        world_size=None if agent_serves else size,
        is_master=rank == 0 and not agent_serves,
        timeout=timeout,
    )
    return dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _end_with_launcher() -> None:
    """Has the kernel kill this rank when torchrun's agent ends; otherwise the orphaned rank would keep training."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
