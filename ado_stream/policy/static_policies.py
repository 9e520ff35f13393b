"""Policies that do not look at losses: natural, uniform, fixed, temperature, UniMax, and a schedule in steps.

Invariant: the mixture is a function of the options and the step alone. Sources: temperature sampling as in multilingual
BERT and mT5 (arXiv 2010.11934); UniMax arXiv 2304.09151, algorithm 1.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from ado_stream.errors import ConfigError
from ado_stream.policy.base_policy import Bools, Floats, Policy
from ado_stream.policy.domain_weights import Weights, shares_of, values_of
from ado_stream.policy.option_checks import number, one_of, positive, whole
from ado_stream.policy.published_mixtures import TABLES


class StaticPolicy(Policy):
    """A policy whose mixture never changes. After a resume it is that of the options, not the saved one."""

    def __init__(self, prior: Weights):
        super().__init__(prior)
        self._mixture_K = self._given_K = self._given()

    @abstractmethod
    def _given(self) -> Floats:
        """The mixture, from the prior and the options."""

    def _next_mixture(self, loss_K: Floats, count_K: Floats, seen_K: Bools) -> Floats:
        return self._given_K

    def _after_load(self, same_domains: bool) -> None:
        self._mixture_K = self._given_K


class Natural(StaticPolicy):
    """p proportional to the prior: to the domains' tokens, when the prior is by tokens."""

    kind = "natural"

    def _given(self) -> Floats:
        return self.prior_K


class Uniform(StaticPolicy):
    """p_k = 1 / K."""

    kind = "uniform"

    def _given(self) -> Floats:
        return np.full(self.num_domains, 1.0 / self.num_domains)


class Fixed(StaticPolicy):
    """p proportional to given weights.

    weights: (K,) or {name: weight}, or the name of a published table (see tables.py). Raises ConfigError naming a
    domain that is missing, unknown or negative.
    """

    kind = "fixed"

    def __init__(self, prior: Weights, weights: Weights | str):
        if isinstance(weights, str) and weights not in TABLES:
            raise ConfigError(f"fixed: no table {weights!r}; the tables are: {', '.join(TABLES)}.")
        self._weights = TABLES[weights] if isinstance(weights, str) else weights
        super().__init__(prior)

    def _given(self) -> Floats:
        return shares_of(self._weights, self.names, self.num_domains, "fixed weights")


class Temperature(StaticPolicy):
    """p proportional to size^(1/tau): tau = 1 natural, tau -> infinity uniform.

    sizes: tokens per domain, (K,) or {name: tokens}; default the prior.
    """

    kind = "temperature"

    def __init__(self, prior: Weights, tau: float, sizes: Weights | None = None):
        self._tau, self._sizes = positive("temperature: tau", tau), prior if sizes is None else sizes
        super().__init__(prior)

    def _given(self) -> Floats:
        size_K = shares_of(self._sizes, self.names, self.num_domains, "temperature sizes")
        powered_K = (size_K / size_K.max()) ** (1.0 / self._tau)
        return powered_K / powered_K.sum()


class UniMax(StaticPolicy):
    """As uniform as the data allows: no domain is planned for more than `max_epochs` passes over a budget.

    sizes: tokens (or samples) per domain; default the prior, unless that sums to 1: shares are no sizes. budget: what
    the run will draw, in the same unit.
    """

    kind = "unimax"

    def __init__(self, prior: Weights, budget: float, max_epochs: float = 4.0, sizes: Weights | None = None):
        self._budget, self._max_epochs = positive("unimax: budget", budget), positive("unimax: max_epochs", max_epochs)
        self._sizes = prior if sizes is None else sizes
        super().__init__(prior)
        if sizes is None and self._size_K.sum() <= 1.0 + 1e-6:
            raise ConfigError(
                "unimax: option 'sizes' is missing; the prior sums to 1, so it holds shares.\n"
                "  Give the tokens or samples of every domain, in the unit of the budget."
            )

    def _given(self) -> Floats:
        self._size_K = values_of(self._sizes, self.names, self.num_domains, "unimax sizes")
        if not self._size_K.any():
            raise ConfigError(f"unimax sizes: all {self.num_domains} are 0; at least one domain must hold data.")
        return unimax(self._size_K, self._budget, self._max_epochs)


def unimax(size_K: Floats, budget: float, max_epochs: float) -> Floats:
    """(K,) shares: domains in ascending size, each gets min(budget left / domains left, max_epochs x size).

    When the budget exceeds max_epochs of everything, shares are proportional to sizes. Source: arXiv 2304.09151.
    """
    given_K = np.zeros(len(size_K))
    left = budget
    for place, domain in enumerate(np.argsort(size_K, kind="stable")):
        given_K[domain] = min(left / (len(size_K) - place), max_epochs * size_K[domain])
        left -= given_K[domain]
    return given_K / given_K.sum()


class Schedule(Policy):
    """A mixture that moves through knots: a function of the step alone.

    knots: [(step, weights), ...] with rising steps; weights (K,) or {name: weight}. interpolation: "linear" between
    knots, or "constant" (each holds until the next). Before the first and after the last knot the nearest holds.
    mixture_lag: what the policy says after step s is the mixture of step s + 1 + mixture_lag; training fills it in, and
    every step after the first mixture_lag has its own mixture. Those take that of step 0, or whatever the data set has.
    """

    kind = "schedule"

    def __init__(
        self, prior: Weights, knots: Sequence[Sequence[Any]], interpolation: str = "linear", mixture_lag: int = 0
    ):
        super().__init__(prior)
        self._linear = one_of("schedule: interpolation", interpolation, ("linear", "constant")) == "linear"
        self._lag = whole("schedule: mixture_lag", mixture_lag)
        if not isinstance(knots, Sequence) or not all(isinstance(knot, Sequence) and len(knot) == 2 for knot in knots):
            raise ConfigError(f"schedule: knots are {knots!r:.80}; expected [[step, weights], ...].")
        steps = [number("schedule: step of a knot", knot[0]) for knot in knots]
        if not steps or any(late <= early for early, late in zip(steps, steps[1:], strict=False)):
            raise ConfigError(f"schedule: knots need rising steps, got {steps}.")
        self._step_M = np.array(steps, dtype=np.float64)
        self._share_MK = np.stack(
            [shares_of(weights, self.names, self.num_domains, f"schedule, step {step}") for step, weights in knots]
        )
        self._mixture_K = self._at(0)

    def _next_mixture(self, loss_K: Floats, count_K: Floats, seen_K: Bools) -> Floats:
        return self._at(self.step + 1 + self._lag)

    def _after_load(self, same_domains: bool) -> None:
        self._mixture_K = self._at(self.step + self._lag if self.step else 0)

    def _at(self, step: int) -> Floats:
        """The mixture of step `step`; convex combinations of shares sum to 1 up to rounding."""
        after = int(np.searchsorted(self._step_M, step, side="right"))
        if after == 0 or after == len(self._step_M) or not self._linear:
            return self._share_MK[max(after - 1, 0)]
        early, late = self._step_M[after - 1], self._step_M[after]
        weight = (step - early) / (late - early)
        return (1.0 - weight) * self._share_MK[after - 1] + weight * self._share_MK[after]
