"""The interface of policies: one step's losses and sample counts in, the next mixture out; state saved and loaded.

Invariants: `mixture` is (K,) float64, finite, not negative, sums to 1; it depends only on the prior, the options and
the sequence of updates (no clock, no global generator); a state taken at any step and loaded into a policy made with
the same prior and options gives the same mixtures to the bit.

Per-domain state lives in `memory`, one (K,) array a name, so that saving it, checking it and carrying it over to
another set of domains is written once, here.

A policy of your own is a subclass with a constructor `(prior, **options)` that overrides `_initial` and
`_next_mixture`. `make_policy("package.module:Class", prior, ...)` finds it without registration.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from ado_stream.errors import ConfigError, PolicyError, ResumeError
from ado_stream.option_checks import MOST_COUNT, check_arguments, floats
from ado_stream.policy import state_codec
from ado_stream.policy.domain_weights import Weights, domain_labels, domain_names, num_weights, parse_shares
from ado_stream.value_types import Array, Bools, Floats, Ints, JsonMapping, JsonObject

if TYPE_CHECKING:
    from ado_stream.policy.scaling_laws import ScalingLawFit


@dataclass(frozen=True)
class PlannedStage:
    """A stage of a run, of `steps` steps. mixture: {domain: weight}, a policy's name, or None: the run's."""

    steps: int
    step_samples: int  # of one step
    mixture: object = None


@dataclass(frozen=True)
class RunContext:
    """Properties of a run that fill in options which its config leaves out; None where unknown.

    steps, mixture_lag, evaluate_every_steps (0: no validation within the run): in steps. global_batch_size: samples a
    step, where no stages say otherwise. sizes: {domain: samples of one epoch}. val_sizes: {domain: samples of its val
    split}, all 0 without one. vocab_size: of the model.
    """

    steps: int | None
    global_batch_size: int | None
    mixture_lag: int = 0
    sizes: Mapping[str, float] | None = None
    val_sizes: Mapping[str, float] | None = None
    evaluate_every_steps: int | None = None
    vocab_size: int | None = None
    stages: Sequence[PlannedStage] = ()

    @property
    def total_samples(self) -> int | None:
        """Samples that the whole run draws."""
        if self.stages:
            return sum(stage.steps * stage.step_samples for stage in self.stages)
        return self.steps and self.global_batch_size and self.steps * self.global_batch_size

    def options_for(self, policy: type["Policy"]) -> JsonObject:
        """The options that `policy` takes from a run (its `run_options`), as far as they are known."""
        found = {option: getattr(self, name) for option, name in policy.run_options.items()}
        return {option: value for option, value in found.items() if value is not None}


def run_default(value: int | None, default: int, total_steps: int | None, divisor: int, least: int = 0) -> int:
    """`value`; where it is None `default`, at most a `divisor`-th of a run whose length is known, at least `least`."""
    if value is not None:
        return value
    return default if total_steps is None else min(default, max(total_steps // divisor, least))


class Policy(ABC):
    """Base of all policies.

    prior: (K,) weights or {name: weight}; any positive scale. Raises ConfigError naming a domain with a bad weight.
    """

    kind: ClassVar[str]  # name in states, records and messages; default "module:Class"
    run_options: ClassVar[Mapping[str, str]] = {}  # {option: the field of RunContext that fills it in}
    share_arrays: tuple[str, ...] = ()  # arrays of `memory` that sum to 1
    least_share: ClassVar[float] = 0.0  # that a saved one of them may hold
    saved_numbers: ClassVar[Mapping[str, Callable[[JsonMapping, str], object]]] = {}  # {attribute: its reader}
    fit: "ScalingLawFit | None" = None  # the last one, of policies that fit laws
    fit_step: int | None = None  # step of the last refit
    attempt_step: int | None = None  # step of the last refit, failed ones included

    def __init_subclass__(cls, **arguments: object) -> None:
        super().__init_subclass__(**arguments)
        if "kind" not in vars(cls):  # not inherited: the state of a subclass is not that of its parent
            cls.kind = f"{cls.__module__}:{cls.__qualname__}"

    def __init__(self, prior: Weights):
        self.names = domain_names(prior)
        self.num_domains = num_weights(prior, "prior")
        if self.num_domains == 0:
            raise ConfigError(f"policy {self.kind!r}: no domains; the prior is empty.")
        self.labels = domain_labels(self.names, self.num_domains)
        self._prior_K = parse_shares(prior, self.names, self.num_domains, "prior")
        self.step = 0
        self._notices: list[str] = []
        self.memory = self._initial()
        self._mixture_K = self._prior_K

    @classmethod
    def parse_options(cls, options: JsonMapping) -> JsonObject:
        """The constructor's keyword arguments for the options of a config. Raises ConfigError: unknown or missing."""
        check_arguments(cls.kind, cls, options)
        return dict(options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._repr_parts())})"

    def _repr_parts(self) -> list[str]:
        low, high = int(np.argmin(self._mixture_K)), int(np.argmax(self._mixture_K))
        extremes = [f"{self._mixture_K[index]:.3g} ({self.labels[index]})" for index in (low, high)]
        return [f"{self.num_domains} domains", f"step {self.step}", f"shares {' to '.join(extremes)}"]

    @property
    def prior(self) -> Floats:
        """(K,) float64: the prior as shares that sum to 1. A copy."""
        return self._prior_K.copy()

    @property
    def prior_K(self) -> Floats:
        """Former name of `prior`."""
        return self.prior

    @property
    def floor(self) -> float:
        """The least share that every domain has in every mixture; 0 where there is no such bound."""
        return 0.0

    @property
    def mixture(self) -> Floats:
        """(K,) float64: the mixture of the last update, or the initial one before any. A copy."""
        return self._mixture_K.copy()

    def update(self, mean_losses: ArrayLike, sample_counts: ArrayLike) -> Floats:
        """The mixture after one more step, (K,) float64.

        mean_losses: (K,) nats per token, the global batch's; NaN where the domain was absent. A loss that is not
        finite or not above 0 is ignored and counted. sample_counts: (K,) samples of each domain in the global batch.
        Raises PolicyError when shapes are wrong, a count is negative or the batch was empty.
        """
        loss_K, count_K = self._checked(mean_losses, sample_counts)
        if not np.add.reduce(count_K) > 0.0:
            raise PolicyError(f"policy {self.kind!r}, step {self.step}: sample counts must not be all 0.")
        drawn_K = count_K > 0.0
        seen_K = drawn_K & (loss_K > 0.0) & (loss_K < np.inf)
        if np.count_nonzero(seen_K) != np.count_nonzero(drawn_K):
            self.memory["ignored"] += drawn_K & ~seen_K
        self._mixture_K = self._next_mixture(loss_K, count_K, seen_K)
        self.step += 1
        return self._mixture_K.copy()

    def observe_validation(self, mean_losses: ArrayLike, sample_counts: ArrayLike) -> None:
        """Takes losses on held-out text, measured after the last update; policies that learn from training ignore it.

        mean_losses: (K,) nats per token, NaN where a domain has no such text; sample_counts: (K,) samples measured.
        Raises as `update`, but all counts may be 0.
        """
        self._take_validation(*self._checked(mean_losses, sample_counts))

    def _checked(self, mean_losses: ArrayLike, sample_counts: ArrayLike) -> tuple[Floats, Floats]:
        """(loss_K, count_K), of one number a domain, counts of 0 or more. Raises PolicyError."""
        loss_K, count_K = floats(mean_losses), floats(sample_counts)
        where = f"policy {self.kind!r}, step {self.step}"
        if loss_K is None or count_K is None:
            raise PolicyError(
                f"{where}: losses {mean_losses!r:.80} and counts {sample_counts!r:.80}; expected a number for each "
                "domain."
            )
        if loss_K.shape != self._prior_K.shape or count_K.shape != self._prior_K.shape:
            raise PolicyError(
                f"{where}: {self.num_domains} domains, but losses have shape {loss_K.shape} and counts {count_K.shape}."
            )
        total, least = np.add.reduce(count_K), np.minimum.reduce(count_K)
        if not (total <= MOST_COUNT and least >= 0.0):
            raise PolicyError(
                f"{where}: sample counts must be 0 or more, 2^53 at most, got a sum of {total:g} and a least of "
                f"{least:g}."
            )
        return loss_K, count_K

    def take_notices(self) -> list[str]:
        """Messages for an operator since the last call, a sentence each."""
        notices, self._notices = self._notices, []
        return notices

    def law_counts(self, drawn: ArrayLike) -> int | Floats:
        """The n at which the laws in `fit` give the present loss, after `drawn` (K,) samples of the domains.

        The samples of all domains together; (K,) where laws are functions of each domain's own.
        """
        return int(np.sum(drawn))

    def state_dict(self) -> JsonObject:
        """The whole state as JSON values; exact and portable between machines."""
        return state_codec.seal(
            {
                "policy": self.kind,
                "names": self.names,
                "num_domains": self.num_domains,
                "step": self.step,
                "mixture": state_codec.pack(self._mixture_K),
                "memory": {name: state_codec.pack(array) for name, array in self.memory.items()},
                **{name.removeprefix("_"): getattr(self, name) for name in self.saved_numbers},
                **self._extra_state(),
            }
        )

    def load_state_dict(self, state: JsonMapping, names: Sequence[str] | None = None) -> None:
        """Continues from `state`.

        names: this policy's domains in order, given when domains were added or retired since the state was saved:
        those in both keep their memory, new ones start from the prior, retired ones are dropped. Without it the
        domains must be the saved ones. Raises ResumeError naming the domains that differ, or what is damaged; the
        policy is then unchanged.
        """
        saved = state_codec.unseal(state)
        if saved.get("policy") != self.kind:
            raise ResumeError(
                f"policy state: saved by policy {saved.get('policy')!r}, but this run has {self.kind!r}.\n"
                "  Use the policy that it was saved with, or start a new run: `train ... --resume none`."
            )
        source_K = self._source_indices(saved, names)
        memory = self._remap_memory(saved, source_K)
        mixture_K = _carry_over(saved.get("mixture"), "mixture", saved, self._prior_K, source_K, least_share=0.0)
        numbers: JsonObject = {"step": state_codec.whole_number(saved, "step")}
        numbers |= {name: read(saved, name.removeprefix("_")) for name, read in self.saved_numbers.items()}
        self._load_extra(saved, source_K, names)  # the last that can raise; nothing was changed before it
        vars(self).update(numbers)
        self.memory = memory
        self._mixture_K = mixture_K
        self._after_load(names is None)

    def health(self) -> JsonObject:
        """Counters for operators as JSON values, by domain where they are of a domain."""
        return {"policy": self.kind, "step": self.step, "ignored_losses": self._by_domain(self.memory["ignored"])}

    # Overridden by policies ------------------------------------------------------------------------------------

    def _initial(self) -> dict[str, Array]:
        """The (K,) arrays of `memory` before the first step; NaN for what is not known yet.

        A state whose values they cannot become is refused: another dtype, NaN or infinity without one of them here,
        whole numbers below the least ones here.
        """
        return {"ignored": np.zeros(self.num_domains, dtype=np.int64)}

    @abstractmethod
    def _next_mixture(self, loss_K: Floats, count_K: Floats, seen_K: Bools) -> Floats:
        """The mixture after step `self.step`; a new array. Losses are valid where `seen_K`."""

    def _take_validation(self, loss_K: Floats, count_K: Floats) -> None:  # noqa: B027
        """Takes what `observe_validation` checked."""

    def _extra_state(self) -> JsonObject:
        """State beyond `memory` and `saved_numbers`, as JSON values."""
        return {}

    def _load_extra(self, saved: JsonMapping, source_K: Ints, names: Sequence[str] | None) -> None:  # noqa: B027
        """Restores what `_extra_state` saved; all checks come before the first change."""

    def _after_load(self, same_domains: bool) -> None:  # noqa: B027 - a hook
        """Recomputes what is derived from `memory`; the mixture too where other domains could break its bounds."""

    # Carrying state over to other domains ----------------------------------------------------------------------

    def _source_indices(self, saved: JsonMapping, names: Sequence[str] | None) -> Ints:
        """(K,) index of each domain in the saved state, -1 for a new one."""
        old, num = saved.get("names"), state_codec.whole_number(saved, "num_domains", 1)
        if not (
            old is None or isinstance(old, list) and all(isinstance(name, str) for name in old) and len(old) == num
        ):
            raise ResumeError(f"policy state: 'names' is {old!r:.80}; expected the names of {num} domains.")
        if names is None:
            if old == self.names and num == self.num_domains:
                return np.arange(self.num_domains)
            raise ResumeError(_domain_difference(self.names, self.num_domains, old, num))
        if len(names) != self.num_domains or (self.names is not None and list(names) != self.names):
            raise ConfigError(f"names: {list(names)} are not this policy's domains {self.labels}.")
        if old is None:
            raise ResumeError("policy state: saved without domain names, so it fits no other domains.")
        where = {name: index for index, name in enumerate(old)}
        return np.array([where.get(name, -1) for name in names], dtype=np.int64)

    def _remap_memory(self, saved: JsonMapping, source_K: Ints) -> dict[str, Array]:
        initial, packed = self._initial(), state_codec.section(saved, "memory")
        if packed.keys() != initial.keys():
            raise ResumeError(f"policy state: its memory should hold {sorted(initial)}, not {sorted(packed)!r:.80}.")
        least_shares = dict.fromkeys(self.share_arrays, self.least_share)
        return {
            name: _carry_over(packed[name], name, saved, initial_K, source_K, least_shares.get(name))
            for name, initial_K in initial.items()
        }

    def _by_domain(self, value_K: Array) -> JsonObject:
        return dict(zip(self.labels, value_K.tolist(), strict=True))


