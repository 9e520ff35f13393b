"""Settings of ADO: defaults, and those of the reference implementation.

Source: arXiv 2410.11820 (sections 3 and 4, appendix) and its public implementation at bc3d8d0. The defaults differ
from the reference in two things: the floor holds exactly on the final mixture (see `floor_rule`), and no law is fitted
to a handful of points (see `min_points`).
"""

import math
from dataclasses import dataclass, replace

from ado_kernels.fit.fit_dispatch import BACKENDS
from ado_stream.errors import ConfigError
from ado_stream.option_checks import flag, lag, number, one_of, whole
from ado_stream.policy.base_policy import run_default
from ado_stream.policy.mixture_bounds import check_floor
from ado_stream.policy.scaling_laws import FitConfig

CREDITS = ("history", "residual")
FLOOR_RULES = ("exact", "reference")
UNITS = ("reference", "vocabulary")


@dataclass(frozen=True)
class AdoConfig:
    """How ADO turns laws into a mixture. None: the default named here, capped by the length of the run where known.

    Args:
        start_step: first step at which the mixture may leave the prior; None: 5000, at most a tenth of the run.
        interval: steps between refits; None: 1000, at most a fiftieth of the run.
        ignore_steps: first steps that the fit leaves out; None: 1000, at most a tenth of the run.
        min_points: least number of points for a refit; None: 8, at most a quarter of the run's steps; 1 where the
            length is unknown, so that a schedule set by hand is kept. A law through three points is noise, and so is
            one through eight steps in a row: with the thinning below, a short run's first law comes after a third.
        hold_steps: the mixture changes only at multiples of this many steps.
        credit: "history" h^s (paper and reference), or "residual" h^s clamp(1 + kappa (lbar - L) / (L - eps), 1/2, 2).
        credit_power: s.
        credit_memory: g1, of h and of lbar.
        kappa: of the credit "residual".
        mixture_memory: g2, the weight of the newest preference.
        min_alpha: exponents below count as this much in the learning speed.
        floor: least share of any domain; None: 0.01, at most half of 1/K.
        floor_rule: "exact": water-filling on the final mixture; "reference": the reference's clip, on the preference.
        shared_count: the law's n counts the samples of all domains (True) or of the domain alone (False).
        fit: how laws are fitted; its ignore_steps is replaced by the one here. None: FitConfig(), which keeps every
            10th step, but of a run under 300 steps every (steps / 30)th.
        units: of the fit's starts and penalties: "reference", or "vocabulary": scaled by log of the run's vocabulary,
            so that floors of small vocabularies and of bytes are not held at a bound (FitConfig.start_loss).
        fit_backend: "numba", "triton" or "auto" (see fit_scaling_laws). "auto" may choose the GPU that trains, where a
            refit waits for the kernels queued before it.
    """

    start_step: int | None = None
    interval: int | None = None
    ignore_steps: int | None = None
    min_points: int | None = None
    hold_steps: int = 1
    credit: str = "history"
    credit_power: float = 0.5
    credit_memory: float = 0.9
    kappa: float = 1.0
    mixture_memory: float = 0.1
    min_alpha: float = 0.05
    floor: float | None = None
    floor_rule: str = "exact"
    shared_count: bool = True
    fit: FitConfig | None = None
    units: str = "reference"
    fit_backend: str = "numba"

    @classmethod
    def reference(cls, start_step: int = 1000, ignore_steps: int = 1000, interval: int = 1000) -> "AdoConfig":
        """The settings that reproduce the reference implementation: its clip and thinning, laws of one point too."""
        return cls(
            start_step=start_step,
            ignore_steps=ignore_steps,
            interval=interval,
            min_points=1,
            floor=0.01,
            floor_rule="reference",
            fit=FitConfig(),
        )

    @property
    def fixed_point(self) -> float | None:
        """q: the loop settles at shares proportional to (prior alpha gap)^q (docs/math.md, 4a); None: at no such point.

        Neither mixture_memory nor credit_memory changes q, only how soon it is reached; floors and residual credit
        bound what they act on.
        """
        feedback = self.credit_power if self.shared_count else self.credit_power - 1.0
        return 1.0 / (1.0 - feedback) if feedback < 1.0 else None

    @property
    def settles(self) -> str | None:
        """The fixed point in words, with the time to it; None for a policy that has none."""
        q, s, g2 = self.fixed_point, self.credit_power, self.mixture_memory
        if q is None:
            return "credit_power of 1 or more has no fixed point: in the end one domain has all but the floors"
        time = f"; the distance to it falls as steps^-{(1.0 - s) / (1.0 - g2 * s):.2g}" if self.shared_count else ""
        return f"shares settle at (prior x alpha x gap)^q, q = {q:.3g} (1 minimises the prior-weighted loss){time}"

    def plan(
        self, num_domains: int, total_steps: int | None = None, mixture_lag: int = 0, vocab_size: int | None = None
    ) -> "AdoPlan":
        """The values in force for `num_domains` and `total_steps` (None: unknown), after checking all settings.

        mixture_lag: the mixture after step s is drawn at step s + 1 + mixture_lag. Raises ConfigError for values that
        cannot work, among them a first refit whose mixture would be drawn after the last step.
        """
        lag("ado: mixture_lag", mixture_lag)
        if total_steps is not None:
            whole("ado: total_steps", total_steps, 1)
        self._check()
        few = 1 if total_steps is None else 8
        plan = AdoPlan(
            start_step=whole("ado: start_step", run_default(self.start_step, 5000, total_steps, 10)),
            interval=whole("ado: interval", run_default(self.interval, 1000, total_steps, 50, least=1), 1),
            ignore_steps=whole("ado: ignore_steps", run_default(self.ignore_steps, 1000, total_steps, 10)),
            min_points=whole("ado: min_points", run_default(self.min_points, few, total_steps, 4, least=1), 1),
            # at most half of an even share: floors of many domains must leave something to distribute
            floor=check_floor(min(0.01, 0.5 / num_domains) if self.floor is None else self.floor, num_domains),
            fit=self._fit_config(total_steps, vocab_size),
            total_steps=total_steps,
        )
        if total_steps is not None:
            self._check_refit_in_time(plan, total_steps, mixture_lag)
        return plan

    def _fit_config(self, total_steps: int | None, vocab_size: int | None) -> FitConfig:
        fit = self.fit or FitConfig(every=10 if total_steps is None else max(1, min(10, total_steps // 30)))
        if self.units == "reference":
            return fit
        if vocab_size is None or fit.start_loss is not None:
            raise ConfigError("ado: units 'vocabulary' need the run's vocab_size, and no start_loss beside it.")
        return replace(fit, start_loss=math.log(whole("ado: vocab_size", vocab_size, 2)))

    def _check(self) -> None:
        one_of("ado: credit", self.credit, CREDITS)
        one_of("ado: floor_rule", self.floor_rule, FLOOR_RULES)
        one_of("ado: units", self.units, UNITS)
        one_of("ado: fit_backend", self.fit_backend, BACKENDS)
        whole("ado: hold_steps", self.hold_steps, 1)
        flag("ado: shared_count", self.shared_count)
        for name in ("credit_memory", "mixture_memory"):
            number(f"ado: {name}", getattr(self, name), 0.0, 1.0)
        for name in ("credit_power", "kappa", "min_alpha"):
            number(f"ado: {name}", getattr(self, name), 0.0)
        if not (self.fit is None or isinstance(self.fit, FitConfig)):
            raise ConfigError(f"ado: fit is {self.fit!r:.60}; expected a FitConfig, or a mapping of its fields.")

    def _check_refit_in_time(self, plan: "AdoPlan", total_steps: int, mixture_lag: int) -> None:
        enough = plan.ignore_steps + (plan.min_points - 1) * plan.fit.every
        first_refit = _next_multiple(max(plan.start_step, enough), plan.interval)
        drawn_at = _next_multiple(first_refit, self.hold_steps) + 1 + mixture_lag
        if drawn_at >= total_steps:
            raise ConfigError(
                f"ado would never act: start_step {plan.start_step}, interval {plan.interval}, hold_steps "
                f"{self.hold_steps}, ignore_steps {plan.ignore_steps} and min_points {plan.min_points} (one in "
                f"{plan.fit.every} steps) put the first refit at step {first_refit}, which with mixture_lag "
                f"{mixture_lag} is drawn at step {drawn_at}; the last is {total_steps - 1}.\n"
                "  Lower them, leave them out for defaults that the length of the run caps, or try a run as short as "
                "this with policy natural."
            )


@dataclass(frozen=True)
class AdoPlan:
    """The settings that AdoConfig may leave open, in force: numbers of steps and points, floor as a share.

    total_steps: of the run; None: unknown.
    """

    start_step: int
    interval: int
    ignore_steps: int
    min_points: int
    floor: float
    fit: FitConfig
    total_steps: int | None = None


def _next_multiple(step: int, of: int) -> int:
    """The first multiple of `of` at or after `step`."""
    return -(-step // of) * of
