"""The bars of the kernels as data, which of them a run met, and the table that a person reads after the JSON lines.

A bar is a limit on one field of one implementation's record: our share of the floor, another's time over ours, our
peak memory over another's. Others may be faster than ours only as far as a bar below 1 says. Floors are those of the
card that ran; the shares were set for an H200 at 4.3 TB/s and 790 TFLOP/s.
"""

import math
from collections import Counter, defaultdict
from typing import Any, NamedTuple

from benchmarks.kernels.linear_cross_entropy import BAR_SHAPES


class Bar(NamedTuple):
    """`field` of this implementation's record is at least `limit`, or at most."""

    section: str
    case: str
    implementation: str
    field: str
    limit: float
    at_most: bool = False


NORM_2048, NORM_4096, GLU = "16384x2048 bfloat16", "16384x4096 bfloat16", "16384x5632 separate"
LOSS_768, LOSS_2048 = map(str, BAR_SHAPES)
FORWARD = {"Liger": 0.98, "torch.compile": 1.0, "quack": 0.97}
BACKWARD = {"Liger": 1.3, "torch.compile": 1.3, "quack": 0.93}
ADD_FORWARD = {"Liger": 1.0, "torch.compile": 1.0, "quack": 0.95}
ADD_BACKWARD = {"Liger": 1.3, "torch.compile": 1.0, "quack": 0.95}
GLU_PASS = {"Liger": 1.0, "torch.compile": 0.99}
LOSS = {"torch.compile": 1.0, "CCE": 1.3, "quack": 0.9}
_CASES: tuple[tuple[str, str, float, dict[str, float]], ...] = (
    # section, case, our share of the floor, the least time of others over ours
    ("rms_norm forward", NORM_2048, 0.90, FORWARD),
    ("rms_norm backward", NORM_2048, 0.80, BACKWARD),
    ("rms_norm forward", NORM_4096, 0.92, FORWARD),
    ("rms_norm backward", NORM_4096, 0.82, BACKWARD | {"Liger": 1.15}),
    ("add_rms_norm forward", NORM_2048, 62.4 / 68, ADD_FORWARD),
    ("add_rms_norm backward", NORM_2048, 62.4 / 75, ADD_BACKWARD),
    ("add_rms_norm forward", NORM_4096, 124.9 / 136, ADD_FORWARD),
    ("add_rms_norm backward", NORM_4096, 124.9 / 147, ADD_BACKWARD),
    ("swiglu forward", GLU, 0.93, GLU_PASS),
    ("swiglu backward", GLU, 0.93, GLU_PASS),
    ("linear_cross_entropy", LOSS_768, 0.65, LOSS | {"Liger": 2.0, "F.linear_cross_entropy": 1.5}),
    ("linear_cross_entropy", LOSS_2048, 0.76, LOSS | {"Liger": 1.3, "F.linear_cross_entropy": 1.2}),
    ("linear_cross_entropy, loss only", LOSS_768, 0.65, {}),
    ("linear_cross_entropy, loss only", LOSS_2048, 0.75, {}),
)
BARS = (
    *(Bar(section, case, "ours", "share_of_floor", share) for section, case, share, _ in _CASES),
    *(
        Bar(section, case, name, "times_ours", least)
        for section, case, _, others in _CASES
        for name, least in others.items()
    ),
    # Predicted to be missed with the rows per chunk that the launch table has: predictions.md.
    Bar("linear_cross_entropy", LOSS_768, "torch.compile", "our_peak_frac", 1 / 3, at_most=True),
    *(Bar("cost of domains", c, "ours", "share_of_linear_cross_entropy", 0.01, True) for c in (LOSS_768, LOSS_2048)),
)


def verdicts(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every bar with the value that the run measured and whether it was met.

    Both are None where it was not measured, NaN included; "reason" then says why, where the run knows.
    """
    by_name = {(r["section"], r["case"], r["implementation"]): r for r in records if "implementation" in r}
    judged = []
    for bar in BARS:
        record = by_name.get(bar[:3], {})
        value = record.get(bar.field)
        value = None if value is None or math.isnan(value) else value
        met = None if value is None else bool(value <= bar.limit if bar.at_most else value >= bar.limit)
        reason = record.get("skipped", record.get("failed")) if value is None else None
        judged.append({**bar._asdict(), "value": value, "met": met, "reason": reason})
    return judged


def table(records: list[dict[str, Any]], judged: list[dict[str, Any]], failed: list[str]) -> str:
    """Case, our time, its share of the floor, the bar, whether it is met, then others' times over ours.

    A ratio that has a bar shows it in brackets; "!" marks a bar that is missed. Below: why bars were not
    measured, where the run knows, and last what failed.
    """
    bars: dict[tuple[str, str], dict[tuple[str, str], dict]] = defaultdict(dict)
    for bar in judged:
        bars[bar["section"], bar["case"]][bar["implementation"], bar["field"]] = bar
    cases: dict[tuple[str, str], dict[str, dict]] = defaultdict(dict)
    for record in records:
        if "implementation" in record and "ms" in record:
            cases[record["section"], record["case"]][record["implementation"]] = record
    lines = [f"{'case':<62} {'ours':>9} {'floor':>6} {'bar':>5} {'met':>4}  others / ours (bar)"]
    lines += [_line(" ".join(key), by_name, bars[key]) for key, by_name in cases.items() if "ours" in by_name]
    met = [bar["met"] for bar in judged]
    lines.append(f"{met.count(True)} bars met, {met.count(False)} missed, {met.count(None)} not measured")
    reasons = Counter(bar["reason"].splitlines()[0] for bar in judged if bar["reason"])
    lines += [f"not measured, {count}: {reason}" for reason, count in reasons.items()]
    return "\n".join([*lines, *(f"FAILED: {what}" for what in failed)])


def _line(case: str, by_name: dict[str, dict], bars: dict[tuple[str, str], dict]) -> str:
    ours = by_name["ours"]
    share, bar = ours.get("share_of_floor"), bars.get(("ours", "share_of_floor"))
    shown, limit = "" if share is None else f"{share:.2f}", f"{bar['limit']:.2f}" if bar else ""
    met = {True: "yes", False: "NO", None: "-"}[bar["met"]] if bar else ""
    columns = [f"{case:<62} {_time(ours['ms']):>9} {shown:>6} {limit:>5} {met:>4} "]
    for name, record in by_name.items():
        if name != "ours" and "times_ours" in record:
            columns.append(f"{name} {_limited(record['times_ours'], bars.get((name, 'times_ours')))}")
    for (name, field), other in bars.items():
        if field not in ("share_of_floor", "times_ours") and other["value"] is not None:
            what = field.replace("_", " ") if name == "ours" else f"{field.replace('_', ' ')} of {name}"
            columns.append(f"{what} {_limited(other['value'], other)}")
    return " ".join(columns)


def _time(milliseconds: float) -> str:
    return f"{milliseconds * 1e3:.1f} us" if milliseconds < 1 else f"{milliseconds:.2f} ms"


def _limited(value: float, bar: dict | None) -> str:
    return f"{value:.2f}" + (f"({bar['limit']:.2f}{'' if bar['met'] else ' !'})" if bar else "")
