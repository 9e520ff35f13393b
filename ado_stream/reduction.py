"""Adds per-domain losses over ranks and brings rank 0's decision to all: the loader's collectives, and nothing else.

Sums that live on a GPU are reduced there (NCCL, in stream order) and copied to pinned memory; they are read one step
later, when the copy is long done. Sums on the host go through a gloo group of the loader's own, as do mixtures.
"""

from collections import deque
from collections.abc import Callable
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from ado_stream.errors import PolicyError

Told = tuple[int, np.ndarray, np.ndarray]  # step, (K,) loss sums, (K,) token counts; float64


class LossReduction:
    """(sums, counts) of each step over all ranks, in order; at most one step late.

    replication: so many consecutive ranks told the same numbers; they count once. timeout_s: how long ranks wait for
    each other on the host before all of them fail; a group of its own does not inherit that of the default group.
    """

    def __init__(self, num_domains: int, replication: int, timeout_s: float):
        self._num_domains, self._replication = num_domains, replication
        self._timeout = timedelta(seconds=timeout_s)
        self._waiting: deque[tuple[int, Callable[[], np.ndarray]]] = deque()
        self._group: dist.ProcessGroup | None = None

    def push(self, step: int, loss_sums: torch.Tensor, token_counts: torch.Tensor, reduced: bool = False) -> list[Told]:
        """Starts the reduction of a step, unless it is `reduced`; returns the steps that are ready, oldest first."""
        value_2K = self._stacked(step, loss_sums, token_counts)
        if not reduced:
            value_2K = self._over_ranks(value_2K)
        self._waiting.append((step, to_host_later(value_2K)))
        return self._ready(keep=1 if value_2K.is_cuda else 0)

    def drain(self) -> list[Told]:
        """Every step that is still on its way; waits for it."""
        return self._ready(keep=0)

    def drop(self) -> None:
        """Forgets what is on its way."""
        self._waiting.clear()

    def oldest(self) -> int | None:
        """The first step that is still on its way."""
        return self._waiting[0][0] if self._waiting else None

    def from_rank_0(self, mixture_K: np.ndarray | None, digest: int) -> np.ndarray:
        """Rank 0's mixture (K,), on every rank; the others give None.

        digest: of this rank's cursors; a rank that differs from rank 0 raises PolicyError: it would read other data.
        Raises PolicyError when rank 0 sent a failure instead.
        """
        message = torch.full((self._num_domains + 2,), torch.nan, dtype=torch.float64)
        message[-1] = own = digest % (1 << 50)
        message[-2] = 1.0
        if mixture_K is not None:
            message[:-2] = torch.from_numpy(mixture_K)
        dist.broadcast(message, src=0, group=self._host_group())
        if message[-2].item() != 1.0:
            raise PolicyError("the policy failed on rank 0; its message is in that rank's output.")
        if message[-1].item() != own:
            rank = dist.get_rank()
            raise PolicyError(f"rank {rank} stands elsewhere in the data than rank 0. Were all ranks given one state?")
        return message[:-2].numpy()

    def send_failure(self) -> None:
        """On rank 0, in place of `from_rank_0`: the policy failed, and no rank shall wait for it."""
        message = torch.full((self._num_domains + 2,), torch.nan, dtype=torch.float64)
        dist.broadcast(message, src=0, group=self._host_group())

    def _stacked(self, step: int, loss_sums: torch.Tensor, token_counts: torch.Tensor) -> torch.Tensor:
        pair = [torch.as_tensor(part).detach().to(torch.float64) for part in (loss_sums, token_counts)]
        for part, what in zip(pair, ("loss_sums", "token_counts"), strict=True):
            if part.shape != (self._num_domains,):
                raise PolicyError(
                    f"observe, step {step}: {what} has shape {tuple(part.shape)}; expected ({self._num_domains},), one "
                    f"per domain."
                )
        return torch.cat(pair)

    def _over_ranks(self, value_2K: torch.Tensor) -> torch.Tensor:
        if _distributed():
            dist.all_reduce(value_2K, group=None if value_2K.is_cuda else self._host_group())
        return value_2K / self._replication

    def _ready(self, keep: int) -> list[Told]:
        told = []
        while len(self._waiting) > keep:
            step, read = self._waiting.popleft()
            value_2K = read()
            told.append((step, value_2K[: self._num_domains], value_2K[self._num_domains :]))
        return told

    def _host_group(self) -> dist.ProcessGroup:
        if self._group is None:
            group = dist.new_group(backend="gloo", timeout=self._timeout)
            assert isinstance(group, dist.ProcessGroup)
            self._group = group
        return self._group


def to_host_later(value: torch.Tensor) -> Callable[[], np.ndarray]:
    """Starts a copy of a tensor to the host; what is returned waits for it. On the host already: no copy."""
    if not value.is_cuda:
        return value.numpy
    host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    host.copy_(value, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> np.ndarray:
        copied.synchronize()
        return host.numpy()

    return read


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
