"""The comparison of runs in sentences.

Two losses count as level when they differ by less than their unit's level; both overall measures are always given
(domains by corpus size, every domain once): a policy that shifts the mixture can improve one and worsen the other.
Caveats list whatever makes the comparison unfair; where the validation text differs there is no verdict.
"""

import math
from dataclasses import dataclass

import numpy as np

from ado_stream.report.comparison import (
    BITS,
    NATS,
    OVERALL,
    Unit,
    common_unit,
    final_losses,
    pick_baseline,
    seed_noise,
    why_not_comparable,
)
from ado_stream.report.run_data import Run

_SAME = {
    "steps": "steps",
    "global_batch_size": "batch size",
    "seq_len": "sequence length",
    "stages": "stages",
    "seed": "seed",
    "model": "model",
    "tokenizer": "tokenizer",
}


@dataclass(frozen=True)
class Comparison:
    """Final validation losses of `run` against `baseline`: domains lower, level, higher.

    withheld: why the two cannot be compared, as a sentence; "" where they can.
    """

    run: str
    baseline: str
    lower: int
    level: int
    higher: int
    overall: dict[str, tuple[float, float]]  # measure: (this run's loss, the baseline's)
    unit: Unit = NATS
    withheld: str = ""

    @property
    def num_domains(self) -> int:
        """Domains that both runs were measured on."""
        return self.lower + self.level + self.higher

    def sentence(self) -> str:
        """The comparison in two sentences."""
        if self.withheld:
            return f"{self.withheld} Their losses say nothing about each other: validate both on one text."
        counts = f"{self.run} ends lower than {self.baseline} on {self.lower} of {self.num_domains} domains"
        short = "nats" if self.unit is NATS else self.unit.name
        rest = [f"{number} {word}" for number, word in ((self.level, "level"), (self.higher, "higher")) if number]
        measures = [
            f"{name} {own:.3f} against {base:.3f} {short} ({_difference(own - base, self.unit)})"
            for name, (own, base) in self.overall.items()
            if math.isfinite(own - base)
        ]
        losses = f". Validation loss {'; '.join(measures)}" if measures else ""
        others = f" ({', '.join(rest)})" if rest else ""
        return f"{counts}{others}{losses}."

    @property
    def is_behind(self) -> bool:
        """Whether the run's losses are higher than the baseline's by both overall measures; False without a verdict."""
        return not self.withheld and self._signs() == {1}

    def _signs(self) -> set[int]:
        return {_sign(own - base, self.unit) for own, base in self.overall.values() if math.isfinite(own - base)}

    def headline(self) -> str:
        """One line: lower, higher, level or mixed by the two overall measures."""
        if self.withheld:
            return f"No verdict: {self.run} and {self.baseline} cannot be compared"
        signs = self._signs()
        if signs == {-1}:
            return f"{self.run} reached a lower validation loss than {self.baseline}"
        if self.is_behind:
            return f"{self.run} reached a higher validation loss than {self.baseline}"
        if signs <= {0}:
            return f"{self.run} and {self.baseline} are level"
        return f"A mixed result: {self.run} against {self.baseline}"


def compare(runs: list[Run]) -> list[Comparison]:
    """Every measured run against the baseline; empty with fewer than two measured runs."""
    measured = [run for run in runs if run.final is not None]
    if len(measured) < 2:
        return []
    baseline = pick_baseline(measured)
    return [_compare(run, baseline) for run in measured if run is not baseline]


def caveats(runs: list[Run]) -> list[str]:
    """Reasons to doubt the comparison, one sentence each."""
    cut = [run for run in runs if run.planned_steps and run.num_steps < run.planned_steps]
    found = [f"{run.label} stopped at step {run.num_steps:,} of {run.planned_steps:,}." for run in cut]
    found += [f"{run.label} recorded no validation." for run in runs if run.final is None]
    found += _unmeasured([run for run in runs if run.final is not None])
    if common_unit(runs) is BITS:
        found.append("Tokenizers differ, so losses are compared in bits per byte of text.")
    found += [
        f"{run.label} recorded {int(bad)} steps with a loss that is not finite."
        for run in runs
        if (bad := (~np.isfinite(run.loss_S)).sum())
    ]
    for run in runs[1:]:
        found += _differences(runs[0], run)
    unit = common_unit([run for run in runs if run.final is not None])
    noise = seed_noise(runs, unit)
    if OVERALL[0] in noise:
        spread = noise[OVERALL[0]]
        found.append(
            f"Runs of one policy that differ in their seed alone end {spread:.3f} {unit.name} apart (standard "
            f"deviation, by corpus size): a difference below {1.96 * math.sqrt(2) * spread:.3f} is within that."
        )
    elif len(compare(runs)) and len({run.metadata.get("seed") for run in runs}) < 2:
        found.append("One seed each: a difference within that of two seeds of one policy is no evidence.")
    return found


def _compare(run: Run, baseline: Run) -> Comparison:
    unit = common_unit([run, baseline])
    own, base = final_losses(run, unit), final_losses(baseline, unit)
    shared = [name for name in run.domains if name in baseline.domains]
    signs = [_sign(own[name] - base[name], unit) for name in shared if math.isfinite(own[name] - base[name])]
    overall = {name: (own[name], base[name]) for name in OVERALL}
    withheld = why_not_comparable(run, baseline)
    counts = (signs.count(-1), signs.count(0), signs.count(1))
    return Comparison(run.label, baseline.label, *counts, overall, unit, withheld)


def _sign(difference: float, unit: Unit) -> int:
    return 0 if abs(difference) < unit.level else int(math.copysign(1, difference))


def _difference(difference: float, unit: Unit) -> str:
    sign = _sign(difference, unit)
    return "level" if sign == 0 else f"{abs(difference):.3f} {'lower' if sign < 0 else 'higher'}"


def _unmeasured(runs: list[Run]) -> list[str]:
    """Which domains had no validation text in which of the measured runs, a sentence for each set of domains."""
    labels: dict[tuple[str, ...], list[str]] = {}
    for run in runs:
        assert run.final is not None
        losses = zip(run.domains, run.final.domain_loss_K, strict=True)
        labels.setdefault(tuple(name for name, loss in losses if np.isnan(loss)), []).append(run.label)
    return [
        f"{'Every run' if len(of) == len(runs) else ', '.join(of)}: no validation text of {', '.join(missing)}, "
        "which no measure includes."
        for missing, of in labels.items()
        if missing
    ]


def _differences(first: Run, other: Run) -> list[str]:
    found = [
        f"Not like for like: {word} {own} in {first.label}, {others} in {other.label}."
        for key, word in _SAME.items()
        if (own := first.metadata.get(key)) != (others := other.metadata.get(key))
    ]
    prints = [(run.metadata.get("corpus") or {}).get("fingerprint") for run in (first, other)]
    if prints[0] != prints[1]:
        found.append(f"Not like for like: {first.label} and {other.label} read different corpora.")
    return found
