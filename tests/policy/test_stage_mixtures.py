"""Mixtures of a run's stages: drawn in exactly their steps, over a policy whose state is as without them."""

import json

import numpy as np
import pytest

import ado_stream as ado
from ado_stream.policy.base_policy import PlannedStage, RunContext
from ado_stream.policy.policy_registry import make_run_policy

PRIOR = {"web": 5, "code": 3, "wiki": 2}
OWN = {"web": 1, "code": 0, "wiki": 3}
LAG = 2
STAGES = [PlannedStage(6, 8), PlannedStage(5, 16, OWN), PlannedStage(4, 8, "uniform"), PlannedStage(9, 4)]
RUN = RunContext(24, 8, LAG, dict.fromkeys(PRIOR, 100), stages=STAGES)


def make(guards=(), run=RUN):
    return make_run_policy("odm", PRIOR, {}, guards, run)


def updates(policy, steps):
    """[(K,) the mixture of each update], with losses that follow from the policy's step."""
    found = []
    for step in steps:
        losses = 2.0 + np.sin(step + np.arange(3.0))
        found.append(policy.update(losses, [3, 3, 2]))
    return found


def test_a_stages_mixture_is_drawn_in_its_steps_and_the_policy_learns_underneath():
    plain = updates(make(run=RunContext(24, 8, LAG)), range(22))
    found = updates(make(), range(22))
    for step, mixture_K in enumerate(found):
        drawn_at = step + 1 + LAG
        own = [0.25, 0, 0.75] if 6 <= drawn_at < 11 else [1 / 3] * 3 if 11 <= drawn_at < 15 else plain[step]
        assert mixture_K.tolist() == list(own)


def test_the_state_is_that_of_the_policy_at_any_step():
    whole = updates(make(), range(20))
    for stop in range(1, 20):
        policy, plain = make(), make(run=RunContext(24, 8, LAG))
        updates(policy, range(stop))
        updates(plain, range(stop))
        state = json.loads(json.dumps(policy.state_dict()))
        assert state == json.loads(json.dumps(plain.state_dict()))
        resumed = make()
        resumed.load_state_dict(state)
        assert resumed.step == stop
        assert resumed.mixture.tolist() == policy.mixture.tolist()
        np.testing.assert_array_equal(updates(resumed, range(stop, 20)), whole[stop:])


def test_guards_bound_the_mixtures_of_stages():
    policy = make([{"name": "floor", "minimum": 0.1}])
    assert min(mixture_K.min() for mixture_K in updates(policy, range(20))) == pytest.approx(0.1)
    assert policy.floor == 0.1
    assert make().floor == 0  # of the stage, whose share of code is that
    assert make().health()["policy"] == "odm"


def test_samples_of_a_run_are_those_of_its_stages():
    assert RUN.total_samples == 6 * 8 + 5 * 16 + 4 * 8 + 9 * 4
    unimax = make_run_policy("unimax", PRIOR, {}, (), RUN)
    expected = ado.make_policy("unimax", PRIOR, budget=196, sizes=[100] * 3)
    assert unimax.policy.mixture.tolist() == expected.mixture.tolist()
