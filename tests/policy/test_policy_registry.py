"""Policies by name: the names, and the errors for a wrong name, option or weight."""

import subprocess
import sys

import numpy as np
import pytest

import ado_stream as ado
from ado_stream.policy.base_policy import Policy, RunContext
from ado_stream.policy.guards import Guard
from ado_stream.policy.policy_registry import GUARDS, POLICIES, make_guard, make_run_policy
from ado_stream.simulate.closed_loop import read_spec, simulate

SPEC = {
    "steps": 9,
    "domains": {name: {"prior": 1, "eps": eps, "beta": 1, "alpha": 0.1} for name, eps in (("web", 1), ("code", 3))},
}
PRIOR = {"web": 3.0, "code": 1.0}


def test_the_names_are_those_of_the_contract():
    expected = (
        "natural uniform fixed temperature unimax schedule target ado odm odm-code doremi episelect gap velocitune"
    )
    assert set(POLICIES) == {*expected.split(), "aioli"}
    assert set(GUARDS) == {"floor", "ceiling", "pin", "freeze", "repetition"}


def test_options_of_ado_are_the_fields_of_its_config():
    policy = ado.make_policy("ado", PRIOR, start_step=7, floor=0.1, fit={"every": 5}, total_steps=100)
    assert (policy.config.start_step, policy.config.fit.every) == (7, 5)
    assert (policy.plan.start_step, policy.plan.interval, policy.plan.ignore_steps) == (7, 2, 10)
    assert policy.mixture.min() >= 0.1
    reference = ado.make_policy("ado", PRIOR, preset="reference", interval=50)
    assert reference.config == ado.AdoConfig.reference(interval=50)


@pytest.mark.parametrize("name", [name for name, each in POLICIES.items() if "mixture_lag" in each.run_options])
def test_what_a_policy_keeps_for_each_step_of_the_lag_is_bounded(name):
    options = {"knots": {0: PRIOR}} if name == "schedule" else {}
    with pytest.raises(ado.ConfigError, match=r"mixture_lag is 10{9}; expected a whole number, 65536 at most"):
        make_run_policy(name, PRIOR, options, (), RunContext(10**6, 16, 10**9, {"web": 9, "code": 9}))


@pytest.mark.parametrize(
    ("steps", "plan"),
    [(None, (5000, 1000, 1000)), (60_000, (5000, 1000, 1000)), (3000, (300, 60, 300)), (7, (0, 1, 0))],
)
def test_the_default_schedule_is_capped_by_the_length_of_the_run(steps, plan):
    found = ado.AdoPolicy(PRIOR, total_steps=steps).plan
    assert (found.start_step, found.interval, found.ignore_steps) == plan


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("adoo", {}, "did you mean 'ado'"),
        ("ado", {"statr_step": 3}, "did you mean 'start_step'"),
        ("ado", {"fit": {"evry": 3}}, "did you mean 'every'"),
        ("ado", {"preset": "paper"}, "default or reference"),
        ("ado", {"credit": "residuals"}, "history, residual"),
        ("ado", {"interval": 0}, "1 or more"),
        ("ado", {"credit_memory": 1.5}, "from 0 to 1"),
        ("ado", {"floor": 0.6}, "0.6 x 2 = 1.2 > 1; at most 0.5"),
        ("ado", {"total_steps": 100, "start_step": 100}, "would never act.*last is 99"),
        ("ado", {"total_steps": 100, "start_step": 90, "interval": 60}, "first refit at step 120"),
        ("natural", {"tau": 1}, "takes none"),
        ("temperature", {}, "'tau' is missing"),
        ("temperature", {"tau": 0}, "above 0"),
        ("unimax", {"budget": -1}, "above 0"),
        ("fixed", {"weights": "pile"}, "doremi-pile"),
        ("fixed", {"weights": {"web": 1}}, "missing 'code'"),
        ("fixed", {"weights": {"web": 1, "code": -1}}, "domain 'code' has -1"),
        ("fixed", {"weights": {"web": 0, "code": 0}}, "all 2 weights are 0"),
        ("fixed", {"weights": [1, 2, 3]}, "2 domains need 2 numbers"),
        ("fixed", {"weights": ["much", "little"]}, "expected 2 numbers"),
        ("schedule", {"knots": [(5, [1, 1]), (5, [1, 2])]}, "rising steps"),
        ("schedule", {"knots": [(0, [1, 1])], "interpolation": "cubic"}, "one of linear, constant"),
        ("doremi", {"reference_losses": {"web": 2.0}}, "missing 'code'"),
        ("doremi", {"reference_losses": [2.0, 2.0], "eta": 0}, "above 0"),
    ],
)
def test_wrong_names_options_and_weights_are_refused(name, options, says):
    with pytest.raises(ado.ConfigError, match=says):
        ado.make_policy(name, PRIOR, **options)


