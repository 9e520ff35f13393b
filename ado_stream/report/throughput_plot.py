"""Throughput over the run, and the time of a step by part."""

import math

import numpy as np
from matplotlib.axes import Axes

from ado_stream.report.plot_style import (
    INK,
    SOFT,
    Plot,
    compact,
    new_figure,
    plot_binned,
    run_style,
    shorten,
    thousands,
)
from ado_stream.report.run_data import PARTS, Run
from ado_stream.value_types import Floats

PART_COLORS = {
    "data": "#c8553d",
    "forward_backward": "#c3cad4",
    "optimizer": "#8b94a3",
    "policy": "#f0a202",
    "checkpoint": "#4a7c6f",
    "other": "#eceef1",
}


def part_means_s(run: Run) -> dict[str, float]:
    """Mean seconds a step by part, "other" for the rest; parts never recorded are left out."""
    means = {part: _mean(run.time_s[part]) for part in PARTS}
    found = {part: mean for part, mean in means.items() if math.isfinite(mean)}
    total = _mean(run.time_s["total"])
    if found and math.isfinite(total):
        found["other"] = max(0.0, total - sum(found.values()))
    return found


def median_tokens_per_s(run: Run) -> float:
    """Median over the recorded steps; NaN without any."""
    finite = run.tokens_per_s_S[np.isfinite(run.tokens_per_s_S)]
    return float(np.median(finite)) if finite.size else math.nan


def draw_throughput(runs: list[Run]) -> Plot | None:
    """Tokens a second over the steps, and a stacked bar of a step's time per run. None when nothing was timed."""
    timed = [run for run in runs if math.isfinite(median_tokens_per_s(run)) or part_means_s(run)]
    if not timed:
        return None
    figure = new_figure(2.7 + 0.25 * len(timed))
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.15])
    _speed(left, timed)
    _parts(right, timed)
    return Plot(
        "throughput",
        "Throughput and where the time went",
        "Left: tokens trained on per second, averaged over neighbouring steps. Right: mean time of a step by part; "
        "adaptive mixing adds the stream (data) and the policy to a training loop.",
        figure,
    )


def _mean(values_S: Floats) -> float:
    finite = values_S[np.isfinite(values_S)]
    return float(finite.mean()) if finite.size else math.nan


def _speed(axes: Axes, runs: list[Run]) -> None:
    for number, run in enumerate(runs):
        if not math.isfinite(median_tokens_per_s(run)):
            continue
        label = f"{shorten(run.label)}: median {compact(median_tokens_per_s(run))}"
        style = {"label": label, "gid": f"d|{run.label}: ", **run_style(number)}
        plot_binned(axes, run.step_S, run.tokens_per_s_S, **style)
    axes.set(xlabel="step", ylabel="tokens per second", ylim=(0, None))
    axes.margins(y=0.25)
    axes.set_ylim(0, axes.get_ylim()[1])
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, columnspacing=1.2, handlelength=1.4)
    thousands(axes.xaxis)
    thousands(axes.yaxis)


def _parts(axes: Axes, runs: list[Run]) -> None:
    longest = max(sum(part_means_s(run).values()) for run in runs) * 1e3
    used: set[str] = set()
    for row, run in enumerate(runs):
        start, means_s = 0.0, part_means_s(run)
        for part, mean_s in means_s.items():
            width = 1e3 * mean_s
            label = None if part in used else part.replace("_", " + ")
            used.add(part)
            gid = f"d|{run.label}, {part}: {width:.3g} ms"
            axes.barh(
                row, width, 0.55, left=start, color=PART_COLORS[part], label=label, edgecolor="white", lw=0.6, gid=gid
            )
            if width > 0.07 * longest:  # room for a number
                text = f"{width:,.0f}" if width >= 10 else f"{width:.2g}"
                axes.text(start + width / 2, row, text, ha="center", va="center", fontsize=8.5, color=INK)
            start += width
        if start > 0:
            cost = [f"{part} {1e5 * means_s[part] / start:.2g} %" for part in ("data", "policy") if part in means_s]
            axes.text(0, row + 0.36, ", ".join(cost), fontsize=8, color=SOFT, va="top")
    axes.set_yticks(range(len(runs)), [shorten(run.label) for run in runs], color=INK)
    axes.set(xlabel="mean time of a step (ms)", ylim=(len(runs) - 0.25, -0.5))
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, columnspacing=1.2, handlelength=1.0)
