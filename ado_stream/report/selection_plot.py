"""Samples drawn against samples expected: the counts of every batch beside B times the mixture.

Systematic resampling gives |count - B pi| < 1 for every domain at every step (docs/math.md section 7); the right panel
shows the largest difference.
"""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ado_stream.report.plot_style import INK, SOFT, Plot, label_rows, largest, new_figure, tag
from ado_stream.report.run_data import Run
from ado_stream.value_types import Floats, Ints

MAX_ROWS = 36


def drawn_and_expected(run: Run) -> tuple[Floats, Floats]:
    """(samples drawn (S', K), batch size times mixture (S', K)) of the steps that recorded both."""
    whole_S = np.isfinite(run.samples_SK).all(axis=1) & np.isfinite(run.mixture_SK).all(axis=1)
    drawn_SK = run.samples_SK[whole_S]
    return drawn_SK, drawn_SK.sum(axis=1, keepdims=True) * run.mixture_SK[whole_S]


def worst_gaps(run: Run) -> Floats:
    """(K,) the largest |count - B pi| of any recorded step, in samples; empty without steps."""
    drawn_SK, expected_SK = drawn_and_expected(run)
    return np.abs(drawn_SK - expected_SK).max(axis=0) if len(drawn_SK) else np.empty(0)


def promised_floor(run: Run) -> float:
    """The least share of any domain under the run's policy; NaN without such a bound."""
    return float(run.metadata.get("floor") or math.nan)


def draw_selection(run: Run, colors: dict[str, str]) -> Plot | None:
    """Share drawn over the run beside the expected one, and the worst single step. None without recorded counts."""
    drawn_SK, expected_SK = drawn_and_expected(run)
    if not len(drawn_SK) or expected_SK.sum() == 0:
        return None
    rows, left_out = largest(run.prior_K, MAX_ROWS)
    figure = new_figure(1.15 + 0.27 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.6, 1])
    _shares(left, run, rows, colors)
    gap_K = worst_gaps(run)
    for row, index in enumerate(rows):
        name = run.domains[index]
        tag(right.barh(row, gap_K[index], 0.6, color=colors[name]), name, colors, f"{gap_K[index]:.3f} samples")
    right.axvline(1, color=INK, lw=1, ls=(0, (4, 3)))
    right.set(xlabel="largest |count − B·mixture| (samples)", xlim=(0, max(1.12, 1.1 * float(gap_K.max()))))
    right.set_title("worst step")
    right.tick_params(axis="y", length=0)
    return Plot(
        f"selection-{run.label.replace('/', '-')}",
        f"Samples drawn against the mixture: {run.label}",
        "Left: share of all samples drawn (dot) on the mean of the mixture (ring), with the range the mixture moved in "
        f"(bar). Right: the worst batch, where systematic drawing stays under one sample.{left_out}",
        figure,
    )


def _shares(axes: Axes, run: Run, rows: Ints, colors: dict[str, str]) -> None:
    drawn_SK, expected_SK = drawn_and_expected(run)
    drawn_K = 100 * drawn_SK.sum(axis=0) / drawn_SK.sum()
    expected_K = 100 * expected_SK.sum(axis=0) / expected_SK.sum()
    mixture_SK = 100 * expected_SK / expected_SK.sum(axis=1, keepdims=True)
    for row, index in enumerate(rows):
        color = colors[run.domains[index]]
        low, high = mixture_SK[:, index].min(), mixture_SK[:, index].max()
        drawn = axes.plot([low, high], [row, row], color=color, lw=5, alpha=0.3)
        drawn += axes.plot(expected_K[index], row, "o", ms=9, mfc="white", mec=color, mew=1.3)
        drawn += axes.plot(drawn_K[index], row, "o", ms=4.5, color=color)
        label = f"drawn {drawn_K[index]:.3g} %, expected {expected_K[index]:.3g} %, mixture {low:.3g} to {high:.3g} %"
        tag(drawn, run.domains[index], colors, label)
    floor = 100 * promised_floor(run)
    if math.isfinite(floor):
        axes.axvline(floor, color=INK, lw=1, ls=(0, (4, 3)))
        text = f"floor {floor:.3g} %"
        axes.annotate(text, (floor, -0.62), (4, 0), textcoords="offset points", fontsize=8, va="center")
    label_rows(axes, range(len(rows)), [run.domains[index] for index in rows], colors)
    axes.set(xlabel="share of samples (%)", ylim=(len(rows) - 0.4, -1.0), xlim=(0, None))
    axes.set_title("share of all samples")
    axes.grid(visible=False, axis="y")
    ring = Line2D([], [], ls="none", marker="o", ms=8, mfc="white", mec=SOFT, label="expected")
    dot = Line2D([], [], ls="none", marker="o", ms=4.5, color=SOFT, label="drawn")
    axes.legend(handles=[ring, dot], loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
