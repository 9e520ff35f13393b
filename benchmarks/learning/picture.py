"""The plane of loss by size against mean of domains, a panel a scenario, with the frontier of static mixtures."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.colors import to_rgb

from ado_stream.report.plot_style import FAINT, INK, PALETTE, new_figure, spread_labels, styled
from benchmarks.learning.scenarios import CONTROL, ORDER, STATIC

COLUMNS = 2
_FAR, _LEAST = 2.5, 0.05  # times the farthest static mixture, and nats: what lies beyond is named at the edge
DARK_INK, DARK_SOFT, DARK_FAINT = "#e6e9ed", "#9aa4b1", "#3b424c"
_DARK: Any = {
    "text.color": DARK_INK, "axes.labelcolor": DARK_SOFT, "xtick.color": DARK_SOFT, "ytick.color": DARK_SOFT,
    "axes.edgecolor": DARK_SOFT, "grid.color": "#262b32",
}  # fmt: skip
# no background of its own: the page's shows; ids and date fixed, so that equal cells give equal files
_FILE: Any = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "svg.hashsalt": "ado-stream",
    "svg.fonttype": "none",
}


def draw_planes(found: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, dark: bool = False) -> None:
    """Draws every scenario's rows (outcome.table) into `path`; crosses are 95 % intervals, what is far off is named."""
    found = {name: rows for name, rows in found.items() if len(rows) > 1}
    if not found:
        return
    num_rows = -(-len(found) // COLUMNS)
    ink, faint = (DARK_INK, DARK_FAINT) if dark else (INK, FAINT)
    with styled(), rc_context({**(_DARK if dark else {}), **_FILE}):
        figure = new_figure(3.6 * num_rows, row_gap=0.08)
        grid = figure.subplots(num_rows, COLUMNS, squeeze=False)
        for axes in grid.flat[len(found) :]:
            axes.set_axis_off()
        for axes, (name, rows) in zip(grid.flat, found.items(), strict=False):
            static = sorted(
                (row for row in rows if row["policy"] in STATIC), key=lambda row: STATIC.index(row["policy"])
            )
            axes.plot([row["by size"][0] for row in static], [row["mean"][0] for row in static], color=faint, lw=1.5)
            axes.axhline(0.0, color=faint, lw=0.6)
            axes.axvline(0.0, color=faint, lw=0.6)
            rows = [row for row in rows if row["policy"] != CONTROL]
            farthest = max(map(_distance, static), default=0.0)
            near = max(_LEAST, _FAR * farthest) if farthest else math.inf
            shown = [row for row in rows if _distance(row) <= near]
            outside = [
                f"{_label(row)} ({x:+.2f}, {y:+.2f})" for row in rows if row not in shown for x, y in [_place(row)]
            ]
            colors = [ink if row in static else _color(row["policy"], dark) for row in shown]
            for row, color in zip(shown, colors, strict=True):
                (x, half_x), (y, half_y) = row["by size"], row["mean"]
                axes.errorbar(x, y, half_y, half_x, color=to_rgb(color), alpha=0.5, lw=0.8)
                axes.plot(x, y, "o", ms=4, color=color)
            axes.update_datalim([(-_LEAST / 2, -_LEAST / 2), (_LEAST / 2, _LEAST / 2)])
            axes.set(title=name, xlabel="loss by size, less natural's (nats)", ylabel="mean of domains")
            axes.margins(0.2)
            low, high = axes.get_ylim()
            label_y = spread_labels([row["mean"][0] for row in shown], 0.05 * (high - low), low, high)
            for row, color, y in zip(shown, colors, label_y.tolist(), strict=True):
                axes.annotate(
                    _label(row), (row["by size"][0], y), (5, 3), textcoords="offset points", fontsize=7, color=color
                )
            if outside:
                axes.text(
                    0.98,
                    0.96,
                    "outside: " + "\n".join(outside),
                    transform=axes.transAxes,
                    ha="right",
                    va="top",
                    fontsize=7,
                )
        figure.savefig(path, metadata={"Date": None})


def _distance(row: Mapping[str, Any]) -> float:
    """Of a policy from natural, along the axis on which it is farther."""
    return max(map(abs, _place(row)))


def _place(row: Mapping[str, Any]) -> tuple[float, float]:
    return row["by size"][0], row["mean"][0]


def _label(row: Mapping[str, Any]) -> str:
    return str(row["policy"]).replace(":", " ")


def _color(policy: str, dark: bool) -> Any:
    """A policy's colour in every panel, on a dark page half way to white."""
    rgb = to_rgb(PALETTE[(ORDER.index(policy) if policy in ORDER else -1) % len(PALETTE)])
    return tuple(0.5 + 0.5 * channel for channel in rgb) if dark else rgb
