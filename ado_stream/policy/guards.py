"""Guards: bounds on the mixture of any policy, another guard included. The wrapped policy is updated as without one.

Floor(policy, 0.005) and the like are policies themselves: same update, mixture, state; `guard.policy` is the wrapped
one. Invariant: the mixture of the outermost guard keeps its bound, also before the first step; shares that the bound
does not touch keep their proportions. Where guards conflict the outer one wins. (The first mixture_lag + 1 steps of a
training run are drawn by the data set's prior: no mixture can reach the draw earlier.)
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from ado_stream.errors import ConfigError
from ado_stream.option_checks import instance, known_name, lag, number, positive, whole
from ado_stream.policy import state_codec
from ado_stream.policy.base_policy import Policy
from ado_stream.policy.domain_weights import Weights, parse_values
from ado_stream.policy.mixture_bounds import check_floor, lower_to_ceiling, raise_to_floor
from ado_stream.value_types import Array, Bools, Floats, Ints, JsonMapping, JsonObject


class Guard(Policy):
    """Base of guards: updates the wrapped policy, then bounds its mixture."""

    def __init__(self, policy: Policy):
        instance("policy", policy, Policy)
        prior_K = policy.prior
        super().__init__(prior_K if policy.names is None else dict(zip(policy.names, prior_K, strict=True)))
        self.policy = policy
        self._prior_K = prior_K  # to the bit: the base divided it by its sum once more
        self.step = policy.step
        self._mixture_K = self._apply_bound(policy.mixture)
        self._copy_fit()

    def health(self) -> JsonObject:
        """The wrapped policy's, and "guards": the names of the guards around it, innermost first."""
        inner = self.policy.health()
        return {**inner, "guards": [*inner.get("guards", []), self.kind]}

    def take_notices(self) -> list[str]:
        """The wrapped policy's."""
        return self.policy.take_notices()

    def law_counts(self, drawn: ArrayLike) -> int | Floats:
        """The wrapped policy's."""
        return self.policy.law_counts(drawn)

    def _repr_parts(self) -> list[str]:
        return [self._repr_bound(), *super()._repr_parts(), f"policy={self.policy!r}"]

    @abstractmethod
    def _repr_bound(self) -> str:
        """The bound as the constructor takes it, NAME=VALUE."""

    @abstractmethod
    def _apply_bound(self, mixture_K: Floats) -> Floats:
        """`mixture_K` with the bound applied; (K,) shares."""

    def _next_mixture(self, loss_K: Floats, count_K: Floats, seen_K: Bools) -> Floats:
        mixture_K = self.policy.update(loss_K, count_K)
        self._copy_fit()
        return self._apply_bound(mixture_K)

    def _take_validation(self, loss_K: Floats, count_K: Floats) -> None:
        self.policy.observe_validation(loss_K, count_K)

    def _copy_fit(self) -> None:
        inner = self.policy
        self.fit, self.fit_step, self.attempt_step = inner.fit, inner.fit_step, inner.attempt_step

    def _extra_state(self) -> JsonObject:
        return {"inner": self.policy.state_dict()}

    def _load_extra(self, saved: JsonMapping, source_K: Ints, names: Sequence[str] | None) -> None:
        self.policy.load_state_dict(state_codec.section(saved, "inner"), names)

    def _after_load(self, same_domains: bool) -> None:
        self._copy_fit()
        self._mixture_K = self._apply_bound(self.policy.mixture)  # the bound may differ from the saved run's


class Floor(Guard):
    """No share below `minimum`: p_k = max(minimum, s p_k). Raises ConfigError when minimum x K > 1."""

    kind = "floor"

    def __init__(self, policy: Policy, minimum: float):
        instance("policy", policy, Policy)
        self._minimum = check_floor(minimum, policy.num_domains, "Floor")
        super().__init__(policy)

    @property
    def floor(self) -> float:
        """The greater of this floor and the wrapped policy's."""
        return max(self._minimum, self.policy.floor)

    def _repr_bound(self) -> str:
        return f"minimum={self._minimum:g}"

    def _apply_bound(self, mixture_K: Floats) -> Floats:
        return raise_to_floor(mixture_K, self._minimum)


class Ceiling(Guard):
    """No share above `maximum`, the excess shared over the others in proportion.

    maximum: one share for all, or (K,) or {name: share}. Raises ConfigError when the ceilings sum to less than 1.
    """

    kind = "ceiling"

    def __init__(self, policy: Policy, maximum: float | Weights):
        instance("policy", policy, Policy)
        num = policy.num_domains
        each = np.full(num, maximum) if isinstance(maximum, (int, float)) else maximum
        self._maximum_K = parse_values(each, policy.names, num, "Ceiling")
        total = self._maximum_K.sum()
        if total < 1.0 - 1e-12:
            raise ConfigError(
                f"Ceiling: the ceilings of {num} domains sum to {total:g} < 1; at least {1 / num:g} each."
            )
        super().__init__(policy)

    @property
    def floor(self) -> float:
        """The wrapped policy's, or the lowest ceiling where that is lower; shares cut off only raise the others."""
        return min(self.policy.floor, float(self._maximum_K.min()))

    def _repr_bound(self) -> str:
        low, high = self._maximum_K.min(), self._maximum_K.max()
        return f"maximum={low:g}" if low == high else f"maximum={low:g} to {high:g}"

    def _apply_bound(self, mixture_K: Floats) -> Floats:
        return lower_to_ceiling(mixture_K, self._maximum_K)


