"""Policies that do not depend on losses: natural, uniform, fixed, temperature, UniMax, and a schedule in steps.

Invariant: the mixture is a function of the options and the step alone. Sources: temperature sampling as in multilingual
BERT and mT5 (arXiv 2010.11934); UniMax arXiv 2304.09151, algorithm 1.
"""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from ado_stream.errors import ConfigError
from ado_stream.option_checks import known_name, lag, number, one_of, positive
from ado_stream.policy.base_policy import Policy
from ado_stream.policy.domain_weights import Weights, parse_shares, parse_values
from ado_stream.policy.published_mixtures import PUBLISHED_MIXTURES
from ado_stream.value_types import Bools, Floats


class StaticPolicy(Policy):
    """A policy whose mixture never changes. After a resume it is the options' mixture, not the saved one."""

    def __init__(self, prior: Weights):
        super().__init__(prior)
        self._mixture_K = self._fixed_K = self._fixed_mixture()

    @abstractmethod
    def _fixed_mixture(self) -> Floats:
        """(K,) the mixture, from the prior and the options."""

    def _next_mixture(self, loss_K: Floats, count_K: Floats, seen_K: Bools) -> Floats:
        return self._fixed_K

    def _after_load(self, same_domains: bool) -> None:
        self._mixture_K = self._fixed_K


class Natural(StaticPolicy):
    """p proportional to the prior: to the domains' tokens, when the prior is by tokens."""

    kind = "natural"

    def _fixed_mixture(self) -> Floats:
        return self._prior_K


class Uniform(StaticPolicy):
    """p_k = 1 / K."""

    kind = "uniform"

    def _fixed_mixture(self) -> Floats:
        return np.full(self.num_domains, 1.0 / self.num_domains)


class Fixed(StaticPolicy):
    """p proportional to given weights.

    weights: (K,) or {name: weight}, or the name of a published table (published_mixtures.py). Raises ConfigError
    naming a domain that is missing, unknown or negative.
    """

    kind = "fixed"

    def __init__(self, prior: Weights, weights: Weights | str):
        if isinstance(weights, str):
            weights = PUBLISHED_MIXTURES[known_name("table", weights, PUBLISHED_MIXTURES, "fixed: ")]
        self._weights = weights
        super().__init__(prior)

    def _fixed_mixture(self) -> Floats:
        return parse_shares(self._weights, self.names, self.num_domains, "fixed weights")


class Temperature(StaticPolicy):
    """p proportional to size^(1/tau): tau = 1 natural, tau -> infinity uniform.

    sizes: tokens per domain, (K,) or {name: tokens}; default the prior.
    """

    kind = "temperature"
    run_options = {"sizes": "sizes"}

    def __init__(self, prior: Weights, tau: float, sizes: Weights | None = None):
        self._tau, self._sizes = positive("temperature: tau", tau), prior if sizes is None else sizes
        super().__init__(prior)

    def _fixed_mixture(self) -> Floats:
        size_K = parse_shares(self._sizes, self.names, self.num_domains, "temperature sizes")
        # divided by the greatest: small shares to a great power underflow, and the sum must not become 0
        powered_K: Floats = (size_K / size_K.max()) ** (1.0 / self._tau)
        return powered_K / float(powered_K.sum())