@pytest.mark.parametrize(
    ("prior", "says"),
    [
        ({"a": 1, "b": -2}, "domain 'b'"),
        ({"a": 1, "b": float("nan")}, "domain 'b'"),
        ([0, 0], "are 0"),
        ([], "no domains"),
    ],
)
def test_invalid_priors_are_refused(prior, says):
    with pytest.raises(ado.ConfigError, match=says):
        ado.make_policy("ado", prior)


YEARS = {2023: 3, 2024: 1}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("natural", {}),
        ("temperature", {"tau": 1.0}),
        ("temperature", {"tau": 1.0, "sizes": YEARS}),
        ("fixed", {"weights": YEARS}),
        ("fixed", {"weights": {"2024": 1, 2023: 3}}),
        ("schedule", {"knots": [(0, YEARS)]}),
    ],
)
def test_domain_names_may_be_whole_numbers(name, options):
    """YAML reads `2023:` as a number; the data set's domain is "2023"."""
    for prior in (YEARS, {"2023": 3, "2024": 1}):
        policy = ado.make_policy(name, prior, **options)
        assert policy.names == ["2023", "2024"]
        assert policy.mixture.tolist() == [0.75, 0.25]
    assert ado.Ceiling(policy, {2023: 0.6, 2024: 1}).mixture.tolist() == pytest.approx([0.6, 0.4])


def test_a_domain_given_as_number_and_as_text_is_refused():
    with pytest.raises(ado.ConfigError, match="weights: domain '2023' is given twice"):
        ado.make_policy("fixed", YEARS, weights={2023: 3, 2024: 1, "2023": 5})
    with pytest.raises(ado.ConfigError, match="prior: domain '7' is given twice"):
        ado.make_policy("natural", {7: 3, "7": 5})


def test_a_run_fills_in_the_options_that_policies_and_guards_declare():
    run = RunContext(steps=100, global_batch_size=8, mixture_lag=3, sizes={"web": 50, "code": 7})
    filled = {name: run.options_for(policy) for name, policy in {**POLICIES, **GUARDS}.items()}
    assert {name: options for name, options in filled.items() if options} == {
        **dict.fromkeys(("ado", "episelect", "gap", "velocitune", "aioli"), {"total_steps": 100, "mixture_lag": 3}),
        "target": {"sizes": {"web": 50, "code": 7}, "total_samples": 800, "total_steps": 100},
        "temperature": {"sizes": {"web": 50, "code": 7}},
        "unimax": {"sizes": {"web": 50, "code": 7}, "budget": 800},
        "schedule": {"mixture_lag": 3},
        "odm": {"mixture_lag": 3},
        "freeze": {"mixture_lag": 3},
        "repetition": {"sizes": {"web": 50, "code": 7}, "total_samples": 800},
    }
    unknown = RunContext(steps=None, global_batch_size=8)
    assert unknown.options_for(POLICIES["unimax"]) == {}
    assert unknown.options_for(POLICIES["ado"]) == {"mixture_lag": 0}


class LastLoss(Policy):
    """A policy outside the registry: shares in proportion to the last losses seen; `steps` comes from the run."""

    run_options = {"steps": "steps"}  # noqa: RUF012

    def __init__(self, prior, steps, power=1.0):
        super().__init__(prior)
        self.steps, self.power = steps, power

    def _initial(self):
        return {**super()._initial(), "last": np.ones(self.num_domains)}

    def _next_mixture(self, loss_K, count_K, seen_K):
        np.copyto(self.memory["last"], loss_K, where=seen_K)
        weight_K = self.memory["last"] ** self.power
        return weight_K / weight_K.sum()


class Halved(Guard):
    """A guard outside the registry: half way to a uniform mixture."""

    def _repr_bound(self):
        return "half"

    def _apply_bound(self, mixture_K):
        return 0.5 * mixture_K + 0.5 / self.num_domains


OWN = f"{__name__}:LastLoss"


def test_a_class_outside_the_registry_is_a_policy_by_its_import_path():
    run = RunContext(steps=100, global_batch_size=8)
    policy = make_run_policy(OWN, PRIOR, {"power": 2.0}, [{"name": "floor", "minimum": 0.1}], run)
    assert (policy.policy.kind, policy.policy.steps) == (OWN, 100)
    assert policy.update([1.0, 3.0], [4, 4]).tolist() == [0.1, 0.9]
    resumed = make_run_policy(OWN, PRIOR, {"power": 2.0}, [{"name": "floor", "minimum": 0.1}], run)
    resumed.load_state_dict(policy.state_dict())
    assert resumed.mixture.tolist() == policy.mixture.tolist()
    with pytest.raises(ado.ResumeError, match="saved by policy 'floor', but this run has .*LastLoss"):
        ado.make_policy(OWN, PRIOR, steps=1).load_state_dict(policy.state_dict())
    spec = read_spec({**SPEC, "policies": {"mine": {"policy": OWN, "power": 2.0}}})
    simulated = simulate(spec, spec.make("mine"))
    assert simulated.mixture_SK[-1].tolist() != simulated.mixture_SK[0].tolist()


