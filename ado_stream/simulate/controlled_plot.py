"""The figure of the controlled experiments: a domain's share under ADO beside the share by the formulas."""

from collections.abc import Sequence

from ado_stream.report.plot_style import FAINT, INK, PALETTE, Plot, new_figure, thousands
from ado_stream.simulate.controlled_experiments import FLOOR, NUM_DOMAINS, Experiment

COLUMNS = 3


def draw_controlled(found: Sequence[Experiment]) -> Plot:
    """A panel per experiment: the share of the domain that differs, measured and expected."""
    figure = new_figure(2.5 * -(-len(found) // COLUMNS), row_gap=0.06)
    grid = figure.subplots(-(-len(found) // COLUMNS), COLUMNS, squeeze=False)
    for axes, experiment in zip(grid.flat, found, strict=True):
        axes.axhline(100 / NUM_DOMAINS, color=FAINT, lw=1.2)
        axes.plot(experiment.value_X, 100 * experiment.expected_X, color=INK, lw=1.3)
        axes.plot(experiment.value_X, 100 * experiment.measured_X, ls="none", marker="o", ms=4.5, color=PALETTE[0])
        axes.set(xlabel=experiment.axis, title=experiment.title, ylim=(0, 108 * experiment.expected_X.max()))
        thousands(axes.xaxis)
    for axes in grid[:, 0]:
        axes.set_ylabel("its share (%)")
    return Plot(
        "controlled",
        "Controlled differences between domains",
        f"{NUM_DOMAINS} domains equal but for one property of the first: its share under ADO (dots) and by the "
        f"formulas (line). The grey line is an equal share; the floor is {100 * FLOOR:g} %. "
        "All but the last panel show the preference of one step, without averaging.",
        figure,
    )
