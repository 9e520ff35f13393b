"""The loader's collectives: per-domain losses summed over ranks, and rank 0's mixture broadcast.

Sums on a GPU are reduced there (NCCL, in stream order) and copied to pinned memory; they are read one step later, when
the copy has finished. Sums on the host are reduced in a gloo group of the loader's own; mixtures are broadcast in it.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from ado_stream.errors import PolicyError
from ado_stream.value_types import Floats

_DIGEST_RANGE = 1 << 50  # a digest travels as float64, which holds integers below 2^53 exactly


class ReducedLosses(NamedTuple):
    """A step's losses over all ranks."""

    step: int
    sum_K: Floats  # (K,) float64: loss sums, nats
    count_K: Floats  # (K,) float64: tokens


class LossReduction:
    """ReducedLosses of each step, in order; at most one step late.

    names: of the domains. replication: this many consecutive ranks have the same rows, which count once. timeout_s: how
    long ranks wait for each other on the host before all of them fail; a separate group does not inherit that of the
    default group. group: a gloo group of the ranks that take part, rank 0 among them; None: all ranks.
    """

    def __init__(
        self, names: Sequence[str], replication: int, timeout_s: float, group: dist.ProcessGroup | None = None
    ):
        self._names, self._num_domains, self._replication = list(names), len(names), replication
        self._timeout_s = timeout_s
        self._keep = 0  # newest pending steps not read yet: their copies may not have finished
        self._pending: deque[tuple[int, Callable[[], Floats]]] = deque()  # (step, wait for its copy and read it)
        self._group = self._given_group = group

    def push(self, step: int, loss_sums: torch.Tensor, token_counts: torch.Tensor, reduced: bool = False) -> None:
        """Starts the reduction of a step, unless it is `reduced`.

        Raises PolicyError for impossible tensors; nothing was changed or sent then.
        """
        value_2K = self._stacked(step, loss_sums, token_counts)
        if not reduced:
            value_2K = self._over_ranks(value_2K)
        self._pending.append((step, to_host_later(value_2K)))
        self._keep = 1 if value_2K.is_cuda else 0

    def ready(self, all_steps: bool = False) -> Iterator[ReducedLosses]:
        """The steps that can be read without waiting for a GPU, or all pending steps, oldest first.

        A step stays pending until the next is requested, so a step whose consumer raised comes again in the next call.
        Raises PolicyError for impossible counts that a GPU held.
        """
        while len(self._pending) > (0 if all_steps else self._keep):
            step, read = self._pending[0]
            value_2K = read()
            losses = ReducedLosses(step, value_2K[: self._num_domains], value_2K[self._num_domains :])
            self._check_counts(step, losses.count_K)
            yield losses
            self._pending.popleft()

    def drop(self) -> None:
        """Discards the pending steps."""
        self._pending.clear()

    def oldest(self) -> int | None:
        """The first pending step."""
        return self._pending[0][0] if self._pending else None

    def broadcast(self, mixture_K: Floats | None, digest: int) -> Floats:
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
        sums_K, counts_K = (
            self._checked(f"observe, step {step}: {what}", part)
            for what, part in (("loss_sums", loss_sums), ("token_counts", token_counts))
        )
        if sums_K.device != counts_K.device:
            raise PolicyError(
                f"observe, step {step}: loss_sums are on {sums_K.device}, token_counts on {counts_K.device}; expected "
                "one device."
            )
        if not counts_K.is_cuda:
            self._check_counts(step, counts_K.numpy())
        return torch.cat([sums_K, counts_K])

    def _checked(self, what: str, given: object) -> torch.Tensor:
        """`given` as (K,) float64 on its device."""
        try:
            part = given if isinstance(given, torch.Tensor) else torch.as_tensor(np.asarray(given), device="cpu")
        except (TypeError, ValueError, RuntimeError):
            raise PolicyError(f"{what} is {given!r:.80}; expected a tensor of numbers.") from None
        if part.shape != (self._num_domains,):
            raise PolicyError(f"{what} has shape {tuple(part.shape)}; expected ({self._num_domains},), one per domain.")
        if part.is_complex() or part.layout != torch.strided or part.device.type not in ("cpu", "cuda"):
            raise PolicyError(
                f"{what} is a tensor of {part.dtype}, {part.layout}, on {part.device}; expected real numbers on a CPU "
                "or GPU."
            )
        if part.is_floating_point() and part.dtype.itemsize < 4:
            raise PolicyError(
                f"{what} is a tensor of {part.dtype}, too narrow for a sum over a batch; add up in float32 or float64 "
                "(FSDP's output_dtype narrows what a model returns)."
            )
        return part.detach().to(torch.float64)

    def _check_counts(self, step: int, count_K: Floats) -> None:
        if (bad_K := ~((count_K >= 0) & (count_K < np.inf))).any():
            index = int(np.argmax(bad_K))
            raise PolicyError(
                f"observe, step {step}: domain {self._names[index]!r} has {count_K[index]} tokens; expected a finite "
                "number, 0 or more."
            )

    def _over_ranks(self, value_2K: torch.Tensor) -> torch.Tensor:
        if is_distributed():
            dist.all_reduce(value_2K, group=self._given_group if value_2K.is_cuda else self._host_group())
        return value_2K / self._replication

    def _host_group(self) -> dist.ProcessGroup:
        if self._group is None:
            self._group = new_host_group(self._timeout_s)
        return self._group


def new_host_group(timeout_s: float) -> dist.ProcessGroup:
    """A process group of all ranks for tensors on the host; all ranks must call this."""
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
    assert isinstance(group, dist.ProcessGroup)
    return group


def to_host_later(value: torch.Tensor) -> Callable[[], Floats]:
    """Starts a copy of a tensor to the host; returns a call that waits for it. No copy of a tensor on the host."""
    if not value.is_cuda:
        return value.numpy
    host = torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=True)
    host.copy_(value, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(value.device))  # where the copy runs; the current device may be another

    def read() -> Floats:
        copied.synchronize()
        return host.numpy()

    return read


def is_distributed() -> bool:
    """Whether this process is a rank of a process group."""
    return dist.is_available() and dist.is_initialized()
