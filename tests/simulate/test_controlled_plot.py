"""The figure of the controlled experiments is labelled and complete."""

import numpy as np

from ado_stream.report.plot_style import styled
from ado_stream.simulate.controlled_experiments import run_experiments
from ado_stream.simulate.controlled_plot import draw_controlled


def test_every_experiment_has_a_labelled_panel_with_dots_and_line():
    with styled():
        axes = draw_controlled().figure.axes
    found = run_experiments()
    assert len(axes) == len(found)
    assert axes[0].get_ylabel()
    for panel, experiment in zip(axes, found, strict=True):
        assert panel.get_xlabel() == experiment.axis
        _, line, dots = panel.lines
        np.testing.assert_array_equal(line.get_ydata(), 100 * experiment.expected_X)
        np.testing.assert_array_equal(dots.get_ydata(), 100 * experiment.measured_X)
        assert panel.get_ylim()[1] > 100 * experiment.measured_X.max()
