"""The picture of the controlled experiments: labelled, complete, and only where a run had ADO."""

import numpy as np

from ado_stream.policy.controlled import experiments
from ado_stream.report import page
from ado_stream.report.controlled import draw_controlled
from ado_stream.report.data import load_runs
from ado_stream.report.style import colors_of, styled


def test_every_experiment_has_a_labelled_panel_with_dots_and_line():
    with styled():
        axes = draw_controlled().figure.axes
    found = experiments()
    assert len(axes) == len(found)
    assert axes[0].get_ylabel()
    for panel, experiment in zip(axes, found, strict=True):
        assert panel.get_xlabel() == experiment.axis
        _, line, dots = panel.lines
        np.testing.assert_array_equal(line.get_ydata(), 100 * experiment.expected_X)
        np.testing.assert_array_equal(dots.get_ydata(), 100 * experiment.given_X)
        assert panel.get_ylim()[1] > 100 * experiment.given_X.max()


def test_it_is_drawn_once_and_only_for_ado(simulate, tmp_path):
    for policy in ("ado", "natural"):
        simulate(tmp_path / policy, ["a", "b"], policy=policy, steps=50)
    for where, times in ((tmp_path, 1), (tmp_path / "natural", 0)):
        runs = load_runs([where])
        with styled():
            names = [plot.name for plot in page._plots(runs, colors_of(runs[0].domains))]
        assert names.count("controlled") == times
