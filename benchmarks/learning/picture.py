"""The plane of loss by size against mean of domains, a panel a scenario, with the frontier of static mixtures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ado_stream.report.plot_style import FAINT, INK, PALETTE, new_figure, styled
from benchmarks.learning.scenarios import CONTROL, STATIC

COLUMNS = 2


def draw_planes(found: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draws every scenario's rows (outcome.table) into `path`; crosses are 95 % intervals."""
    if not found:
        return
    num_rows = -(-len(found) // COLUMNS)
    with styled():
        figure = new_figure(3.6 * num_rows, row_gap=0.08)
        grid = figure.subplots(num_rows, COLUMNS, squeeze=False)
        for axes in grid.flat[len(found) :]:
            axes.set_axis_off()
        for axes, (name, rows) in zip(grid.flat, found.items(), strict=False):
            static = [row for row in rows if row["policy"] in STATIC]
            axes.plot([row["by size"][0] for row in static], [row["mean"][0] for row in static], color=FAINT, lw=1.5)
            axes.axhline(0.0, color=FAINT, lw=0.6)
            axes.axvline(0.0, color=FAINT, lw=0.6)
            for number, row in enumerate(row for row in rows if row["policy"] != CONTROL):
                (x, half_x), (y, half_y) = row["by size"], row["mean"]
                color = INK if row in static else PALETTE[number % len(PALETTE)]
                axes.errorbar(x, y, xerr=half_x, yerr=half_y, marker="o", ms=4, lw=0.8, color=color)
                axes.annotate(row["policy"].replace(":", " "), (x, y), (4, 3), textcoords="offset points", fontsize=7)
            axes.set(title=name, xlabel="loss by size, less natural's (nats)", ylabel="mean of domains")
            axes.margins(0.2)
        figure.savefig(path)
