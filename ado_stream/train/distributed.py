"""The ranks of a run: who they are, how they meet, what one tells the others.

torchrun is the launcher; alone, the world is one rank without any process group. Every wait between ranks ends after
the group's timeout. Source of the store per attempt: a restarted worker group that meets in the store of the dead one
can read its stale port; torchrun's restart count as a prefix keeps them apart.
"""

import contextlib
import ctypes
import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ado_stream.errors import ConfigError

PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class World:
    """One rank's view: its number, how many there are, the device it computes on, how long it waits for the others."""

    rank: int
    size: int
    device: torch.device
    timeout_s: float = 600.0

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the records and files that exist once."""
        return self.rank == 0


@contextlib.contextmanager
def join_world(device: str = "auto", timeout_s: float = 600.0) -> Iterator[World]:
    """Meets the other ranks that torchrun started, and leaves them at the end; alone without torchrun.

    A process group that the caller has made is used as it is and left alone. Raises ConfigError when the environment
    is half a launcher's, the device is not there, or the caller's group has no way to send what lies on the host.
    An exception inside leaves without taking leave: others may be in a collective that nobody will join, and torchrun
    ends them once this rank is gone.
    """
    world = expected_world(device, timeout_s)
    if dist.is_initialized() or "RANK" not in os.environ:
        yield world
        return
    _die_with_the_launcher()
    backend = "cpu:gloo,cuda:nccl" if world.device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_s)
    store = _store(world.rank, world.size, timeout)
    dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=timeout)
    yield world
    dist.destroy_process_group()


def expected_world(device: str = "auto", timeout_s: float = 600.0) -> World:
    """The world that `join_world` joins, without meeting anyone. Raises ConfigError as that does."""
    picked = pick_device(device)
    if dist.is_initialized():
        _refuse_a_group_without_cpu()
        return World(dist.get_rank(), dist.get_world_size(), picked, timeout_s)
    if "RANK" not in os.environ:
        return World(0, 1, picked, timeout_s)
    _refuse_half_a_launcher()
    return World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), picked, timeout_s)


@contextlib.contextmanager
def told_at_once(world: World) -> Iterator[None]:
    """An exception inside is printed with this rank's number before it goes on, since what it passes may wait."""
    try:
        yield
    except BaseException as error:
        if world.size > 1:
            print(f"rank {world.rank}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise


def on_main(world: World, call: Any, *arguments: Any, group: dist.ProcessGroup | None = None) -> Any:
    """What `call(*arguments)` returns on rank 0, on every rank; its exception likewise. Other ranks do not call.

    group: of all ranks, by which they are told (the default group if None); another thread needs one of its own.
    """
    value, error = None, None
    if world.is_main:
        try:
            value = call(*arguments)
        except Exception as caught:  # handed to every rank below, where it is raised
            error = caught
    if world.size > 1:
        box = [(value, error)]
        dist.broadcast_object_list(box, src=0, group=group, device=torch.device("cpu"))
        value, error = box[0]
    if error is not None:
        raise error
    return value


def sum_over_ranks(world: World, tensor: torch.Tensor) -> torch.Tensor:
    """The sum of every rank's `tensor`, in place."""
    if world.size > 1:
        dist.all_reduce(tensor)
    return tensor


def pick_device(device: str) -> torch.device:
    """The device that "auto", "cpu", "cuda" or "cuda:N" means for this local rank. Raises ConfigError: not there."""
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
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


def _refuse_a_group_without_cpu() -> None:
    backends = dist.get_backend_config()
    if "cpu:" not in backends:
        raise ConfigError(
            f"the process group is of {backends}: ranks cannot tell each other what lies on the host.\n"
            f"  Make it with torch.distributed.init_process_group('cpu:gloo,cuda:nccl'), or leave it to this program."
        )


def _refuse_half_a_launcher() -> None:
    missing = [name for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"RANK is set but {', '.join(missing)} not: this process was not started by torchrun.\n"
            f"  Start it with `torchrun --nproc-per-node N -m ado_stream.cli train CONFIG.yaml`, or unset RANK."
        )


def _store(rank: int, size: int, timeout: timedelta) -> dist.Store:
    """The key-value store where this attempt's ranks meet."""
    agent_serves = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world_size=None if agent_serves else size,
        is_master=rank == 0 and not agent_serves,
        timeout=timeout,
    )
    return dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def _die_with_the_launcher() -> None:
    """Asks the kernel to kill this rank when torchrun's agent dies, which else would leave its ranks running."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