class UniMax(StaticPolicy):
    """As uniform as the data allows: no domain is planned for more than `max_epochs` passes over a budget.

    sizes: tokens (or samples) per domain; default the prior, unless that sums to 1: shares are no sizes. budget: what
    the run will draw, in the same unit.
    """

    kind = "unimax"
    run_options = {"sizes": "sizes", "budget": "total_samples"}

    def __init__(self, prior: Weights, budget: float, max_epochs: float = 4.0, sizes: Weights | None = None):
        self._budget, self._max_epochs = positive("unimax: budget", budget), positive("unimax: max_epochs", max_epochs)
        self._sizes = prior if sizes is None else sizes
        super().__init__(prior)
        if sizes is None and self._size_K.sum() <= 1.0 + 1e-6:
            raise ConfigError(
                "unimax: option 'sizes' is missing; the prior sums to 1, so it holds shares.\n"
                "  Give the tokens or samples of every domain, in the unit of the budget."
            )

    def _fixed_mixture(self) -> Floats:
        self._size_K = parse_values(self._sizes, self.names, self.num_domains, "unimax sizes")
        if not self._size_K.any():
            raise ConfigError(f"unimax sizes: all {self.num_domains} are 0; at least one domain must hold data.")
        return unimax(self._size_K, self._budget, self._max_epochs)


def unimax(size_K: Floats, budget: float, max_epochs: float) -> Floats:
    """(K,) shares: domains in ascending size, each gets min(budget left / domains left, max_epochs x size).

    When the budget exceeds max_epochs of everything, shares are proportional to sizes. Source: arXiv 2304.09151.
    """
    share_K = np.zeros(len(size_K))
    left = budget
    for place, domain in enumerate(np.argsort(size_K, kind="stable")):  # what small ones cannot take is left for larger
        share_K[domain] = min(left / (len(size_K) - place), max_epochs * size_K[domain])
        left -= share_K[domain]
    return share_K / float(share_K.sum())


class Schedule(Policy):
    """A mixture that moves through knots: a function of the step alone.

    knots: [(step, weights), ...] with rising steps; weights (K,) or {name: weight}. interpolation: "linear" between
    knots, or "constant" (each holds until the next). Before the first and after the last knot the nearest holds.
    mixture_lag: the mixture after step s is drawn at step s + 1 + mixture_lag, so it is that step's of the schedule;
    steps 0 to mixture_lag are drawn by the initial mixture, that of step 0, or in training by the data set's prior.
    """

    kind = "schedule"
    run_options = {"mixture_lag": "mixture_lag"}

    def __init__(
        self,
        prior: Weights,
        knots: Sequence[tuple[float, Weights]],
        interpolation: str = "linear",
        mixture_lag: int = 0,
    ):
        super().__init__(prior)
        self._linear = one_of("schedule: interpolation", interpolation, ("linear", "constant")) == "linear"
        self._lag = lag("schedule: mixture_lag", mixture_lag)
        if not isinstance(knots, Sequence) or not all(isinstance(knot, Sequence) and len(knot) == 2 for knot in knots):
            raise ConfigError(f"schedule: knots are {knots!r:.80}; expected [[step, weights], ...].")
        steps = [number("schedule: step of a knot", knot[0]) for knot in knots]
        if not steps or any(late <= early for early, late in zip(steps, steps[1:], strict=False)):
            raise ConfigError(f"schedule: knots need rising steps, got {steps}.")
        self._step_M = np.array(steps, dtype=np.float64)
        self._share_MK: Floats = np.stack(
            [parse_shares(weights, self.names, self.num_domains, f"schedule, step {step}") for step, weights in knots]
        )
        self._mixture_K = self._mixture_at(0)

    def _next_mixture(self, loss_K: Floats, count_K: Floats, seen_K: Bools) -> Floats:
        return self._mixture_at(self.step + 1 + self._lag)

    def _after_load(self, same_domains: bool) -> None:
        self._mixture_K = self._mixture_at(self.step + self._lag if self.step else 0)

    def _mixture_at(self, step: int) -> Floats:
        """(K,) the mixture of step `step`, between the knots around it."""
        after = int(np.searchsorted(self._step_M, step, side="right"))
        if after == 0 or after == len(self._step_M) or not self._linear:
            share_K: Floats = self._share_MK[max(after - 1, 0)]
        else:
            early, late = self._step_M[after - 1], self._step_M[after]
            weight = (step - early) / (late - early)
            share_K = (1.0 - weight) * self._share_MK[after - 1] + weight * self._share_MK[after]
        return share_K
