"""AdaptiveLoader: batches from the stream, losses to the policy, mixtures back to the stream, on every rank.

Each step: the loop takes a batch, trains, and calls `observe` with its per-domain loss sums and token counts. The
loader adds them over ranks, updates the policy on rank 0, and publishes its mixture for step s + 1 + lag on every rank.
On a GPU the sums are reduced and copied to pinned memory without waiting; they are read when those of the next step
arrive, within the lag, so that the training loop never waits for the GPU because of the policy.

The policy runs on rank 0 alone: processors of different kinds may differ in the last bit of a mixture, and one bit can
change the domain of a slot.
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import numpy as np
import torch
import torch.distributed as dist

from ado_stream.errors import ConfigError, PolicyError, ResumeError
from ado_stream.json_files import check_type
from ado_stream.option_checks import flag, instance, positive, refuse_unknown, text, threads, whole
from ado_stream.policy.base_policy import Policy, RunContext
from ado_stream.policy.policy_registry import make_run_policy
from ado_stream.reduction import LossReduction, ReducedLosses, is_distributed
from ado_stream.stream.dataset import AdaptiveStreamingDataset
from ado_stream.stream.device_copies import TokenBatch, checked_device
from ado_stream.stream.torch_workers import missing_attribute
from ado_stream.value_types import Floats, Ints, JsonMapping, JsonObject

_CHECK_STEPS = 64  # how often ranks compare their cursors


class MixturePolicy(Protocol):
    """What a policy must have; `ado.make_policy` returns such objects, and any object with these four will do."""

    @property
    def mixture(self) -> Floats:
        """(K,): the mixture of the last update, or the first one."""

    def update(self, mean_losses: Floats, sample_counts: Ints, /) -> Floats:
        """The mixture (K,) after one more step; mean_losses: NaN for a domain without tokens."""

    def state_dict(self) -> JsonObject:
        """JSON-able state."""

    def load_state_dict(self, state: JsonMapping, *, names: Sequence[str] | None = None) -> None:
        """Continues from `state`. names: given when the domains differ from the saved ones."""


class AdaptiveLoader:
    """Batches of `dataset` with the mixture that `policy` learns from `observe`.

    Args:
        dataset: AdaptiveStreamingDataset; its mixture_lag must cover `prefetch`.
        policy: a MixturePolicy; or the name of one of `ado.make_policy`, or {"name": ..., "options": {...}, "guards":
            [...]} as in a config, made for the data set's domains; None: the mixtures come from dataset.publish.
        prefetch: batches made ahead; 0 makes each on demand.
        io_threads: threads that fetch, verify and decompress shards; 0 does it when a shard is read.
        pin_memory: page-locked token arrays, for asynchronous copies to a GPU.
        device: copy each batch there, one ahead and, with pin_memory, while the GPU computes; None: leave it on the
            host.
        timeout_s: how long ranks wait for each other in `observe`, seconds.
        group: a gloo group of the ranks that have a loader, rank 0 among them; None: all ranks have one.

    Iteration yields dicts (TokenBatch): tokens (b, T + 1) int64, domain (b,) int64, step int; a new iteration continues
    at the current step. A context manager; `close` stops the threads.
    """

    def __init__(
        self,
        dataset: AdaptiveStreamingDataset,
        policy: MixturePolicy | str | JsonMapping | None = None,
        prefetch: int = 4,
        io_threads: int = 4,
        pin_memory: bool = False,
        device: torch.device | str | None = None,
        timeout_s: float = 600.0,
        group: dist.ProcessGroup | None = None,
    ):
        self.dataset = instance("dataset", dataset, AdaptiveStreamingDataset)
        self._prefetch, self._io_threads = whole("prefetch", prefetch), threads("io_threads", io_threads)
        self._pin_memory, self._device = flag("pin_memory", pin_memory), checked_device(device)
        dataset.check_prefetch(self._prefetch)
        if isinstance(policy, str | Mapping):
            policy = make_policy_for(dataset, policy)
        if policy is not None:
            _check_policy(policy, dataset)
        self.policy: Any = policy  # of the caller's type, which may have more than a MixturePolicy
        self._observed = dataset.step  # the next step to be observed
        self._is_interrupted = False
        self._lost: dict[int, Ints] = {}  # samples (K,) of steps whose losses ended with the loop that was saved
        timeout_s = positive("timeout_s", timeout_s)
        self._reduction = LossReduction(dataset.names, dataset.rank_slots.replication, timeout_s, group)

    def __repr__(self) -> str:
        policy = None if self.policy is None else type(self.policy).__name__
        return (
            f"{type(self).__name__}({self.dataset!r}, policy={policy}, prefetch={self._prefetch}, "
            f"io_threads={self._io_threads})"
        )

    if not TYPE_CHECKING:  # or no attribute would be unknown to a type checker

        def __getattr__(self, name: str) -> NoReturn:
            raise missing_attribute(type(self).__name__, name, sys._getframe(1))

    @property
    def step(self) -> int:
        """The step of the next batch."""
        return self.dataset.step

    @property
    def mixture(self) -> Floats:
        """(K,) float64: the mixture of the last batch yielded; before any, of the first."""
        return self.dataset.mixture_in_force

    def __iter__(self) -> Iterator[TokenBatch]:
        """Batches from the current step on, without end; after an error the next call tries that step again."""
        return iter(self._next, None)  # a generator that has raised would be at its end

    def observe(self, loss_sums: torch.Tensor, token_counts: torch.Tensor, *, reduced: bool = False) -> None:
        """Reports the per-domain losses of the last batch yielded; one call after each batch.

        loss_sums: (K,) sums of token losses in nats; token_counts: (K,) numbers of tokens summed; any device, any dtype
        but those narrower than float32; over this rank's rows. They are added over ranks here, unless they are
        `reduced`: over the global batch, each sample counted once, the same on every rank. A domain without tokens has
        no loss this step; a sum that is not finite is passed to the policy, which ignores it. Raises PolicyError for
        other shapes, dtypes or devices and for counts that are negative or not finite; nothing has changed then, and
        the call can be repeated, corrected.
        (Counts on a GPU are checked when they are read, a step later; every call then raises that error.)
        """
        if self.policy is None:
            return
        step = self._observed
        if step >= self.step:
            raise PolicyError(f"observe: step {step} was not yielded yet; call observe once after each batch.")
        with self._in_one_piece():
            self._reduction.push(step, loss_sums, token_counts, reduced)
            self._observed = step + 1
            for losses in self._reduction.ready():
                self._update(losses)

    def skip_unobserved(self) -> None:
        """Observes batches that a loop left without doing so, as ones whose losses are not known. All ranks call it."""
        zeros_K = torch.zeros(len(self.dataset.names), dtype=torch.float64, device="cpu")
        while self.policy is not None and self._observed < self.step:
            self.observe(zeros_K, zeros_K)

    def observe_validation(self, mean_losses: Floats, sample_counts: Floats) -> None:
        """Reports losses on held-out text to a policy that learns from them, after every loss observed so far.

        mean_losses: (K,) nats per token, NaN where a domain has none; sample_counts: (K,) samples measured. All ranks
        must call it.
        """
        self.flush()
        receive = getattr(self.policy, "observe_validation", None)
        if receive is not None and (not is_distributed() or dist.get_rank() == 0):
            receive(mean_losses, sample_counts)

    def flush(self) -> None:
        """Updates the policy with every loss observed so far; waits for the GPU."""
        with self._in_one_piece():
            while self._lost:
                step = min(self._lost)
                self._update(ReducedLosses(step, np.zeros(len(self.dataset.names)), np.zeros(len(self.dataset.names))))
                del self._lost[step]  # only now: after an error the same step is tried again
            for losses in self._reduction.ready(all_steps=True):
                self._update(losses)

    @contextlib.contextmanager
    def _in_one_piece(self) -> Iterator[None]:
        """Raises PolicyError where an interrupt (Ctrl-C, a signal's handler) fell into an earlier call.

        Losses may then be counted without being passed on, or the policy be in the middle of its update: going on, or
        a state that is saved, would be wrong without a sign.
        """
        if self._is_interrupted:
            raise PolicyError(
                f"an interrupt fell into the policy's update before step {self._observed}: it may be half done.\n"
                "  Load a saved state, or end the process and resume from a checkpoint."
            )
        try:
            yield
        except Exception:  # nothing has changed then, or the same call can be repeated
            raise
        except BaseException:
            self._is_interrupted = True
            raise

    def statistics(self) -> JsonObject:
        """The data set's statistics: samples, bytes, cache hits, stalls, waits in seconds."""
        return self.dataset.statistics()

    def state_dict(self) -> JsonObject:
        """JSON-able, as of the last step yielded and every loss observed so far. Save that of rank 0.

        With several ranks all must call it: they update the policy together. Losses of a batch that is handed out and
        not observed are lost to a loop that continues from it: its policy goes on as after losses that are not finite.
        """
        # Flush first: it publishes mixtures, which belong to the stream's state.
        self.flush()
        if self.policy is None:
            return {"stream": self.dataset.state_dict(), "observed": self._observed, "policy": None}
        names = self.dataset.names
        unobserved = {
            str(step): dict(zip(names, self.dataset.sample_counts(step).tolist(), strict=True))
            for step in range(self._observed, self.step)
        }
        state = {"stream": self.dataset.state_dict(), "observed": self._observed, "policy": self.policy.state_dict()}
        return {**state, "unobserved": unobserved} if unobserved else state

    def load_state_dict(self, state: JsonMapping) -> None:
        """Continues from `state`, saved with any number of ranks.

        Raises ResumeError when it does not fit; nothing has changed then.
        """
        try:
            stream, observed, policy = state["stream"], state["observed"], state["policy"]
        except (KeyError, TypeError):
            raise ResumeError(
                "not the state of an AdaptiveLoader: 'stream', 'observed' or 'policy' is missing."
            ) from None
        if type(observed) is not int or observed < 0:
            raise ResumeError(f"not the state of an AdaptiveLoader: 'observed' is {observed!r}, not a step.")
        if (policy is None) != (self.policy is None):
            saved, here = ("without", "with") if policy is None else ("with", "without")
            raise ResumeError(f"the state was saved {saved} a policy, but this loader was made {here} one.")
        decoded = self.dataset.decode(stream)
        self._check_complete(observed, decoded[0], stream)
        lost = {} if policy is None else self._lost_steps(observed, decoded[0], state.get("unobserved"))
        if self.policy is not None:
            same = list(stream["domains"]) == self.dataset.names
            self.policy.load_state_dict(policy, **({} if same else {"names": self.dataset.names}))
        self.dataset.restore(decoded)  # raises nothing: the state was checked before the policy loaded its part
        self._reduction.drop()  # losses of the steps before the load
        self._lost, self._observed, self._is_interrupted = lost, observed + len(lost), False

    def close(self) -> None:
        """Stops the threads; iterating again continues at the current step."""
        self.dataset.close()

    def __enter__(self) -> "AdaptiveLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_complete(self, observed: int, step: int, stream: JsonMapping) -> None:
        """Raises ResumeError for losses of steps to come, and without a mixture that the losses before have given."""
        fault = f"'observed' is {observed} at step {step}" if observed > step else None
        lag = self.dataset.mixture_lag
        if fault is None and self.policy is not None and lag is not None:
            due = range(max(step, lag + 1), observed + lag + 1)  # the prior serves up to step lag
            fault = next((f"the mixture of step {s} is missing" for s in due if str(s) not in stream["mixtures"]), None)
        if fault is not None:
            raise ResumeError(f"not the state of an AdaptiveLoader: {fault}. Resume from another checkpoint.")

    def _lost_steps(self, observed: int, step: int, counts: JsonMapping | None) -> dict[int, Ints]:
        """{step: samples (K,)} of the steps from `observed` to `step`, by `counts` as saved. Raises ResumeError."""
        try:
            check_type(counts := counts or {}, dict[str, dict[str, int]], "'unobserved'", ResumeError)
            lost = {each: counts[str(each)] for each in range(observed, step)}
        except KeyError:
            raise ResumeError(
                f"the state was saved before loader.observe() for step {observed}, without that batch's counts.\n"
                "  Continue from a state that was saved after observe."
            ) from None
        return {each: np.array([of.get(name, 0) for name in self.dataset.names]) for each, of in lost.items()}

    def _next(self) -> TokenBatch:
        if self._lost:  # before any draw: the mixtures of the next steps follow from them
            self.flush()
        if self.policy is not None:
            self._check_observed()
        if not self.dataset.running:
            self.dataset.start(self._prefetch, self._io_threads, self._pin_memory, self._device)
        return self.dataset.next_batch()

    def _check_observed(self) -> None:
        """Raises PolicyError when the next step would wait forever: this thread alone publishes its mixture.

        Losses still on the GPU that the next step's mixture depends on are flushed.
        """
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

    def _update(self, losses: ReducedLosses) -> None:
        """Updates the policy on rank 0 and publishes its mixture on all ranks."""
        lag = self.dataset.mixture_lag
        assert lag is not None
        if not is_distributed():
            self.dataset.publish(losses.step + 1 + lag, self._next_mixture(losses))
            return
        digest = self.dataset.cursor_digest() if losses.step % _CHECK_STEPS == 0 else 0
        mixture_K = None
        if dist.get_rank() == 0:
            try:
                mixture_K = self._next_mixture(losses)
            except BaseException:
                self._reduction.send_failure()  # or the other ranks would wait in `broadcast` until the timeout
                raise
        self.dataset.publish(losses.step + 1 + lag, self._reduction.broadcast(mixture_K, digest))

    def _next_mixture(self, losses: ReducedLosses) -> Floats:
        assert self.policy is not None
        loss_K = np.full(losses.sum_K.size, np.nan)
        np.divide(losses.sum_K, losses.count_K, out=loss_K, where=losses.count_K > 0)
        count_K = self._lost[losses.step] if losses.step in self._lost else self.dataset.sample_counts(losses.step)
        if not count_K.any():  # of a lost step: all its samples were of domains that were retired since
            return np.asarray(self.policy.mixture, np.float64)
        return np.asarray(self.policy.update(loss_K, count_K), np.float64)


def make_policy_for(
    dataset: AdaptiveStreamingDataset, given: str | JsonMapping, steps: int | None = None, **facts: Any
) -> Policy:
    """The policy `given` by its name, or as {"name", "options", "guards"}, over the data set's domains and prior.

    Options that it leaves out are filled in from the data set, from `steps`, those of the run, and from `facts`, other
    fields of RunContext. Raises ConfigError.
    """
    if isinstance(given, str):
        given = {"name": given}
    refuse_unknown("policy", given, ("name", "options", "guards"))
    options = given.get("options") or {}
    if not isinstance(options, Mapping):
        raise ConfigError(f"policy: options is {options!r:.80}; expected a mapping.")
    sizes = dict(zip(dataset.names, dataset.num_samples.tolist(), strict=True))
    run = RunContext(steps, dataset.settings.num_samples, dataset.mixture_lag or 0, sizes, **facts)
    prior = dict(zip(dataset.names, dataset.prior.tolist(), strict=True))
    name = text("policy: name", given.get("name"))
    return make_run_policy(name, prior, options, given.get("guards") or [], run)


def _check_policy(policy: MixturePolicy, dataset: AdaptiveStreamingDataset) -> None:
    """Raises ConfigError unless `policy` is a MixturePolicy over the data set's domains that its lag allows."""
    missing = [each for each in ("mixture", "update", "state_dict", "load_state_dict") if not hasattr(policy, each)]
    if missing or isinstance(policy, type):
        lacks = f"it has no {', '.join(missing)}" if missing else "it is a class"
        raise ConfigError(
            f"policy is {policy!r:.80}; {lacks}. Expected a policy, such as ado.make_policy returns, or its name."
        )
    if dataset.mixture_lag is None:
        raise ConfigError("a policy needs mixture_lag >= prefetch; this data set has mixture_lag=None.")
    if np.shape(policy.mixture) != (len(dataset.names),):
        raise ConfigError(f"the policy has {np.size(policy.mixture)} domains, the data set {len(dataset.names)}.")
    names = getattr(policy, "names", None)
    if names is not None and list(names) != dataset.names:
        raise ConfigError(
            f"the policy's domains are {list(names)}, the data set's {dataset.names}.\n  Make the policy with the "
            "data set's names, in its order: dict(zip(dataset.names, dataset.prior))."
        )
