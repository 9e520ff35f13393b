"""Every policy, guarded or not, keeps the invariants of policy/base_policy.py."""

import json

import numpy as np
import pytest

import ado_stream as ado
from ado_stream.policy.guards import Ceiling, Floor, Freeze, Pin, RepetitionGuard

NAMES = ["web", "code", "books", "wiki", "math"]
PRIOR = dict(zip(NAMES, [50.0, 23.0, 12.0, 10.5, 4.5], strict=True))
STEPS = 260
BATCH = 64


def _sizes(names):
    return {name: {"web": 9000, "code": 7000, "books": 300, "wiki": 2000, "math": 40}[name] for name in names}


def _policies(make_ado):
    """{case: maker of a policy from a prior}, bare and guarded."""
    guarded = {
        "floor": lambda prior: Floor(make_ado(prior), 0.08),
        "ceiling": lambda prior: Ceiling(make_ado(prior), 0.3),
        "pin": lambda prior: Pin(make_ado(prior), {"math": 0.2, "wiki": 0.1}),
        "freeze": lambda prior: Freeze(make_ado(prior), from_step=30),
        "repetition": lambda prior: RepetitionGuard(make_ado(prior), _sizes(prior), STEPS * BATCH, max_epochs=2.0),
        "all guards": lambda prior: Floor(
            Ceiling(Pin(Freeze(ado.make_policy("odm", prior), 200), {"code": 0.2}), 0.5), 0.01
        ),
    }
    return {**_bare(make_ado), **guarded}


def _bare(make_ado):
    """Every kind of policy; options by domain are mappings, so the order of domains is free."""
    weights = {"web": 1, "code": 2, "books": 3, "wiki": 4, "math": 0}
    knots = [(0, weights), (40, dict.fromkeys(NAMES, 1.0))]
    reference = dict.fromkeys(NAMES, 2.5)
    ado_reference = {"floor": 0.01, "floor_rule": "reference"}
    return {
        "natural": lambda prior: ado.make_policy("natural", prior),
        "uniform": lambda prior: ado.make_policy("uniform", prior),
        "fixed": lambda prior: ado.make_policy("fixed", prior, weights=weights),
        "temperature": lambda prior: ado.make_policy("temperature", prior, tau=3.0),
        "unimax": lambda prior: ado.make_policy("unimax", prior, budget=90.0, max_epochs=1.0),
        "schedule": lambda prior: ado.make_policy("schedule", prior, knots=knots),
        "schedule constant": lambda prior: ado.make_policy("schedule", prior, knots=knots, interpolation="constant"),
        "ado": make_ado,
        "ado residual": lambda prior: make_ado(prior, credit="residual"),
        "ado reference": lambda prior: make_ado(prior, **ado_reference),
        "ado own counts": lambda prior: make_ado(prior, shared_count=False),
        "ado hold": lambda prior: make_ado(prior, hold_steps=10),
        "target": lambda prior: _early_target(prior),
        "target uniform": lambda prior: _early_target(prior, weights="uniform", sizes=_sizes(prior), total_samples=9e4),
        "episelect": lambda prior: ado.make_policy("episelect", prior, start_step=5, interval=15, ignore_steps=0),
        "episelect full": lambda prior: ado.make_policy(
            "episelect", prior, transfer="full", start_step=5, interval=60, ignore_steps=0
        ),
        "velocitune": lambda prior: ado.make_policy(
            "velocitune", prior, target_losses=reference, start_step=5, interval=15, ignore_steps=0
        ),
        "aioli": lambda prior: ado.make_policy("aioli", prior, start_step=3, round_steps=30, mixture_lag=2),
        "gap": lambda prior: ado.make_policy(
            "gap", prior, target_losses=reference, start_step=5, interval=15, ignore_steps=0
        ),
        "odm": lambda prior: ado.make_policy("odm", prior),
        "odm late": lambda prior: ado.make_policy("odm", prior, mixture_lag=5),
        "odm-code": lambda prior: ado.make_policy("odm-code", prior),
        "doremi": lambda prior: ado.make_policy("doremi", prior, reference_losses=reference, eta=0.05),
    }