def test_a_guard_outside_the_registry_works_by_its_import_path():
    guard = make_guard(f"{__name__}:Halved", ado.make_policy("natural", PRIOR))
    assert guard.mixture.tolist() == [0.625, 0.375]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("no_such_module_:Own", {}, "cannot be imported .ModuleNotFoundError: No module named 'no_such_module_'"),
        (f"{__name__}:Missing", {}, "cannot be imported .AttributeError: .*Missing"),
        (":Own", {}, "cannot be imported .ValueError"),
        ("json:dumps", {}, "is <function dumps .*expected a subclass of ado_stream.policy.base_policy.Policy"),
        ("collections:OrderedDict", {}, "expected a subclass of ado_stream.policy.base_policy.Policy"),
        ("ado_stream.policy.base_policy:Policy", {}, "without abstract methods"),
        ("ado_stream.policy.guards:Floor", {}, "expected a subclass of ado_stream.policy.base_policy.Policy"),
        (OWN, {}, "LastLoss: option 'steps' is missing"),
        (OWN, {"steps": 1, "powr": 2}, r"LastLoss: unknown option 'powr' \(did you mean 'power'"),
    ],
)
def test_a_class_that_is_no_usable_policy_is_refused_in_one_line(name, options, message):
    with pytest.raises(ado.ConfigError, match=message) as caught:
        ado.make_policy(name, PRIOR, **options)
    assert "\n" not in str(caught.value)


def test_a_module_that_fails_to_import_is_refused_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "broken_policy_module.py").write_text("raise RuntimeError('two\\nlines')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ado.ConfigError, match=r"cannot be imported \(RuntimeError: two lines\)") as caught:
        ado.make_policy("broken_policy_module:Own", PRIOR)
    assert "\n" not in str(caught.value)


def test_repr_is_one_line_with_domains_step_and_extremes():
    policy = ado.Pin(ado.Floor(ado.make_policy("ado", PRIOR), 0.3), {"code": 0.4})
    policy.update([2.0, 3.0], [4, 4])
    assert repr(policy) == (
        "Pin(shares={code: 0.4}, 2 domains, step 1, shares 0.4 (code) to 0.6 (web), "
        "policy=Floor(minimum=0.3, 2 domains, step 1, shares 0.3 (code) to 0.7 (web), "
        "policy=AdoPolicy(2 domains, step 1, shares 0.25 (code) to 0.75 (web), 0 refits)))"
    )
    law = ado.ScalingLawFit([0.0, np.nan, 1.0], [0.0, np.nan, np.log(2.0)], [0.1, np.nan, 0.3])
    assert repr(law) == "ScalingLawFit(3 domains, 2 valid, eps 1 to 2, alpha 0.1 to 0.3)"
    assert repr(ado.ScalingLawFit(*np.full((3, 2), np.nan))) == "ScalingLawFit(2 domains, none valid)"


def test_the_prior_is_public_under_both_names_and_a_copy():
    for policy in (ado.make_policy("natural", PRIOR), ado.Floor(ado.make_policy("natural", PRIOR), 0.1)):
        assert policy.prior.tolist() == policy.prior_K.tolist() == [0.75, 0.25]
        policy.prior[:] = 0.0
        assert policy.prior.tolist() == [0.75, 0.25]


def test_law_counts_are_shared_or_own_through_any_guard():
    shared = ado.make_policy("ado", PRIOR)
    own = ado.Ceiling(ado.Floor(ado.make_policy("ado", PRIOR, shared_count=False), 0.01), 0.9)
    assert shared.law_counts([3, 4]) == ado.Floor(shared, 0.01).law_counts([3, 4]) == 7
    assert own.law_counts([3, 4]).tolist() == [3, 4]


@pytest.mark.parametrize("guards", ["floor", {"name": "floor"}, 5, ["floor"], [{"minimum": 0.1}]])
def test_guards_of_a_run_are_a_list_of_named_ones(guards):
    with pytest.raises(ado.ConfigError, match="guards: .*name: floor, minimum: 0.01"):
        make_run_policy("natural", PRIOR, {}, guards, RunContext(10, 8))


def test_guards_by_name():
    guard = make_guard("floor", ado.make_policy("natural", PRIOR), minimum=0.3)
    assert guard.mixture.tolist() == [0.7, 0.3]
    with pytest.raises(ado.ConfigError, match="did you mean 'floor'"):
        make_guard("flor", guard)
    with pytest.raises(ado.ConfigError, match="'minimum' is missing"):
        make_guard("floor", guard)


def test_policies_import_neither_torch_nor_matplotlib():
    code = (
        "import sys, ado_stream as a; a.make_policy('ado', [1, 1]); print({'torch', 'matplotlib'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
