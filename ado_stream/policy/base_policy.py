"""The face that every policy shows: one step's losses and counts in, the next mixture out, state in and out.

Invariants: `mixture` is (K,) float64, finite, not negative, sums to 1; it depends only on the prior, the options and
the sequence of updates (no clock, no global generator); a state taken at any step and loaded into a policy made with
the same prior and options gives the same mixtures to the bit.

What a policy remembers of each domain lives in `memory`, one (K,) array a name; so that saving, checking and carrying
it over to another set of domains is written once, here.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ado_stream.errors import ConfigError, PolicyError, ResumeError
from ado_stream.policy import state_codec
from ado_stream.policy.domain_weights import Weights, labels_of, names_of, shares_of

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


class Policy(ABC):
    """Base of all policies. A policy of its own overrides `_initial` and `_next_mixture`, rarely more.

    prior: (K,) weights or {name: weight}; any positive scale. Raises ConfigError naming a domain with a bad weight.
    """

    kind: ClassVar[str]
    shares: tuple[str, ...] = ()  # arrays of `memory` that sum to 1
    fit: Any = None  # the last ScalingLawFit, for policies that fit laws
    fit_step: int | None = None  # the step of the last refit
    attempt_step: int | None = None  # the same, refits that failed included

    def __init__(self, prior: Weights):
        self.names = names_of(prior)
        self.num_domains = len(prior)
        if self.num_domains == 0:
            raise ConfigError(f"policy {self.kind!r}: no domains; the prior is empty.")
        self.labels = labels_of(self.names, self.num_domains)
        self.prior_K = shares_of(prior, self.names, self.num_domains, "prior")
        self.step = 0
        self.memory = self._initial()
        self._mixture_K = self.prior_K

    @property
    def floor(self) -> float:
        """The least share that every domain has in every mixture; 0 where nothing is promised."""
        return 0.0

    @property
    def mixture(self) -> Floats:
        """(K,) float64: the mixture that the last update gave, before the first one the policy's start. A copy."""
        return self._mixture_K.copy()

    def update(self, mean_losses: ArrayLike, sample_counts: ArrayLike) -> Floats:
        """The mixture after one more step, (K,) float64.

        mean_losses: (K,) nats per token, the global batch's; NaN where the domain was absent. A loss that is not
        finite or not above 0 is ignored and counted. sample_counts: (K,) samples of each domain in the global batch.
        Raises PolicyError when shapes are wrong, a count is negative or the batch was empty.
        """
        loss_K = np.asarray(mean_losses, dtype=np.float64)
        count_K = np.asarray(sample_counts, dtype=np.float64)
        if loss_K.shape != self.prior_K.shape or count_K.shape != self.prior_K.shape:
            raise PolicyError(
                f"policy {self.kind!r}, step {self.step}: {self.num_domains} domains, but losses have shape "
                f"{loss_K.shape} and counts {count_K.shape}."
            )
        total = float(np.add.reduce(count_K))
        if not (0.0 < total < np.inf and np.minimum.reduce(count_K) >= 0.0):
            raise PolicyError(
                f"policy {self.kind!r}, step {self.step}: sample counts must be 0 or more and not all 0, "
                f"got a sum of {total:g} and a least of {count_K.min():g}."
            )
        drawn_K = count_K > 0.0
        seen_K = drawn_K & (loss_K > 0.0) & (loss_K < np.inf)
        if np.count_nonzero(seen_K) != np.count_nonzero(drawn_K):
            self.memory["ignored"] += drawn_K & ~seen_K
        self._mixture_K = self._next_mixture(loss_K, count_K, seen_K)
        self.step += 1
        return self._mixture_K.copy()

    def state_dict(self) -> dict[str, Any]:
        """All that the policy remembers, as JSON values; exact and portable between machines."""
        return state_codec.seal(
            {
                "policy": self.kind,
                "names": self.names,
                "num_domains": self.num_domains,
                "step": self.step,
                "mixture": state_codec.pack(self._mixture_K),
                "memory": {name: state_codec.pack(array) for name, array in self.memory.items()},
                **self._extra_state(),
            }
        )

    def load_state_dict(self, state: Mapping[str, Any], names: Sequence[str] | None = None) -> None:
        """Continues from `state`.

        names: this policy's domains in order, given when domains were added or retired since the state was saved:
        those in both keep their memory, new ones start from the prior, retired ones are forgotten. Without it the
        domains must be the saved ones. Raises ResumeError naming the domains that differ, or what is damaged; the
        policy is then as before.
        """
        saved = state_codec.unseal(state)
        if saved.get("policy") != self.kind:
            raise ResumeError(
                f"policy state: saved by policy {saved.get('policy')!r}, but this run has {self.kind!r}.\n"
                "  Give the run the policy that it was saved with, or begin the run anew: `train ... --resume none`."
            )
        source_K = self._source_of(saved, names)
        memory = self._carried_memory(saved, source_K)
        mixture_K = self._carried(_read(saved, "mixture", source_K), self.prior_K, source_K, is_share=True)
        self._load_extra(saved, source_K, names)
        self.step = int(saved["step"])
        self.memory = memory
        self._mixture_K = mixture_K
        self._after_load(names is None)

    def health(self) -> dict[str, Any]:
        """Counters that tell an operator what happened, JSON-able; by domain where they are of a domain."""
        return {"policy": self.kind, "step": self.step, "ignored_losses": self._by_domain(self.memory["ignored"])}

    # What a policy of its own fills in -------------------------------------------------------------------------

    def _initial(self) -> dict[str, NDArray[Any]]:
        """The (K,) arrays of `memory` as they are before the first step."""
        return {"ignored": np.zeros(self.num_domains, dtype=np.int64)}

    @abstractmethod
    def _next_mixture(self, loss_K: Floats, count_K: Floats, seen_K: Bools) -> Floats:
        """The mixture after step `self.step`; a new array. Losses are valid where `seen_K`."""

    def _extra_state(self) -> dict[str, Any]:
        """State beyond `memory`, as JSON values."""
        return {}

    def _load_extra(self, saved: Mapping[str, Any], source_K: Ints, names: Sequence[str] | None) -> None:  # noqa: B027
        """Takes over what `_extra_state` saved; all checks before the first change."""

    def _after_load(self, same_domains: bool) -> None:  # noqa: B027 - a hook
        """Recomputes what follows from `memory`; the mixture too where other domains could break its bounds."""

    # Carrying state over ---------------------------------------------------------------------------------------

    def _source_of(self, saved: Mapping[str, Any], names: Sequence[str] | None) -> Ints:
        """(K,) where each domain stands in the saved state, -1 for a new one."""
        old = saved.get("names")
        identity_K = np.arange(self.num_domains)
        if names is None:
            if old == self.names and saved.get("num_domains") == self.num_domains:
                return identity_K
            raise ResumeError(_differing(self.names, self.num_domains, old, saved.get("num_domains")))
        if len(names) != self.num_domains or (self.names is not None and list(names) != self.names):
            raise ConfigError(f"names: {list(names)} are not this policy's domains {self.labels}.")
        if old is None:
            raise ResumeError("policy state: saved without domain names, so it fits no other domains.")
        where = {name: index for index, name in enumerate(old)}
        return np.array([where.get(name, -1) for name in names], dtype=np.int64)

    def _carried_memory(self, saved: Mapping[str, Any], source_K: Ints) -> dict[str, NDArray[Any]]:
        initial = self._initial()
        packed = saved.get("memory")
        if not isinstance(packed, Mapping) or packed.keys() != initial.keys():
            raise ResumeError(f"policy state: its memory should hold {sorted(initial)}, not {packed!r:.80}.")
        return {
            name: self._carried(_read(packed, name, source_K), fresh_K, source_K, name in self.shares)
            for name, fresh_K in initial.items()
        }

    def _carried(self, old_K: NDArray[Any], fresh_K: NDArray[Any], source_K: Ints, is_share: bool) -> Any:
        """`old_K` in this policy's order, `fresh_K` where the domain is new; exact when no domain came or went."""
        value_K = np.where(source_K >= 0, old_K[source_K], fresh_K).astype(fresh_K.dtype)
        reordered = np.array_equal(np.sort(source_K), np.arange(len(old_K)))
        return value_K if reordered or not is_share else value_K / value_K.sum()

    def _by_domain(self, value_K: NDArray[Any]) -> dict[str, Any]:
        return dict(zip(self.labels, value_K.tolist(), strict=True))


def _read(packed: Mapping[str, Any], name: str, source_K: Ints) -> NDArray[Any]:
    array = state_codec.unpack(packed.get(name), name)
    if array.ndim != 1 or len(array) <= source_K.max(initial=0):
        raise ResumeError(f"policy state: {name} has shape {array.shape}.")
    return array


def _differing(names: list[str] | None, num: int, old: list[str] | None, old_num: Any) -> str:
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