def _early_target(prior, **options):
    """Moves at every little difference, from the first blocks on."""
    quick = {"ignore_steps": 0, "start_step": 4, "dead_zone": 1.0, "confidence": 0.0}
    return ado.make_policy("target", prior, **quick, **options)


CASES = list(_policies(None))
GUARDS = {  # around any policy, and what then holds for its mixtures
    "floor": (lambda policy: Floor(policy, 0.08), lambda mixture_TK: mixture_TK.min() >= 0.08),
    "ceiling": (lambda policy: Ceiling(policy, 0.3), lambda mixture_TK: mixture_TK.max() <= 0.3),
    "pin": (lambda policy: Pin(policy, {"math": 0.2}), lambda mixture_TK: (mixture_TK[:, 4] == 0.2).all()),
    "freeze": (lambda policy: Freeze(policy, 30), lambda mixture_TK: np.ptp(mixture_TK[30:], axis=0).max() == 0.0),
    "repetition": (  # 40 samples twice in 60 steps of 64
        lambda policy: RepetitionGuard(policy, _sizes(NAMES), 60 * BATCH, max_epochs=2.0),
        lambda mixture_TK: mixture_TK[0, 4] <= 80 / (60 * BATCH),
    ),
}


@pytest.fixture
def maker(request, make_ado):
    return _policies(make_ado)[request.param]


def _run(policy, loss_TK, count_TK):
    return np.array([policy.update(loss_K, count_K) for loss_K, count_K in zip(loss_TK, count_TK, strict=True)])


@pytest.mark.parametrize("maker", CASES, indirect=True)
def test_the_mixture_is_always_a_distribution(maker, loss_stream):
    loss_TK, count_TK = loss_stream(len(NAMES), STEPS)
    loss_TK[17, 0], loss_TK[18, 1] = np.inf, np.nan
    policy = maker(PRIOR)
    mixture_TK = np.vstack([policy.mixture, _run(policy, loss_TK, count_TK)])
    assert mixture_TK.dtype == np.float64
    assert np.isfinite(mixture_TK).all()
    assert (mixture_TK >= policy.floor).all()
    # each step's K additions round to 1e-16; averages carry the rounding of the steps before, shrinking as 1/t
    np.testing.assert_allclose(mixture_TK.sum(axis=1), 1.0, atol=1e-13)
    np.testing.assert_array_equal(policy.mixture, mixture_TK[-1])
    assert policy.step == STEPS
    json.dumps(policy.health(), allow_nan=False)


@pytest.mark.parametrize("maker", CASES, indirect=True)
def test_a_state_saved_at_any_step_gives_the_same_mixtures_to_the_bit(maker, loss_stream):
    loss_TK, count_TK = loss_stream(len(NAMES), STEPS)
    first, states = maker(PRIOR), {}
    mixture_TK = [first.mixture]
    for step, (loss_K, count_K) in enumerate(zip(loss_TK, count_TK, strict=True)):
        if step in (0, 1, 4, 5, 6, 8, 33, 59):
            states[step] = json.dumps(first.state_dict(), allow_nan=False)
        mixture_TK.append(first.update(loss_K, count_K))
    for stop, state in states.items():
        second = maker(PRIOR)
        second.load_state_dict(json.loads(state))
        assert second.step == stop
        np.testing.assert_array_equal(second.mixture, mixture_TK[stop])
        np.testing.assert_array_equal(_run(second, loss_TK[stop:], count_TK[stop:]), mixture_TK[stop + 1 :])
        assert second.health() == first.health()
        assert second.state_dict() == first.state_dict()


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize("inside", list(_bare(None)))
def test_every_guard_holds_around_every_policy_and_over_a_resume(guard, inside, loss_stream, make_ado):
    wrap, holds = GUARDS[guard]
    loss_TK, count_TK = loss_stream(len(NAMES), 60)
    policy, resumed = (wrap(_bare(make_ado)[inside](PRIOR)) for _ in range(2))
    mixture_TK = np.vstack([policy.mixture, _run(policy, loss_TK[:45], count_TK[:45])])
    resumed.load_state_dict(json.loads(json.dumps(policy.state_dict(), allow_nan=False)))
    np.testing.assert_array_equal(resumed.mixture, mixture_TK[-1])
    later_TK = _run(policy, loss_TK[45:], count_TK[45:])
    np.testing.assert_array_equal(_run(resumed, loss_TK[45:], count_TK[45:]), later_TK)
    mixture_TK = np.vstack([mixture_TK, later_TK])
    assert holds(mixture_TK)
    assert (mixture_TK >= policy.floor).all()
    np.testing.assert_allclose(mixture_TK.sum(axis=1), 1.0, atol=1e-13)
    alone = _bare(make_ado)[inside](PRIOR)
    _run(alone, loss_TK, count_TK)
    np.testing.assert_array_equal(
        policy.policy.mixture, alone.mixture
    )  # the wrapped policy is updated as without a guard


