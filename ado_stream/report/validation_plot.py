"""Validation loss of several runs side by side, per domain and over all, with the differences to a baseline."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ado_stream.report.comparison import (
    NATS,
    OVERALL,
    Unit,
    common_unit,
    final_losses,
    pick_baseline,
    seed_noise,
    why_not_comparable,
)
from ado_stream.report.plot_style import (
    FAINT,
    INK,
    RUN_MARKERS,
    SOFT,
    Plot,
    label_rows,
    new_figure,
    shorten,
    signed,
    tag,
)
from ado_stream.report.run_data import Run

MAX_ROWS = 36
NOISE_SD = 1.96 * math.sqrt(2)  # of the difference of two runs


def draw_validation(runs: list[Run], colors: dict[str, str]) -> Plot | None:
    """Final validation loss of each run per domain, and differences to the baseline. None when nothing was measured."""
    measured = [run for run in runs if run.final is not None]
    if not measured:
        return None
    baseline, unit = pick_baseline(measured), common_unit(measured)
    others = [run for run in measured if run is not baseline and not why_not_comparable(run, baseline)]
    names = _rows(measured, baseline, list(colors), unit)
    y = {name: row + (0.6 if name in OVERALL else 0.0) for row, name in enumerate(names)}
    figure = new_figure(0.9 + 0.29 * (len(names) + 1))
    grid = figure.subplots(1, 2 if others else 1, squeeze=False, sharey=True)[0]
    _levels(grid[0], measured, y, colors, unit)
    if others:
        noise = seed_noise(measured, unit)
        _differences(grid[1], others, baseline, y, colors, unit, noise)
    part = "" if len(names) - 2 >= len(colors) else f" Shown: the {len(names) - 2} domains that differ most."
    caption = "Loss on held-out documents at the end of each run; lower is better. "
    caption += f"'By corpus size' weights domains by their training {'tokens' if unit is NATS else 'text'}."
    if others:
        caption += f" Right: difference to {baseline.label}; bars left of zero: a lower loss."
        if noise:
            caption += " Grey: what two runs of one policy that differ in their seed alone may differ by (95 %)."
    return Plot("validation", "Validation loss side by side", caption + part, figure)


def _rows(runs: list[Run], baseline: Run, domains: list[str], unit: Unit) -> list[str]:
    known = {name for run in runs for name in run.domains}
    domains = [name for name in domains if name in known]
    if len(domains) > MAX_ROWS:
        base, others = final_losses(baseline, unit), [final_losses(run, unit) for run in runs]
        size = {name: max(abs(o.get(name, math.nan) - base.get(name, math.nan)) for o in others) for name in domains}
        kept = sorted(domains, key=lambda name: -size[name] if math.isfinite(size[name]) else math.inf)[:MAX_ROWS]
        domains = [name for name in domains if name in kept]
    return [*domains, *OVERALL]


def _levels(axes: Axes, runs: list[Run], y: dict[str, float], colors: dict[str, str], unit: Unit) -> None:
    handles = []
    for number, run in enumerate(runs):
        marker = RUN_MARKERS[number % len(RUN_MARKERS)]
        hollow = number > 0 and run is pick_baseline(runs)
        for name, value in final_losses(run, unit).items():
            if name in y and math.isfinite(value):
                color = colors.get(name, INK)
                face = "white" if hollow else color
                mark = axes.plot(value, y[name], marker, ms=6.5, mfc=face, mec=color, mew=1.5, zorder=3)
                tag(mark, name, colors, f"{run.label}: {value:.4f} {unit.name}")
        face = "white" if hollow else INK
        handles.append(Line2D([], [], ls="none", marker=marker, mfc=face, mec=INK, mew=1.5, label=shorten(run.label)))
    for name, row in y.items():
        values = [final_losses(run, unit).get(name, math.nan) for run in runs]
        if np.isfinite(values).any():
            axes.plot([np.nanmin(values), np.nanmax(values)], [row, row], color=colors.get(name, INK), lw=1, alpha=0.5)
    label_rows(axes, list(y.values()), list(y), colors)
    for tick, name in zip(axes.get_yticklabels(), y, strict=True):
        tick.set_fontweight("bold" if name in OVERALL else "normal")
    axes.set(xlabel=f"validation loss ({unit.name})", ylim=(max(y.values()) + 0.7, -0.7))
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2, handletextpad=0.3)


def _differences(
    axes: Axes,
    others: list[Run],
    base: Run,
    y: dict[str, float],
    colors: dict[str, str],
    unit: Unit,
    noise: dict[str, float],
) -> None:
    base_loss = final_losses(base, unit)
    thickness = 0.62 / len(others)
    largest = 0.0
    for name, spread in noise.items():
        if name in y:
            half = NOISE_SD * spread
            band = axes.barh(y[name], 2 * half, 0.9, left=-half, color=FAINT, zorder=0)
            tag(band, name, colors, f"seeds: ±{half:.4f} {unit.name}")
    for number, run in enumerate(others):
        losses = final_losses(run, unit)
        for name, row in y.items():
            difference = losses.get(name, math.nan) - base_loss.get(name, math.nan)
            if not math.isfinite(difference):
                continue
            largest = max(largest, abs(difference))
            place = row + (number - (len(others) - 1) / 2) * thickness
            bar = axes.barh(
                place, difference, thickness * 0.92, color=colors.get(name, INK), alpha=1 - 0.45 * (number % 2)
            )
            tag(bar, name, colors, f"{run.label}: {signed(difference, '.4f')} {unit.name}")
            offset = (4 if difference >= 0 else -4, 0)
            side = "left" if difference >= 0 else "right"
            style: Any = {"textcoords": "offset points", "ha": side, "va": "center", "fontsize": 8, "color": SOFT}
            if len(others) < 3:  # numbers beside thinner bars would overlap; the page shows them under the pointer
                tag(axes.annotate(signed(difference, ".3f"), (difference, place), offset, **style), name, colors)
    axes.axvline(0, color=INK, lw=0.9)
    limit = 1.35 * largest or 0.01
    axes.set(xlim=(-limit, limit), xlabel=f"difference to {shorten(base.label)} ({unit.name})")
    title = ", ".join(shorten(run.label) for run in others)
    axes.set_title(f"{title} minus {shorten(base.label)}", loc="center", fontsize=9.5)
    axes.tick_params(axis="y", length=0)