def are_the_saved_ones(source_K: Ints, num_saved: int) -> bool:
    """Whether the domains are those of the state, in any order; source_K: index of each in it, -1 for a new one."""
    return np.array_equal(np.sort(source_K), np.arange(num_saved))


def _carry_over(
    packed: object, name: str, saved: JsonMapping, initial_K: Array, source_K: Ints, least_share: float | None
) -> Array:
    """The saved array in this policy's order, `initial_K` where the domain is new; shares divided by their sum.

    least_share: None for what is no share.
    """
    old_K = state_codec.unpack(packed, name, initial_K, (saved["num_domains"],))
    value_K = np.where(source_K >= 0, old_K[source_K], initial_K).astype(initial_K.dtype)
    if least_share is None:
        return value_K
    state_codec.check_shares(old_K, name, least_share)
    # the same domains again: the sum is 1 up to rounding, and dividing by it would change the last bit
    if are_the_saved_ones(source_K, len(old_K)):
        return value_K
    total = value_K.sum()
    return value_K / total if total > 0.0 else initial_K  # those that remain had no share


def _domain_difference(names: list[str] | None, num: int, old: list[str] | None, old_num: object) -> str:
    if names is None or old is None:
        return (
            f"policy state: of {old_num} domains ({'with' if old else 'without'} names), "
            f"but this policy has {num} ({'with' if names else 'without'} names)."
        )
    added = [name for name in names if name not in old]
    gone = [name for name in old if name not in names]
    what = "; ".join(text for text in (added and f"new {', '.join(added)}", gone and f"gone {', '.join(gone)}") if text)
    return (
        f"policy state: other domains than it was saved with: {what or 'the same in another order'}.\n"
        "  To carry over those that remain, call load_state_dict(state, names=[the domains in their new order])."
    )
