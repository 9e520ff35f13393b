"""What ADO does with controlled differences between domains, beside what its mathematics says it should."""

from ado_stream.report.plot_style import FAINT, INK, PALETTE, Plot, new_figure, thousands
from ado_stream.simulate.controlled_experiments import FLOOR, NUM_DOMAINS, experiments

COLUMNS = 3


def draw_controlled() -> Plot:
    """A panel per experiment of `policy.controlled`: the share of the domain that differs, computed and expected."""
    found = experiments()
    figure = new_figure(2.5 * -(-len(found) // COLUMNS), row_gap=0.06)
    grid = figure.subplots(-(-len(found) // COLUMNS), COLUMNS, squeeze=False)
    for axes, experiment in zip(grid.flat, found, strict=True):
        axes.axhline(100 / NUM_DOMAINS, color=FAINT, lw=1.2)
        axes.plot(experiment.value_X, 100 * experiment.expected_X, color=INK, lw=1.3)
        axes.plot(experiment.value_X, 100 * experiment.given_X, ls="none", marker="o", ms=4.5, color=PALETTE[0])
        axes.set(xlabel=experiment.axis, title=experiment.title, ylim=(0, 108 * experiment.expected_X.max()))
        thousands(axes.xaxis)
    for axes in grid[:, 0]:
        axes.set_ylabel("its share (%)")
    return Plot(
        "controlled",
        "Controlled differences between domains",
        f"{NUM_DOMAINS} domains alike but for one thing in one of them: the share ADO gave it (dots) and the share "
        "that the formulas give when worked out by hand (line). The grey line is an equal share; no domain falls under "
        f"the floor of {100 * FLOOR:g} %. All but the last panel show the preference of one step, without its average.",
        figure,
    )
