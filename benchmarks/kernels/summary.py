"""The table that a person reads after the JSON lines: one line a case, bars and ratios in it."""

from collections import Counter, defaultdict

from benchmarks.kernels.harness import judged_ms

_MARKS = {True: "yes", False: "NO", None: "-"}


def table(records: list[dict], judged: list[dict], failed: list[str]) -> str:
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
    for key, by_name in cases.items():
        if "ours" in by_name:
            lines.append(_line(" ".join(key), by_name, bars[key]))
    met = [bar["met"] for bar in judged]
    lines.append(f"{met.count(True)} bars met, {met.count(False)} missed, {met.count(None)} not measured")
    reasons = Counter(bar["reason"].splitlines()[0] for bar in judged if bar["reason"])
    lines += [f"not measured, {count}: {reason}" for reason, count in reasons.items()]
    return "\n".join([*lines, *(f"FAILED: {what}" for what in failed)])


def _line(case: str, by_name: dict[str, dict], bars: dict[tuple[str, str], dict]) -> str:
    ours = by_name["ours"]
    share, bar = ours.get("share_of_floor"), bars.get(("ours", "share_of_floor"))
    shown, limit = "" if share is None else f"{share:.2f}", f"{bar['limit']:.2f}" if bar else ""
    met = _MARKS[bar["met"]] if bar else ""
    columns = [f"{case:<62} {_time(judged_ms(ours)):>9} {shown:>6} {limit:>5} {met:>4} "]
    if "share_of_own_floor" in ours:
        columns.append(f"[{ours['share_of_own_floor']:.2f} of the matmuls' own floor]")
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
    limit = f"({bar['limit']:.2f}{'' if bar['met'] else ' !'})" if bar else ""
    return f"{value:.2f}{limit}"
