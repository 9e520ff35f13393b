"""A demo's folder belongs to one plan, and the two runs differ in nothing but the policy."""

import pytest

from ado_stream.demo.demo_plan import DemoPlan
from ado_stream.errors import ConfigError
from ado_stream.policy.policy_registry import make_policy
from ado_stream.train.config import load_config


def test_the_same_plan_resumes_and_another_is_refused(tmp_path):
    out = tmp_path / "demo"
    DemoPlan.create(17, True, None).save_or_compare(out)
    DemoPlan.create(17, True, None).save_or_compare(out)
    with pytest.raises(ConfigError, match="quick True"):
        DemoPlan.create(17, False, None).save_or_compare(out)
    with pytest.raises(ConfigError, match=r"other settings \(seed 17\)"):
        DemoPlan.create(18, True, None).save_or_compare(out)


def test_too_few_steps_are_refused():
    with pytest.raises(ConfigError, match="at least 20"):
        DemoPlan.create(17, False, 19)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("steps", [20, 33, None, 2000])
def test_runs_differ_in_the_policy_alone_and_ado_acts(tmp_path, quick, steps):
    plan = DemoPlan.create(17, quick, steps)
    ado = plan.train_settings("ado", tmp_path / "corpus", tmp_path / "run")
    natural = plan.train_settings("natural", tmp_path / "corpus", tmp_path / "run")
    assert {key for key in ado if ado[key] != natural[key]} == {"policy"}
    config = load_config(ado)
    # refused by the policy if no step were drawn by one of its laws
    run = {"total_steps": config.train.steps, "mixture_lag": config.data.mixture_lag}
    policy = make_policy("ado", [0.1] * 10, **config.policy.options, **run)
    assert policy.mixture.sum() == pytest.approx(1)
