"""What a run would draw, against a loop that asks the policy at every step."""

import numpy as np
import pytest

from ado_stream.policy.planned_draws import planned_samples
from ado_stream.policy.policy_registry import make_policy

PRIOR = {"a": 5.0, "b": 3.0, "c": 2.0}
KNOTS = [(0, [1, 1, 1]), (10, [1, 0, 0]), (30, [0, 0, 1])]


@pytest.mark.parametrize("lag", [0, 3, 60])
@pytest.mark.parametrize(("name", "options"), [("uniform", {}), ("schedule", {"knots": KNOTS}), ("target", {})])
def test_planned_samples_are_the_sum_of_the_mixtures_in_force(name, options, lag):
    policy = make_policy(name, PRIOR, **options)
    said = [policy.update([np.nan] * 3, [1, 1, 1]) for _ in range(40)]
    shares = [policy.prior if step <= lag else said[step - 1 - lag] for step in range(40)]
    found = planned_samples(make_policy(name, PRIOR, **options), 40, 16, lag)
    assert found == pytest.approx(16 * np.sum(shares, axis=0), rel=1e-12)
    assert found.sum() == pytest.approx(16 * 40, rel=1e-12)
