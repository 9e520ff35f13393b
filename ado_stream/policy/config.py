"""The settings of ADO, their defaults, and the reference's.

Source: arXiv 2410.11820 (sections 3 and 4, appendix) and its public implementation at bc3d8d0. The defaults differ from
the reference in one thing: the floor holds exactly on the final mixture (see `floor_rule`).
"""

import math
from dataclasses import dataclass, field
from typing import Any

from ado_stream.errors import ConfigError
from ado_stream.policy.clip import check_floor
from ado_stream.policy.laws import FitConfig

CREDITS = ("history", "residual")
FLOOR_RULES = ("exact", "reference")


@dataclass(frozen=True)
class AdoConfig:
    """How ADO turns laws into a mixture; None means the default named, capped by the length of the run.

    start_step: first step at which the mixture may leave the prior; None: 5000, at most a tenth of the run.
    interval: steps between refits; None: 1000, at most a fiftieth of the run.
    ignore_steps: first steps that the fit leaves out; None: 1000, at most a tenth of the run.
    hold_steps: the mixture changes only at multiples of this many steps.
    credit: "history" h^s (paper and reference), or "residual" h^s clamp(1 + kappa (lbar - L) / (L - eps), 1/2, 2).
    credit_power: s. credit_memory: g1, of h and of lbar. mixture_memory: g2, the weight of the newest preference.
    min_alpha: exponents below count as this much in the learning speed.
    floor: least share of any domain; None: 0.01, at most half of 1/K.
    floor_rule: "exact": water-filling on the final mixture; "reference": its clip, on the preference (MATH section 4).
    shared_count: the law's n counts the samples of all domains (True) or of the domain alone (False).
    fit: how laws are fitted; its ignore_steps is replaced by the one here.
    """

    start_step: int | None = None
    interval: int | None = None
    ignore_steps: int | None = None
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
    fit: FitConfig = field(default_factory=FitConfig)

    @classmethod
    def reference(cls, start_step: int = 1000, ignore_steps: int = 1000, interval: int = 1000) -> "AdoConfig":
        """What the public reference implementation computes, its clip included."""
        return cls(
            start_step=start_step, ignore_steps=ignore_steps, interval=interval, floor=0.01, floor_rule="reference"
        )

    def plan(self, num_domains: int, total_steps: int | None = None) -> "AdoPlan":
        """The numbers in force for that many domains and steps (None: unknown), after all settings were checked.

        Raises ConfigError for values that cannot work, among them a first refit after the last step.
        """
        _one_of("credit", self.credit, CREDITS)
        _one_of("floor_rule", self.floor_rule, FLOOR_RULES)
        _require("hold_steps", self.hold_steps, 1)
        for name in ("credit_memory", "mixture_memory"):
            _require(name, getattr(self, name), 0.0, 1.0)
        for name in ("credit_power", "kappa", "min_alpha"):
            _require(name, getattr(self, name), 0.0)
        plan = AdoPlan(
            start_step=_require("start_step", _default(self.start_step, 5000, total_steps, 10), 0),
            interval=_require("interval", _default(self.interval, 1000, total_steps, 50, least=1), 1),
            ignore_steps=_require("ignore_steps", _default(self.ignore_steps, 1000, total_steps, 10), 0),
            floor=check_floor(min(0.01, 0.5 / num_domains) if self.floor is None else self.floor, num_domains),
        )
        if total_steps is not None:
            self._check_acts(plan, total_steps)
        return plan

    def _check_acts(self, plan: "AdoPlan", total_steps: int) -> None:
        first_refit = _next_multiple(plan.start_step, plan.interval)
        if _next_multiple(first_refit, self.hold_steps) >= total_steps:
            raise ConfigError(
                f"ado would never act: start_step {plan.start_step}, interval {plan.interval} and hold_steps "
                f"{self.hold_steps} put the first refit at step {first_refit}; the last step is {total_steps - 1}.\n"
                "  Lower them, or leave start_step and interval out for a tenth and a fiftieth of the run."
            )


@dataclass(frozen=True)
class AdoPlan:
    """The settings that AdoConfig may leave open, as they are in force; steps, and a share for the floor."""

    start_step: int
    interval: int
    ignore_steps: int
    floor: float


def _next_multiple(step: int, of: int) -> int:
    """The first multiple of `of` that is not before `step`."""
    return -(-step // of) * of


def _default(value: int | None, default: int, total_steps: int | None, divisor: int, least: int = 0) -> int:
    if value is not None:
        return value
    return default if total_steps is None else min(default, max(total_steps // divisor, least))


def _one_of(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"ado: {name} is {value!r}; expected one of {', '.join(choices)}.")


def _require(name: str, value: Any, least: float, most: float = math.inf) -> Any:
    if not least <= value <= most:
        bound = f"at least {least}" if most == math.inf else f"from {least} to {most}"
        raise ConfigError(f"ado: {name} is {value}; expected {bound}.")
    return value
