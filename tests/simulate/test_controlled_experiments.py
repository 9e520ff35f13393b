"""A property that differs between otherwise equal domains changes the mixture by the formulas; and their figure."""

import numpy as np

from ado_stream.report.plot_style import styled
from ado_stream.simulate.controlled_experiments import FLOOR, run_experiments
from ado_stream.simulate.controlled_plot import draw_controlled


def test_shares_are_those_of_the_formulas():
    experiments = run_experiments()
    assert len(experiments) == 6
    for experiment in experiments:
        # a few hundred additions into averages that round to 1e-16 each; 0.9^300 of the prior is left in the credit
        np.testing.assert_allclose(
            experiment.measured_X, experiment.expected_X, atol=1e-12, rtol=0, err_msg=experiment.title
        )
        assert experiment.measured_X.min() >= FLOOR
        assert np.ptp(experiment.measured_X) > 0.05, "an experiment in which nothing moves shows nothing"


def test_every_experiment_has_a_labelled_panel_with_dots_and_line():
    with styled():
        axes = draw_controlled(run_experiments()).figure.axes
    found = run_experiments()
    assert len(axes) == len(found)
    assert axes[0].get_ylabel()
    for panel, experiment in zip(axes, found, strict=True):
        assert panel.get_xlabel() == experiment.axis
        _, line, dots = panel.lines
        np.testing.assert_array_equal(line.get_ydata(), 100 * experiment.expected_X)
        np.testing.assert_array_equal(dots.get_ydata(), 100 * experiment.measured_X)
        assert panel.get_ylim()[1] > 100 * experiment.measured_X.max()
