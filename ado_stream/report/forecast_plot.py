"""Forecasts against later losses: the laws fitted to the first part of a run, evaluated on the rest.

Errors are of window means, mean observed / mean forecast - 1, so that the noise of single batches does not count as an
error; positive where the loss was higher than forecast. The sign is that of the policy's health().
"""

import math

import numpy as np
from matplotlib.axes import Axes

from ado_stream.report.plot_style import (
    FAINT,
    INK,
    SOFT,
    Plot,
    bin_means,
    bins,
    largest,
    new_figure,
    shorten,
    signed,
    tag,
    text_color,
    thousands,
)
from ado_stream.report.run_data import RefitLaws, Run
from ado_stream.value_types import Floats

MAX_PANELS = 24
PANEL_POINTS = 70
BACKING = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.5}  # behind text over points
BAND_SD, NORMAL_SD = 1.96, 1.4826  # 95 % of a normal distribution; its standard deviation over its median deviation
SETTLED_FRAC = 0.08  # of the run: its steep start, left out of the y limits


def halfway_law(run: Run) -> RefitLaws | None:
    """The refit nearest to half of the recorded run among those with steps after them; None without one."""
    before_end = [law for law in run.laws if law.step < run.num_steps - 1]
    return min(before_end, key=lambda law: abs(law.step - run.num_steps / 2), default=None)


def forecast_error(run: Run, law: RefitLaws, domain: int, until_step: int | None = None) -> float:
    """Mean observed loss over mean forecast, less one, on the recorded steps in (law.step, until_step]; NaN if none."""
    later = run.step_S > law.step
    if until_step is not None:
        later &= run.step_S <= until_step
    observed = run.domain_loss_SK[later, domain]
    forecast = law.predict(domain, run.counts_SK[later, domain])
    both = np.isfinite(observed) & np.isfinite(forecast)
    return float(observed[both].mean() / forecast[both].mean() - 1) if both.any() else math.nan


def next_interval_error(run: Run, domain: int) -> float:
    """Median over refits of the absolute forecast error until the following refit; NaN without any."""
    ends = [law.step for law in run.laws[1:]] + [run.num_steps - 1]
    errors = [abs(forecast_error(run, law, domain, end)) for law, end in zip(run.laws, ends, strict=True)]
    finite = [error for error in errors if math.isfinite(error)]
    return float(np.median(finite)) if finite else math.nan


def draw_forecasts(run: Run, colors: dict[str, str]) -> Plot | None:
    """A panel per domain: observed loss, and the half-way law extended over the later steps. None without fits."""
    law = halfway_law(run) or (run.laws[-1] if run.laws else None)
    if law is None or not run.step_S.size:
        return None
    shown, left_out = largest(run.prior_K, MAX_PANELS)
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure = new_figure(2.15 * rows + 0.5, row_gap=0.04)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for axes, index in zip(grid.flat, shown, strict=False):
        _panel(axes, run, law, int(index), colors)
    for axes in list(grid.flat)[len(shown) :]:
        axes.set_axis_off()
    for axes in list(grid.flat)[max(0, len(shown) - columns) : len(shown)]:
        axes.set_xlabel("step")
        axes.tick_params(labelbottom=True)
    figure.supylabel("loss (nats per token)", fontsize=9.5, color=SOFT)
    return Plot(
        f"laws-{run.label.replace('/', '-')}",
        f"Loss per domain, law and forecast: {run.label}",
        f"Dots: observed training loss. Black or white line: the law fitted at step {law.step:,} to the points left of "
        "the vertical line, dashed where it is a forecast; the percentage is by how much the mean of the later losses "
        "lies above the forecast's (held: that refit found no good law and an earlier one was kept). Coloured line: "
        "the last law of the run. Grey band: where 95 % of single losses lie if those the law was fitted to are normal "
        f"about it.{left_out}",
        figure,
    )


def _panel(axes: Axes, run: Run, law: RefitLaws, index: int, colors: dict[str, str]) -> None:
    color = colors[run.domains[index]]
    edges = bins(run.step_S, PANEL_POINTS)
    step_S = bin_means(run.step_S.astype(np.float64), edges)
    observed_S = bin_means(run.domain_loss_SK[:, index], edges)
    counts_S = bin_means(run.counts_SK[:, index], edges)
    axes.axvline(law.step, color=FAINT, lw=1.2)
    name = run.domains[index]
    dots = axes.plot(step_S, observed_S, ls="none", marker="o", ms=3.2, color=color, alpha=0.55, mew=0)
    dots += axes.plot(step_S, run.laws[-1].predict(index, counts_S), color=color, lw=1.6)
    forecast_S = law.predict(index, counts_S)
    past, future = step_S <= law.step, step_S >= law.step
    dots += axes.plot(step_S[past], forecast_S[past], color=INK, lw=1.3)
    dots += axes.plot(step_S[future], forecast_S[future], color=INK, lw=1.5, ls=(0, (3, 1.6)))
    factor = math.exp(BAND_SD * NORMAL_SD * law.residual_scale_K[index])
    ahead_S = forecast_S[future]
    band = axes.fill_between(step_S[future], ahead_S / factor, ahead_S * factor, color=INK, alpha=0.1, lw=0)
    tag(dots, name, colors)
    tag(band, name, colors, "95 % of single losses")
    _limits(axes, step_S, [observed_S, forecast_S])
    error = forecast_error(run, law, index)
    tag(axes.set_title(shorten(name, 20), color=text_color(color), fontsize=9.5, pad=5), name, colors)
    kept = "forecast" if law.valid_K[index] else "held law"
    text = "no law" if not law.known(index) else "" if math.isnan(error) else f"{kept} {signed(100 * error, '.1f')} %"
    note = axes.text(0.97, 0.93, text, transform=axes.transAxes, ha="right", va="top", fontsize=8.5, color=INK)
    note.set_bbox(BACKING)
    tag(note, name, colors, text or "no forecast")
    thousands(axes.xaxis)
    axes.locator_params(axis="x", nbins=4)
    axes.locator_params(axis="y", nbins=4)


def _limits(axes: Axes, step_S: Floats, curves: list[Floats]) -> None:
    """Sets the y axis to the values after the run's steep start."""
    settled = step_S >= step_S[0] + SETTLED_FRAC * (step_S[-1] - step_S[0])
    values = np.concatenate([curve[settled] for curve in curves])
    values = values[np.isfinite(values)]
    if values.size:
        low, high = values.min(), values.max()
        margin = max(0.08 * (high - low), 0.01)
        axes.set_ylim(low - margin, high + 2.2 * margin)
    axes.set_xlim(step_S[0], max(step_S[-1], step_S[0] + 1))
