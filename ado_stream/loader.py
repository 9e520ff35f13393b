"""AdaptiveLoader: the one place where stream, policy and the all-reduce meet.

Each step: the loop takes a batch, trains, and calls `observe` with its per-domain loss sums and token counts. The
loader adds them over ranks, lets the policy of rank 0 decide, and publishes its mixture for step s + 1 + lag on every
rank.
On a GPU the sums are reduced and copied to pinned memory without waiting; they are read when the next step's arrive,
one of the lag's steps later, so the training loop never synchronises for the policy's sake.

Rank 0 decides for all: unlike processors may differ in the last bit of a mixture, and one bit can move a slot.
"""

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ado_stream.errors import ConfigError, PolicyError, ResumeError
from ado_stream.reduction import LossReduction
from ado_stream.stream.dataset import AdaptiveStreamingDataset

_CHECK_STEPS = 64  # how often ranks compare where they stand in the data


class AdaptiveLoader:
    """Batches of `dataset` with the mixture that `policy` learns from `observe`.

    Args:
        dataset: AdaptiveStreamingDataset; its mixture_lag must cover `prefetch`.
        policy: any object with update(mean_losses, sample_counts) -> mixture (ado.make_policy); None: the mixture comes
            from dataset.publish.
        prefetch: batches made ahead; 0 makes each when asked.
        io_threads: threads that fetch, verify and decompress shards; 0 does it when a shard is read.
        pin_memory: page-locked token arrays, for asynchronous copies to a GPU.
        device: copy each batch there, one ahead and, with pin_memory, beside the compute; None leaves it on the host.
        timeout_s: how long ranks wait for each other in `observe`, seconds.

    Iteration yields dicts: tokens (b, T + 1) int64, domain (b,) int64, step int; it goes on after a break. A context
    manager; `close` stops the threads.
    """

    def __init__(
        self,
        dataset: AdaptiveStreamingDataset,
        policy: Any = None,
        prefetch: int = 4,
        io_threads: int = 4,
        pin_memory: bool = False,
        device: torch.device | str | None = None,
        timeout_s: float = 600.0,
    ):
        if policy is not None and dataset.mixture_lag is None:
            raise ConfigError("a policy needs mixture_lag >= prefetch; this data set has mixture_lag=None.")
        if policy is not None and np.shape(policy.mixture) != (len(dataset.names),):
            raise ConfigError(f"the policy has {np.size(policy.mixture)} domains, the data set {len(dataset.names)}.")
        if prefetch < 0 or io_threads < 0:
            raise ConfigError(f"prefetch {prefetch}, io_threads {io_threads}; expected 0 or more.")
        dataset.check_prefetch(prefetch)
        self.dataset, self.policy = dataset, policy
        self._prefetch, self._io_threads, self._pin_memory = prefetch, io_threads, pin_memory
        self._device = None if device is None else torch.device(device)
        self._observed = dataset.step  # the next step to be observed
        self._reduction = LossReduction(len(dataset.names), dataset.world.replication, timeout_s)

    @property
    def step(self) -> int:
        """The step that is handed out next."""
        return self.dataset.step

    @property
    def mixture(self) -> np.ndarray:
        """(K,) float64: the mixture of the batch last handed out, or of the first one."""
        return self.dataset.mixture_in_force

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Batches from the current step on, for ever."""
        while True:
            yield self._next()

    def observe(self, loss_sums: torch.Tensor, token_counts: torch.Tensor, *, reduced: bool = False) -> None:
        """Tells the policy what the batch last handed out taught: one call a step, in order.

        loss_sums: (K,) sums of token losses in nats; token_counts: (K,) tokens they are over; any device and number
        type, over this rank's rows; added over ranks here, unless the caller did and they are `reduced`: of the global
        batch, each sample counted once, the same on every rank. A domain without tokens has no loss this step; a sum
        that is not finite is passed to the policy as such, which leaves it out.
        """
        if self.policy is None:
            return
        step = self._observed
        if step >= self.step:
            raise PolicyError(f"observe: step {step} was not handed out yet; call observe once after each batch.")
        self._observed = step + 1
        for told, sum_K, count_K in self._reduction.push(step, loss_sums, token_counts, reduced):
            self._update(told, sum_K, count_K)

    def flush(self) -> None:
        """Brings every loss told so far to the policy; waits for the GPU."""
        for step, sum_K, count_K in self._reduction.drain():
            self._update(step, sum_K, count_K)

    def statistics(self) -> dict[str, Any]:
        """The data set's statistics: samples, bytes, cache hits, stalls, waits in seconds."""
        return self.dataset.statistics()

    def state_dict(self) -> dict[str, Any]:
        """JSON-able; stands for the step last handed out, with every loss told so far. Rank 0's is the whole truth."""
        self.flush()
        policy = None if self.policy is None else self.policy.state_dict()
        return {"stream": self.dataset.state_dict(), "observed": self._observed, "policy": policy}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to where `state` stands, on any number of ranks. Raises ResumeError when it does not fit."""
        try:
            stream, observed, policy = state["stream"], state["observed"], state["policy"]
        except (KeyError, TypeError):
            raise ResumeError(
                "this is not the state of an AdaptiveLoader: 'stream', 'observed' or 'policy' missing."
            ) from None
        if (policy is None) != (self.policy is None):
            raise ResumeError(f"saved {'without' if policy is None else 'with'} a policy; this loader is not.")
        self._reduction.drop()
        self.dataset.load_state_dict(stream)
        if self.policy is not None:
            same = list(stream["domains"]) == self.dataset.names
            self.policy.load_state_dict(policy, **({} if same else {"names": self.dataset.names}))
        self._observed = observed

    def close(self) -> None:
        """Stops the threads; iterating again goes on at the current step."""
        self.dataset.close()

    def __enter__(self) -> "AdaptiveLoader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _next(self) -> dict[str, Any]:
        if self.policy is not None:
            self._check_observed()
        if not self.dataset.running:
            self.dataset.start(self._prefetch, self._io_threads, self._pin_memory, self._device)
        return self.dataset.next_batch()

    def _check_observed(self) -> None:
        """The mixture of the next step must be on its way; nobody but this thread can send it."""
        lag = self.dataset.mixture_lag
        assert lag is not None
        if self._observed + lag < self.step:
            raise PolicyError(
                f"loader.observe() was not called for step {self._observed}; step {self.step} needs it (mixture_lag "
                f"{lag}).\n  Call loader.observe(loss_sums, token_counts) once after every batch."
            )
        oldest = self._reduction.oldest()
        if oldest is not None and oldest + lag < self.step:
            self.flush()

    def _update(self, step: int, sum_K: np.ndarray, count_K: np.ndarray) -> None:
        """One step of the policy on rank 0, its mixture to all ranks."""
        lag = self.dataset.mixture_lag
        assert lag is not None
        if not (dist.is_available() and dist.is_initialized()):
            self.dataset.publish(step + 1 + lag, self._decide(step, sum_K, count_K))
            return
        digest = self.dataset.cursor_digest() if step % _CHECK_STEPS == 0 else 0
        mixture_K = None
        if dist.get_rank() == 0:
            try:
                mixture_K = self._decide(step, sum_K, count_K)
            except BaseException:
                self._reduction.send_failure()
                raise
        self.dataset.publish(step + 1 + lag, self._reduction.from_rank_0(mixture_K, digest))

    def _decide(self, step: int, sum_K: np.ndarray, count_K: np.ndarray) -> np.ndarray:
        loss_K = np.full(sum_K.size, np.nan)
        np.divide(sum_K, count_K, out=loss_K, where=count_K > 0)
        return np.asarray(self.policy.update(loss_K, self.dataset.sample_counts(step)), np.float64)