class Pin(Guard):
    """Domains at fixed shares; the others divide the rest in the wrapped policy's proportions.

    shares: {name: share}, or {index: share} where domains have no names. Raises ConfigError for an unknown domain, a
    share below 0, and shares that sum to more than 1 (or to less, when every domain is pinned).
    """

    kind = "pin"

    def __init__(self, policy: Policy, shares: Mapping[str | int, float]):
        instance("policy", policy, Policy)
        where = {label: index for index, label in enumerate(policy.labels)}
        if not isinstance(shares, Mapping):
            raise ConfigError(f"Pin: shares are {shares!r:.80}; expected {{domain: share}}.")
        for label in shares:
            known_name("domain", str(label), policy.labels, "Pin: ")
        total = sum(number(f"Pin: share of {label!r}", share, 0.0, 1.0) for label, share in shares.items())
        if total > 1.0 + 1e-12 or (len(shares) == policy.num_domains and total < 1.0 - 1e-12):
            raise ConfigError(
                f"Pin: shares {dict(shares)} sum to {total:g}; expected at most 1 (1 when every domain is pinned)."
            )
        self._pinned_K = np.array([label in {str(name) for name in shares} for label in policy.labels])
        self._share_K = np.zeros(policy.num_domains)
        for label, share in shares.items():
            self._share_K[where[str(label)]] = share
        super().__init__(policy)

    def _repr_bound(self) -> str:
        shares = [f"{label}: {share:g}" for label, share in zip(self.labels, self._share_K, strict=True)]
        return f"shares={{{', '.join(np.array(shares)[self._pinned_K])}}}"

    def _apply_bound(self, mixture_K: Floats) -> Floats:
        free_K = np.where(self._pinned_K, 0.0, mixture_K)
        if free_K.sum() <= 0.0:  # all shares are of pinned domains: the others divide the rest evenly
            free_K = np.where(self._pinned_K, 0.0, 1.0)
        left = max(1.0 - self._share_K.sum(), 0.0)
        return self._share_K + (free_K * (left / free_K.sum()) if left > 0.0 else 0.0)


class Freeze(Guard):
    """From step `from_step` on the mixture stays that step's; the wrapped policy is still updated.

    mixture_lag: the mixture after step s is drawn at step s + 1 + mixture_lag.
    """

    kind = "freeze"
    run_options = {"mixture_lag": "mixture_lag"}

    def __init__(self, policy: Policy, from_step: int = 0, mixture_lag: int = 0):
        self._from_step = from_step
        self._freeze_step = whole("Freeze: from_step", from_step) - lag("Freeze: mixture_lag", mixture_lag)
        super().__init__(policy)

    @property
    def floor(self) -> float:
        """The wrapped policy's."""
        return self.policy.floor

    def _next_mixture(self, loss_K: Floats, count_K: Floats, seen_K: Bools) -> Floats:
        mixture_K = super()._next_mixture(loss_K, count_K, seen_K)
        return self._mixture_K if self.step >= self._freeze_step else mixture_K

    def _after_load(self, same_domains: bool) -> None:
        self._copy_fit()  # the mixture is the frozen one

    def _repr_bound(self) -> str:
        return f"from_step={self._from_step}"

    def _apply_bound(self, mixture_K: Floats) -> Floats:
        return mixture_K


class RepetitionGuard(Guard):
    """No domain is planned for more than `max_epochs` passes over the run:

        p_k <= (max_epochs size_k - consumed_k) / samples left in the run,

    the excess shared over the others in proportion, repeated until none exceeds (docs/math.md section 6). A domain at
    its bound is spread evenly over the rest of the run, so it does not run out early; one without samples left gets 0.
    A mixture is drawn `mixture_lag` + 1 steps later, so a domain can end above its bound by a few samples for each of
    those batches.

    sizes: samples per domain, (K,) or {name: samples}. total_samples: those of the whole run (steps x global batch).
    Raises ConfigError when max_epochs of all domains are fewer samples than the run needs.
    """

    kind = "repetition"
    saved_numbers = {"_drawn": state_codec.sample_count}
    run_options = {"sizes": "sizes", "total_samples": "total_samples"}

    def __init__(self, policy: Policy, sizes: Weights, total_samples: int, max_epochs: float = 4.0):
        instance("policy", policy, Policy)
        size_K = parse_values(sizes, policy.names, policy.num_domains, "RepetitionGuard sizes")
        total_samples = whole("RepetitionGuard: total_samples", total_samples, 1)
        max_epochs = positive("RepetitionGuard: max_epochs", max_epochs)
        have = size_K.sum()
        if max_epochs * have < total_samples:
            raise ConfigError(
                f"RepetitionGuard: {max_epochs:g} epochs of {have:g} samples, but the run draws {total_samples}.\n"
                f"  Allow at least {total_samples / max(have, 1e-9):.4g} epochs, or run shorter."
            )
        self._max_epochs = max_epochs
        self._allowed_K = max_epochs * size_K
        self._total_samples = total_samples
        self._drawn = 0.0
        super().__init__(policy)

    def _initial(self) -> dict[str, Array]:
        return {**super()._initial(), "consumed": np.zeros(self.num_domains)}

    def _next_mixture(self, loss_K: Floats, count_K: Floats, seen_K: Bools) -> Floats:
        self.memory["consumed"] += count_K
        self._drawn += float(count_K.sum())
        return super()._next_mixture(loss_K, count_K, seen_K)

    def _repr_bound(self) -> str:
        return f"max_epochs={self._max_epochs:g}"

    def _apply_bound(self, mixture_K: Floats) -> Floats:
        left = self._total_samples - self._drawn
        unused_K = np.maximum(self._allowed_K - self.memory["consumed"], 0.0)
        if left <= 0.0 or not unused_K.any():  # the run is over, or longer than total_samples
            return mixture_K
        return lower_to_ceiling(mixture_K, unused_K / left)
