"""The loader's collectives: per-domain losses summed over ranks, and rank 0's mixture broadcast.

Sums on a GPU are reduced there (NCCL, in stream order) and copied to pinned memory; they are read one step later, when
the copy is long done. Sums on the host are reduced in a gloo group of the loader's own; mixtures are broadcast in it.
"""

from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from ado_stream.errors import PolicyError

_DIGEST_RANGE = 1 << 50  # a digest travels as float64, which holds integers below 2^53 exactly


class ReducedLosses(NamedTuple):
    """A step's losses over all ranks."""

    step: int
    sum_K: np.ndarray  # (K,) float64: loss sums, nats
    count_K: np.ndarray  # (K,) float64: tokens


class LossReduction:
    """ReducedLosses of each step, in order; at most one step late.

    replication: this many consecutive ranks have the same rows, which count once. timeout_s: how long ranks wait for
    each other on the host before all of them fail; a group of its own does not inherit that of the default group.
    """

    def __init__(self, num_domains: int, replication: int, timeout_s: float):
        self._num_domains, self._replication = num_domains, replication
        self._timeout = timedelta(seconds=timeout_s)
        self._pending: deque[tuple[int, Callable[[], np.ndarray]]] = deque()  # (step, wait for its copy and read it)
        self._group: dist.ProcessGroup | None = None

    def push(
        self, step: int, loss_sums: torch.Tensor, token_counts: torch.Tensor, reduced: bool = False
    ) -> list[ReducedLosses]:
        """Starts the reduction of a step, unless it is `reduced`; returns the steps that are ready, oldest first."""
        value_2K = self._stacked(step, loss_sums, token_counts)
        if not reduced:
            value_2K = self._over_ranks(value_2K)
        self._pending.append((step, to_host_later(value_2K)))
        return self._ready(keep=1 if value_2K.is_cuda else 0)

    def drain(self) -> list[ReducedLosses]:
        """Every pending step; waits for the GPU."""
        return self._ready(keep=0)

    def drop(self) -> None:
        """Discards the pending steps."""
        self._pending.clear()

    def oldest(self) -> int | None:
        """The first pending step."""
        return self._pending[0][0] if self._pending else None

    def broadcast(self, mixture_K: np.ndarray | None, digest: int) -> np.ndarray:
        """Rank 0's mixture (K,), on every rank; the others pass None.

        digest: of this rank's cursors. Raises PolicyError on a rank whose digest differs from rank 0's, since it would
        read other data, and when rank 0 called `send_failure` instead.
        """
        # One message: the mixture, 1 for success, and the digest.
        message = torch.full((self._num_domains + 2,), torch.nan, dtype=torch.float64, device="cpu")
        message[-1] = own = digest % _DIGEST_RANGE
        message[-2] = 1.0
        if mixture_K is not None:
            message[:-2] = torch.from_numpy(mixture_K)
        dist.broadcast(message, src=0, group=self._host_group())
        if message[-2].item() != 1.0:
            raise PolicyError("the policy failed on rank 0; see the error in that rank's output.")
        if message[-1].item() != own:
            raise PolicyError(
                f"rank {dist.get_rank()} is at another position in the data than rank 0.\n"
                "  Load the same state on all ranks, and give all of them the same seed, batch size and domains."
            )
        return message[:-2].numpy()

    def send_failure(self) -> None:
        """In place of `broadcast` on rank 0 when its policy failed: makes `broadcast` raise on the other ranks."""
        message = torch.full((self._num_domains + 2,), torch.nan, dtype=torch.float64, device="cpu")
        dist.broadcast(message, src=0, group=self._host_group())

    def _stacked(self, step: int, loss_sums: torch.Tensor, token_counts: torch.Tensor) -> torch.Tensor:
        pair = [part.detach().to(torch.float64) for part in (loss_sums, token_counts)]
        for part, what in zip(pair, ("loss_sums", "token_counts"), strict=True):
            if part.shape != (self._num_domains,):
                raise PolicyError(
                    f"observe, step {step}: {what} has shape {tuple(part.shape)}; expected ({self._num_domains},), one "
                    f"per domain."
                )
        return torch.cat(pair)

    def _over_ranks(self, value_2K: torch.Tensor) -> torch.Tensor:
        if is_distributed():
            dist.all_reduce(value_2K, group=None if value_2K.is_cuda else self._host_group())
        return value_2K / self._replication

    def _ready(self, keep: int) -> list[ReducedLosses]:
        ready = []
        while len(self._pending) > keep:
            step, read = self._pending.popleft()
            value_2K = read()
            ready.append(ReducedLosses(step, value_2K[: self._num_domains], value_2K[self._num_domains :]))
        return ready

    def _host_group(self) -> dist.ProcessGroup:
        if self._group is None:
            group = dist.new_group(backend="gloo", timeout=self._timeout)
            assert isinstance(group, dist.ProcessGroup)
            self._group = group
        return self._group


def to_host_later(value: torch.Tensor) -> Callable[[], np.ndarray]:
    """Starts a copy of a tensor to the host; returns a call that waits for it. No copy of a tensor on the host."""
    if not value.is_cuda:
        return value.numpy
    host = torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=True)
    host.copy_(value, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(value.device))  # where the copy runs; the current device may be another

    def read() -> np.ndarray:
        copied.synchronize()
        return host.numpy()

    return read


def is_distributed() -> bool:
    """Whether this process is a rank of a process group."""
    return dist.is_available() and dist.is_initialized()
