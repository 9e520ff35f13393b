"""The mixture over time: every domain's share of the batch, and how far that is from its prior."""

import math

import numpy as np
from matplotlib.axes import Axes

from ado_stream.report.plot_style import (
    FAINT,
    SOFT,
    Plot,
    bin_means,
    bins,
    compact,
    label_lines,
    new_figure,
    shorten,
    spread_labels,
    tag,
    text_color,
    thousands,
)
from ado_stream.report.run_data import Run
from ado_stream.value_types import Floats

MAX_RUNS = 4
MAX_LABELS = 24
HEIGHT_IN = 4.4
CONSTANT = 1e-9  # of a share: smaller changes are rounding


def mixture_varies(run: Run) -> bool:
    """Whether the run's mixture ever changed."""
    finite_SK = run.mixture_SK[np.isfinite(run.mixture_SK).all(axis=1)]
    return bool(len(finite_SK) and np.ptp(finite_SK, axis=0).max() > CONSTANT)


def draw_mixture(runs: list[Run], colors: dict[str, str]) -> Plot | None:
    """A row for every run whose mixture moved: shares stacked, and shares relative to the prior. None without steps."""
    recorded = [run for run in runs if np.isfinite(run.mixture_SK).all(axis=1).any()]
    shown = [run for run in recorded if mixture_varies(run)][:MAX_RUNS] or recorded[:1]
    if not shown:
        return None
    figure = new_figure(HEIGHT_IN * len(shown))
    axes_grid = figure.subplots(len(shown), 2, squeeze=False, width_ratios=[1.15, 1])
    for run, (left, right) in zip(shown, axes_grid, strict=True):
        whole = np.isfinite(run.mixture_SK).all(axis=1)
        edges = bins(run.step_S[whole])
        step_S = bin_means(run.step_S[whole].astype(np.float64), edges)
        mixture_SK = bin_means(run.mixture_SK[whole], edges)
        _stack(left, run, step_S, mixture_SK, colors)
        _relative(right, run, step_S, mixture_SK, colors)
    still = "" if mixture_varies(shown[0]) else " This run's mixture is constant."
    return Plot(
        "mixture",
        "Mixture over time",
        "Left: the share of each domain in the batch; the numbers are those of the last step. Right: the same "
        f"shares as multiples of the prior: above ×1 where the policy raised the domain's share.{still}",
        figure,
    )


def _stack(axes: Axes, run: Run, step_S: Floats, mixture_SK: Floats, colors: dict[str, str]) -> None:
    shades = [colors[name] for name in run.domains]
    if len(step_S) == 1:
        step_S, mixture_SK = np.array([step_S[0], step_S[0] + 1]), np.repeat(mixture_SK, 2, axis=0)
    shown = np.sort(np.argsort(-mixture_SK.mean(axis=0), kind="stable")[:MAX_LABELS])
    layers = [mixture_SK[:, index] for index in shown]
    grouped = len(run.domains) - len(shown)
    if grouped:
        layers.append(1.0 - np.sum(layers, axis=0))
    bands = axes.stackplot(
        step_S, 100 * np.array(layers), colors=[*(shades[k] for k in shown), FAINT], linewidth=0.4, edgecolor="white"
    )
    for band, index in zip(bands, shown, strict=False):
        tag(band, run.domains[index], colors)
    axes.set(xlim=(step_S[0], step_S[-1]), ylim=(0, 100), xlabel="step", ylabel="share of the batch (%)")
    axes.set_title(f"{shorten(run.label)}: shares")
    axes.grid(visible=False)
    thousands(axes.xaxis)
    last = 100 * np.array([layer[-1] for layer in layers])
    middle = np.cumsum(last) - last / 2
    placed = spread_labels(middle.tolist(), _label_height(100.0), 1, 99)
    span = step_S[-1] - step_S[0]
    names = [*(run.domains[index] for index in shown), *([f"{grouped} smaller ones"] if grouped else [])]
    for name, share, center, y in zip(names, last, middle, placed, strict=True):
        color, end = colors.get(name, SOFT), step_S[-1]
        line = axes.plot([end, end + 0.02 * span], [center, y], color=color, lw=1, clip_on=False)
        label = f"{shorten(name)}  {share:.3g} %"
        text = axes.text(end + 0.026 * span, y, label, color=text_color(color), va="center", fontsize=8.5)
        tag([*line, text], name, colors, f"{share:.3g} %")


def _relative(axes: Axes, run: Run, step_S: Floats, mixture_SK: Floats, colors: dict[str, str]) -> None:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_SK = np.log2(mixture_SK / run.prior_K)
    ratio_SK[~np.isfinite(ratio_SK)] = np.nan
    ends = {name: ratio_SK[-1, index] for index, name in enumerate(run.domains) if np.isfinite(ratio_SK[-1, index])}
    named = _extremes(ends)
    for index, name in enumerate(run.domains):
        lw, alpha = (1.7, 1.0) if name in named else (0.8, 0.3)
        tag(axes.plot(step_S, ratio_SK[:, index], color=colors[name], lw=lw, alpha=alpha), name, colors)
    axes.axhline(0, color="#9aa2ad", lw=0.9, ls=(0, (4, 3)))
    low, high = np.nanmin(ratio_SK, initial=-0.3), np.nanmax(ratio_SK, initial=0.3)
    margin = 0.06 * (high - low)
    axes.set(xlim=(step_S[0], max(step_S[-1], step_S[0] + 1)), ylim=(low - margin, high + margin))
    axes.set(xlabel="step", ylabel="share divided by prior")
    axes.set_title("relative to the prior")
    axes.set_label("log2")
    ticks = _multiples(2.0 ** (low - margin), 2.0 ** (high + margin))
    axes.set_yticks([math.log2(tick) for tick in ticks], [f"×{compact(tick)}" for tick in ticks])
    thousands(axes.xaxis)
    named_ends = {name: ends[name] for name in named}
    label_lines(axes, axes.get_xlim()[1], named_ends, colors, _label_height(high - low + 2 * margin))


def _extremes(ends: dict[str, float]) -> list[str]:
    """The names to label: all of them, or as many of the highest as of the lowest."""
    ranked = sorted(ends, key=lambda name: ends[name])
    half = MAX_LABELS // 2
    return ranked if len(ranked) <= MAX_LABELS else ranked[: half - 2] + ranked[-half + 2 :]


def _multiples(low: float, high: float) -> list[float]:
    """Round multiples inside [low, high]; finer ones where the range is narrow."""
    fine = (0.25, 0.33, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
    inside = [tick for tick in fine if low <= tick <= high]
    octaves = math.log2(high / low)
    if octaves < 1.5:
        return inside
    if octaves < 4:
        return [tick for tick in inside if tick in (0.25, 0.33, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0)]
    powers = np.arange(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
    return [2.0**power for power in powers if power % max(1, round(octaves / 6)) == 0]


def _label_height(units: float) -> float:
    """A label's height in the units of an axis that spans `units`."""
    return units * 0.155 / (HEIGHT_IN - 0.9)  # inches: of a line of text; of title and axis labels