@pytest.mark.parametrize("maker", CASES, indirect=True)
def test_the_same_updates_give_the_same_mixtures(maker, loss_stream):
    loss_TK, count_TK = loss_stream(len(NAMES), 60)
    np.testing.assert_array_equal(_run(maker(PRIOR), loss_TK, count_TK), _run(maker(PRIOR), loss_TK, count_TK))


@pytest.mark.parametrize("maker", CASES, indirect=True)
def test_permuting_the_domains_permutes_the_mixture(maker, loss_stream):
    loss_TK, count_TK = loss_stream(len(NAMES), 60)
    order = [3, 0, 4, 2, 1]
    permuted = maker({NAMES[index]: PRIOR[NAMES[index]] for index in order})
    straight_TK = _run(maker(PRIOR), loss_TK, count_TK)
    permuted_TK = _run(permuted, loss_TK[:, order], count_TK[:, order])
    # sums over domains run in another order: a few 1e-16, which ODM's exponents of some tens enlarge
    np.testing.assert_allclose(permuted_TK, straight_TK[:, order], rtol=1e-10)


@pytest.mark.parametrize("maker", CASES, indirect=True)
def test_returned_arrays_are_copies(maker, loss_stream):
    loss_TK, count_TK = loss_stream(len(NAMES), 40)
    spoiled, untouched = maker(PRIOR), maker(PRIOR)
    for loss_K, count_K in zip(loss_TK, count_TK, strict=True):
        spoiled.update(loss_K, count_K)[:] = 7.0
        spoiled.mixture[:] = 7.0
        np.testing.assert_array_equal(spoiled.mixture, untouched.update(loss_K, count_K))


@pytest.mark.parametrize("maker", CASES, indirect=True)
def test_domains_may_come_in_another_order_at_a_resume(maker, loss_stream):
    loss_TK, count_TK = loss_stream(len(NAMES), 40)
    before = maker(PRIOR)
    _run(before, loss_TK, count_TK)
    state = before.state_dict()
    policy = maker({name: PRIOR[name] for name in reversed(NAMES)})
    with pytest.raises(ado.ResumeError, match="domains"):
        policy.load_state_dict(state)
    policy.load_state_dict(state, names=NAMES[::-1])
    # exact but for the guards, which bound what they carried over once more: sums in another order
    np.testing.assert_allclose(policy.mixture, before.mixture[::-1], rtol=1e-14)
    np.testing.assert_allclose(_run(policy, loss_TK[:, ::-1], count_TK[:, ::-1]).sum(axis=1), 1.0, atol=1e-13)


@pytest.mark.parametrize("num_domains", [1, 1000])
@pytest.mark.parametrize("name", ["natural", "uniform", "ado", "odm", "odm-code"])
def test_one_domain_and_a_thousand(name, num_domains, loss_stream, make_ado):
    loss_TK, count_TK = loss_stream(num_domains, 30)
    prior = np.ones(num_domains)
    policy = make_ado(prior) if name == "ado" else ado.make_policy(name, prior)
    mixture_TK = _run(policy, loss_TK, count_TK)
    assert np.isfinite(mixture_TK).all()
    np.testing.assert_allclose(mixture_TK.sum(axis=1), 1.0, atol=1e-13)
