"""A demo's folder belongs to one plan, and its runs differ in nothing but the policy and its prior."""

import pytest

from ado_stream.demo.demo_plan import CLEAN, POLICIES, DemoPlan
from ado_stream.demo.environment_files import UNLEARNABLE
from ado_stream.errors import ConfigError, StorageError
from ado_stream.policy.base_policy import RunContext
from ado_stream.policy.policy_registry import make_run_policy
from ado_stream.train.run_config import load_config


def test_the_same_plan_resumes_and_another_is_refused(tmp_path):
    out = tmp_path / "demo"
    DemoPlan.create(17, True, None).save_or_compare(out)
    DemoPlan.create(17, True, None).save_or_compare(out)
    with pytest.raises(ConfigError, match="quick True"):
        DemoPlan.create(17, False, None).save_or_compare(out)
    with pytest.raises(ConfigError, match=r"other settings \(seed 17\)"):
        DemoPlan.create(18, True, None).save_or_compare(out)


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff"])
def test_a_damaged_plan_is_named(tmp_path, content):
    (tmp_path / "demo.json").write_bytes(content)
    with pytest.raises(StorageError, match=r"demo\.json: damaged: demo\.json"):
        DemoPlan.create(17, True, None).save_or_compare(tmp_path)


def test_too_few_steps_are_refused():
    with pytest.raises(ConfigError, match="at least 40"):
        DemoPlan.create(17, False, 39)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("steps", [40, 53, None, 2000])
def test_runs_differ_in_the_policy_alone_and_ado_acts(tmp_path, quick, steps):
    plan = DemoPlan.create(17, quick, steps)
    tokens = {"code": 30, UNLEARNABLE: 20, "docs": 10}
    runs = [plan.train_settings(run, tmp_path / "corpus", tokens, tmp_path / "run") for run in (*POLICIES, *CLEAN)]
    assert all({key for key in run if run[key] != runs[0][key]} <= {"policy"} for run in runs)
    configs = [load_config(run) for run in runs]
    assert [config.policy.name for config in configs] == [*POLICIES, *CLEAN.values()]
    for config, run in zip(configs, (*POLICIES, *CLEAN), strict=True):
        clean = {"code": 30.0, UNLEARNABLE: 0.0, "docs": 10.0}
        assert config.policy.prior == (clean if run in CLEAN else {})
        # refused by ADO if no step were drawn by one of its laws
        context = RunContext(config.train.steps, config.data.global_batch_size, config.data.mixture_lag)
        policy = make_run_policy(config.policy.name, [0.1] * 10, config.policy.options, (), context)
        assert policy.mixture.sum() == pytest.approx(1)
