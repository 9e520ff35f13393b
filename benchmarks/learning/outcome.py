"""What the cells say together: differences to the natural mixture, paired by seed, with 95 % intervals.

Measures, in nats per token unless said otherwise, over the measured domains: by size, as a mean of domains, of the
worst domain, over the wanted domains by size, and bits per byte by size; and the steps after which a policy has reached
the baseline's final loss by size, as a fraction of the run.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.learning.scenarios import BASELINE, ORDER

MEASURES = ("by size", "mean", "worst", "wanted", "bits per byte")
_T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}  # Student's t


def measures(found: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, float]:
    """The measures of one validation of a cell: its `final`, or one `midway`."""
    size, loss, bits = facts["size"], found["loss"], found["bits_per_byte"]
    wanted = [name for name in facts["wanted"] if name in size] or list(size)
    return {
        "by size": _average(loss, {name: size[name] for name in size}),
        "mean": statistics.fmean(loss.values()),
        "worst": max(loss.values()),
        "wanted": _average(loss, {name: size[name] for name in wanted}),
        "bits per byte": _average(bits, {name: size[name] for name in size}),
    }


def table(
    cells: Mapping[int, Mapping[str, Mapping[str, Any]]], facts: Mapping[str, Any], baseline: str = BASELINE
) -> list[dict[str, Any]]:
    """A row per policy: mean difference to the baseline over the seeds, half the width of its 95 % interval, and n.

    cells: {seed: {policy: cell}}. A seed without the baseline does not count; the interval of one seed is None.
    """
    policies = sorted({policy for seed in cells.values() for policy in seed}, key=_place)
    rows = []
    for policy in policies:
        seeds = [seed for seed in cells.values() if policy in seed and baseline in seed]
        if not seeds:
            continue
        pairs = [(measures(seed[policy]["final"], facts), measures(seed[baseline]["final"], facts)) for seed in seeds]
        row: dict[str, Any] = {"policy": policy, "seeds": len(pairs)}
        for measure in MEASURES:
            row[measure] = interval([own[measure] - base[measure] for own, base in pairs])
        row["steps to baseline"] = interval([steps_to(seed[policy], seed[baseline], facts) for seed in seeds])
        rows.append(row)
    return rows


def _place(policy: str) -> tuple[int, str]:
    """Rows come in the order of the scenarios' policies, others after them, the oracle last."""
    return (len(ORDER) + (policy == "oracle") if policy not in ORDER else ORDER.index(policy)), policy


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and half the width of its 95 % interval by Student's t; None for a single value."""
    if len(values) < 2:
        return float(values[0]), None
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), _T_95.get(len(values) - 1, 1.96) * spread


def steps_to(cell: Mapping[str, Any], base: Mapping[str, Any], facts: Mapping[str, Any]) -> float:
    """The fraction of the run after which `cell` is at the baseline's loss by size near the end, by interpolation.

    1 where it is not reached before; both are read from the validations midway, on the same samples.
    """
    steps = sorted(map(int, cell["midway"]))
    goal = measures(base["midway"][str(steps[-1])], facts)["by size"]
    losses = [measures(cell["midway"][str(step)], facts)["by size"] for step in steps]
    for (early, high), (late, low) in zip(
        zip(steps, losses, strict=True), zip(steps[1:], losses[1:], strict=True), strict=False
    ):
        if low <= goal < high:
            return (early + (late - early) * (high - goal) / (high - low)) / steps[-1]
    return 1.0 if losses[0] > goal else steps[0] / steps[-1]


def gain_of_oracle(rows: Sequence[Mapping[str, Any]], policy: str, measure: str = "by size") -> float | None:
    """The policy's gain over the baseline as a fraction of the oracle's; None without an oracle."""
    by_policy = {row["policy"]: row[measure][0] for row in rows}
    if "oracle" not in by_policy or policy not in by_policy or not by_policy["oracle"]:
        return None
    return by_policy[policy] / by_policy["oracle"]


def text(rows: Sequence[Mapping[str, Any]], baseline: str = BASELINE, wanted: bool = False) -> str:
    """The rows as a Markdown table; `wanted`: with the loss of the wanted domains, where these are not all."""
    measures = {
        "by size": "by size",
        "mean": "mean of domains",
        "worst": "worst domain",
        "bits per byte": "bits per byte",
    }
    if wanted:
        measures = {"wanted": "wanted domains", **measures}
    lines = [
        f"| policy | seeds | {' | '.join(measures.values())} | steps to {baseline}'s loss |",
        "|---" * (len(measures) + 3) + "|",
    ]
    for row in rows:
        if row["policy"] == baseline:
            zeros = " | ".join("0" for _ in measures)
            lines.append(f"| {baseline} | {row['seeds']} | {zeros} | {cell(row['steps to baseline'], 2, sign=False)} |")
            continue
        cells = [cell(row[measure]) for measure in measures]
        cells.append(cell(row["steps to baseline"], 2, sign=False))
        lines.append(f"| {row['policy']} | {row['seeds']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(found: tuple[float, float | None], digits: int = 3, sign: bool = True) -> str:
    """A mean with half the width of its interval."""
    mean, half = found
    mean = round(mean, digits) + 0.0  # no -0.000
    return f"{mean:{'+' if sign else ''}.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")


def _average(value: Mapping[str, float], weight: Mapping[str, float]) -> float:
    return sum(value[name] * weight[name] for name in weight) / sum(weight.values())
