"""A property that differs between otherwise equal domains changes the mixture by the formulas."""

import numpy as np
import pytest

from ado_stream.simulate.controlled_experiments import FLOOR, run_experiments


@pytest.mark.parametrize("index", range(6))
def test_the_share_is_that_of_the_formula(index):
    experiment = run_experiments()[index]
    # a few hundred additions into averages that round to 1e-16 each; 0.9^300 of the prior is left in the credit
    np.testing.assert_allclose(experiment.measured_X, experiment.expected_X, atol=1e-12, rtol=0)
    assert experiment.measured_X.min() >= FLOOR
    assert np.ptp(experiment.measured_X) > 0.05, "an experiment in which nothing moves shows nothing"
