"""Bad losses, failed fits and damaged states: the policy stays valid or refuses them."""

import copy
import json
import logging

import numpy as np
import pytest

import ado_stream as ado
from ado_stream.policy.state_codec import seal

NAMES = ["web", "code", "books", "wiki", "math", "mail"]
PRIOR = dict(zip(NAMES, [40.0, 25.0, 15.0, 10.0, 9.0, 1.0], strict=True))
K = len(NAMES)
FLOOR = 0.02


def _run(policy, loss_TK, count_TK):
    return np.array([policy.update(loss_K, count_K) for loss_K, count_K in zip(loss_TK, count_TK, strict=True)])


def _stream(loss_stream, steps=200):
    loss_TK, _ = loss_stream(K, steps)
    count_TK = np.tile([20, 16, 10, 8, 6, 4], (steps, 1))
    return np.where(np.isnan(loss_TK), 2.0, loss_TK), count_TK


# A1: losses that are not numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0, -1.0])
@pytest.mark.parametrize("credit", ["history", "residual"])
def test_one_bad_loss_is_as_if_the_domain_had_been_absent(bad, credit, loss_stream, make_ado):
    """The history fills it with the previous value; credit memory still counts the samples drawn."""
    loss_TK, count_TK = _stream(loss_stream)
    loss_TK[50, 2] = bad
    policy, absent = (make_ado(PRIOR, credit=credit, floor=FLOOR) for _ in range(2))
    mixture_TK = _run(policy, loss_TK, count_TK)
    assert (mixture_TK >= FLOOR).all()
    loss_TK[50, 2] = np.nan
    np.testing.assert_array_equal(mixture_TK, _run(absent, loss_TK, count_TK))
    _, history_KM = policy._history.points()
    assert np.isfinite(history_KM).all()
    assert history_KM[2, 50] == history_KM[2, 49]
    assert policy.health()["ignored_losses"] == {**dict.fromkeys(NAMES, 0), "books": 1}


def test_fifty_bad_losses_of_a_domain_do_not_stop_the_others_adapting(loss_stream, make_ado):
    loss_TK, count_TK = _stream(loss_stream)
    loss_TK[60:110, 4] = np.nan
    seen = []

    def fitter(counts, losses, config):
        seen.append(losses.copy())
        return ado.ScalingLawFit(np.log(losses[:, -1]), np.zeros(K), np.full(K, 0.3))

    policy = make_ado(PRIOR, fitter, floor=FLOOR)
    mixture_TK = _run(policy, loss_TK, count_TK)
    assert np.isfinite(mixture_TK).all()
    assert (mixture_TK >= FLOOR).all()
    assert (np.abs(np.diff(mixture_TK[60:110], axis=0)).max(axis=1) > 0).all()
    assert all(np.isfinite(losses).all() for losses in seen)
    assert policy.health()["ignored_losses"]["math"] == 50


def test_no_loss_at_all_at_first_stores_nothing_and_then_recovers(make_ado):
    policy = make_ado(PRIOR, floor=FLOOR)
    for _ in range(12):
        assert np.isfinite(policy.update(np.full(K, np.nan), np.full(K, 4))).all()
    loss_K = np.array([2.0, np.nan, 4.0, 2.0, 2.0, 2.0])
    policy.update(loss_K, [1, 0, 3, 1, 1, 1])
    _, history_KM = policy._history.points()
    # a domain absent from the first row takes the batch's mean: (4 x 2 + 3 x 4) / 7
    np.testing.assert_allclose(history_KM[:, 0], [2.0, 20 / 7, 4.0, 2.0, 2.0, 2.0], rtol=1e-15)


# A2: fits that fail ----------------------------------------------------------------------------------------------


def _laws(alpha_K, valid_K=None):
    return ado.ScalingLawFit(np.full(K, 2.0), np.full(K, 0.5), alpha_K, valid=valid_K)


@pytest.mark.parametrize(
    "failure", [ValueError("singular"), RuntimeError("device lost"), FloatingPointError("overflow")]
)
def test_a_fit_that_raises_keeps_all_laws(failure, loss_stream, make_ado, caplog):
    loss_TK, count_TK = _stream(loss_stream, 40)
    outcomes = iter([_laws(np.linspace(0.1, 0.6, K)), failure, failure, failure, failure])

    def fitter(*_):
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    policy = make_ado(PRIOR, fitter, floor=FLOOR)
    once = make_ado(PRIOR, lambda *_: _laws(np.linspace(0.1, 0.6, K)), interval=7, floor=FLOOR)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(_run(policy, loss_TK, count_TK), _run(once, loss_TK, count_TK))
    assert str(failure) in caplog.text
    health = policy.health()
    assert (health["refits"], health["failed_refits"]) == (1, 4)
    assert set(health["held_laws"].values()) == {4}
    assert policy.fit_step == 7


@pytest.mark.parametrize("how", ["not valid", "nan", "inf"])
def test_a_domain_with_a_bad_fit_keeps_its_last_law_and_only_it(how, loss_stream, make_ado, caplog):
    loss_TK, count_TK = _stream(loss_stream, 20)
    first_K, second_K = np.linspace(0.1, 0.6, K), np.linspace(0.3, 0.5, K)
    bad_K, valid_K = second_K.copy(), np.ones(K, dtype=bool)
    if how == "not valid":
        valid_K[3] = False
    else:
        bad_K[3] = float(how)  # and yet called valid
    fits = iter([_laws(first_K), _laws(bad_K, valid_K)])
    policy = make_ado(PRIOR, lambda *_: next(fits), floor=FLOOR)
    with caplog.at_level(logging.WARNING):
        mixture_TK = _run(policy, loss_TK, count_TK)
    np.testing.assert_array_equal(policy.fit.alpha, np.where(np.arange(K) == 3, first_K, second_K))
    np.testing.assert_array_equal(policy.fit.valid, np.arange(K) != 3)
    assert "wiki" in caplog.text
    assert policy.health()["held_laws"] == {**dict.fromkeys(NAMES, 0), "wiki": 1}
    assert np.isfinite(mixture_TK).all()


def test_a_domain_that_never_had_a_law_has_the_mean_speed_of_the_others(loss_stream, make_ado):
    loss_TK, count_TK = _stream(loss_stream, 20)
    valid_K = np.arange(K) != 0
    equal = _laws(np.where(valid_K, 0.3, np.nan))
    policy = make_ado(PRIOR, lambda *_: equal, floor=FLOOR)
    all_known = make_ado(PRIOR, lambda *_: _laws(np.full(K, 0.3)), floor=FLOOR)
    np.testing.assert_allclose(_run(policy, loss_TK, count_TK), _run(all_known, loss_TK, count_TK), rtol=1e-12)


def test_without_any_law_the_mixture_is_the_prior(loss_stream, make_ado):
    loss_TK, count_TK = _stream(loss_stream, 40)
    policy = make_ado(PRIOR, lambda *_: _laws(np.full(K, np.nan)), floor=0.0)
    np.testing.assert_array_equal(_run(policy, loss_TK, count_TK)[-1], policy.prior_K)


@pytest.mark.parametrize("shape", ["flat", "rising"])
def test_flat_and_rising_losses_are_no_error(shape, loss_stream):
    loss_TK, count_TK = _stream(loss_stream, 400)
    loss_TK[:, 1] = 2.0 if shape == "flat" else 2.0 + np.arange(400) / 100
    policy = ado.make_policy("ado", PRIOR, total_steps=400, floor=FLOOR)
    mixture_TK = _run(policy, loss_TK, count_TK)
    assert np.isfinite(mixture_TK).all()
    assert (mixture_TK >= FLOOR).all()
    assert mixture_TK[-1, 1] < PRIOR["code"] / 100  # nothing is learnt there
    # the law that says so is a good one: it replaces the last and is not counted as held
    assert policy.health()["held_laws"] == dict.fromkeys(NAMES, 0)
    assert policy.fit.valid.all()
    assert policy.fit.slope(64.0 * 400)[1] < 1e-9 * policy.fit.slope(64.0 * 400).max()


# A3: absence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared_count", [True, False])
@pytest.mark.parametrize("credit", ["history", "residual"])
def test_a_domain_absent_for_a_thousand_steps(credit, shared_count, loss_stream, make_ado):
    loss_TK, count_TK = _stream(loss_stream, 1100)
    count_TK[:1050, 5] = 0
    loss_TK[:1050, 5] = np.nan
    policy = make_ado(PRIOR, credit=credit, shared_count=shared_count, floor=FLOOR)
    mixture_TK = _run(policy, loss_TK, count_TK)
    assert np.isfinite(mixture_TK).all()
    assert (mixture_TK >= FLOOR).all()
    assert policy.health()["forecast_error"]["web"]["mean_abs"] is not None


# A4 is a matter of the all-reduce; here only: the mixture depends on the values, not on their containers -----------


def test_lists_float32_and_strided_arrays_give_the_same_mixtures(loss_stream, make_ado):
    loss_TK, count_TK = _stream(loss_stream, 30)
    loss_TK = loss_TK.astype(np.float32).astype(np.float64)
    plain = _run(make_ado(PRIOR), loss_TK, count_TK)
    np.testing.assert_array_equal(plain, _run(make_ado(PRIOR), loss_TK.astype(np.float32), count_TK.astype(np.uint16)))
    np.testing.assert_array_equal(plain, _run(make_ado(PRIOR), np.asfortranarray(loss_TK), count_TK.astype(float)))
    np.testing.assert_array_equal(plain, _run(make_ado(PRIOR), loss_TK.tolist(), count_TK.tolist()))


# A5: states ------------------------------------------------------------------------------------------------------


@pytest.fixture
def state(loss_stream, make_ado):
    policy = make_ado(PRIOR)
    _run(policy, *_stream(loss_stream, 60))
    return policy.state_dict()


def _damages():
    def flip_history(state):
        text = state["history"]["losses"]["base64"]
        state["history"]["losses"]["base64"] = ("B" if text[0] == "A" else "A") + text[1:]

    return {
        "a byte of the history": flip_history,
        "a number": lambda state: state.update(samples=state["samples"] + 1),
        "a missing key": lambda state: state.pop("mixture"),
        "a cut array": lambda state: state["memory"]["credit"].update(base64=state["memory"]["credit"]["base64"][:-4]),
        "a key too many": lambda state: state.update(extra=1),
        "no checksum": lambda state: state.pop("crc32"),
        "another version": lambda state: state.update(version=2),
        "another policy": lambda state: state.update(policy="odm"),
    }


@pytest.mark.parametrize("damage", _damages())
def test_a_damaged_state_is_refused_and_changes_nothing(damage, state, loss_stream, make_ado):
    policy, twin = make_ado(PRIOR), make_ado(PRIOR)
    for each in (policy, twin):
        _run(each, *_stream(loss_stream, 25))
    damaged = copy.deepcopy(state)
    _damages()[damage](damaged)
    with pytest.raises(ado.ResumeError):
        policy.load_state_dict(damaged)
    loss_TK, count_TK = _stream(loss_stream, 20)
    np.testing.assert_array_equal(_run(policy, loss_TK, count_TK), _run(twin, loss_TK, count_TK))


def test_a_state_of_samples_below_zero_is_refused(state, make_ado):
    """With the checksum that a forger would write; their logarithm is NaN."""
    forged = {key: value for key, value in state.items() if key not in ("version", "crc32")} | {"samples": -1}
    with pytest.raises(ado.ResumeError, match="policy state: 'samples' is -1.0; expected 0 or more"):
        make_ado(PRIOR).load_state_dict(seal(forged))


@pytest.mark.parametrize("not_a_state", [None, [], {}, "state", {"version": 1}])
def test_an_object_that_is_no_state_is_refused(not_a_state, make_ado):
    with pytest.raises(ado.ResumeError, match="policy state"):
        make_ado(PRIOR).load_state_dict(not_a_state)


def test_a_state_of_another_policy_says_what_to_do(state):
    with pytest.raises(ado.ResumeError, match="saved by policy 'ado', but this run has 'odm'.*\\n.*--resume none"):
        ado.make_policy("odm", PRIOR).load_state_dict(state)


def test_other_domains_are_named(state, make_ado):
    renamed = {("blogs" if name == "mail" else name): share for name, share in PRIOR.items()}
    with pytest.raises(ado.ResumeError, match="new blogs; gone mail"):
        make_ado(renamed).load_state_dict(state)
    with pytest.raises(ado.ResumeError, match="6 domains"):
        make_ado([1.0, 1.0]).load_state_dict(state)


def test_another_policys_state_is_refused(state):
    with pytest.raises(ado.ResumeError, match="'ado'.*'natural'"):
        ado.make_policy("natural", PRIOR).load_state_dict(state)


def test_surviving_domains_keep_their_memory_and_new_ones_start_from_the_prior(state, loss_stream, make_ado):
    names = ["wiki", "blogs", "web", "code"]
    prior = {"wiki": 1.0, "blogs": 1.0, "web": 1.0, "code": 1.0}

    def last_loss(counts, losses, config):
        return ado.ScalingLawFit(np.log(losses[:, -1]), np.zeros(4), np.full(4, 0.3))

    before, policy = make_ado(PRIOR), make_ado(prior, last_loss)
    before.load_state_dict(state)
    policy.load_state_dict(json.loads(json.dumps(state)), names=names)
    old_K = [NAMES.index(name) for name in ("wiki", "web", "code")]
    new_K = [0, 2, 3]
    for memory in ("log_beta", "log_eps", "alpha", "samples", "ignored"):
        np.testing.assert_array_equal(policy.memory[memory][new_K], before.memory[memory][old_K])
    for shares in (policy.memory["credit"], policy.memory["average"], policy.mixture):
        assert shares.sum() == pytest.approx(1.0, abs=1e-12)
    ratio_K = policy.memory["credit"][new_K] / before.memory["credit"][old_K]
    np.testing.assert_allclose(ratio_K, ratio_K[0], rtol=1e-12)
    assert np.isnan(policy.memory["alpha"][1])
    assert (policy.step, policy.fit_step) == (before.step, before.fit_step)
    _, history_KM = policy._history.points()
    np.testing.assert_array_equal(history_KM[new_K], before._history.points()[1][old_K])
    assert np.isnan(history_KM[1]).all()  # missing points, which the fit skips
    loss_TK, _ = loss_stream(4, 300)
    count_TK = np.full((300, 4), 16)
    mixture_TK = _run(policy, np.nan_to_num(loss_TK, nan=2.0), count_TK)
    assert np.isfinite(mixture_TK).all()
    assert np.isfinite(policy.memory["alpha"]).all()


def test_a_new_domain_gets_a_law_from_its_own_points():
    """With the real fit: the rows from before the domain existed are skipped, not filled."""
    settings = {"start_step": 5, "interval": 50, "ignore_steps": 0}
    law = ado.ScalingLawFit(np.full(3, 2.5), np.full(3, 0.7), np.full(3, 0.3))
    before = ado.AdoPolicy({"a": 1, "b": 1}, ado.AdoConfig(**settings))
    for step in range(200):
        before.update(law.predict(64.0 * (step + 1))[:2], [32, 32])
    policy = ado.AdoPolicy({"a": 1, "b": 1, "c": 1}, ado.AdoConfig(**settings))
    policy.load_state_dict(before.state_dict(), names=["a", "b", "c"])
    for step in range(200, 601):
        policy.update(law.predict(64.0 * (step + 1)), [22, 21, 21])
    # noise-free points of one law; those of a and b include the first steps, where smoothing bends the curve
    assert policy.fit.alpha[2] == pytest.approx(0.3, abs=1e-3)
    assert policy.fit.valid.all()


# What a caller can get wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "counts"),
    [
        ([1.0, 2.0], [1, 1]),
        (np.ones(K), np.zeros(K)),
        (np.ones(K), [-1, 5, 1, 1, 1, 1]),
        (np.ones(K), np.full(K, np.nan)),
    ],
)
def test_impossible_batches_are_refused_with_the_step(losses, counts, make_ado):
    policy = make_ado(PRIOR)
    policy.update(np.ones(K), np.ones(K))
    with pytest.raises(ado.PolicyError, match="step 1"):
        policy.update(losses, counts)


def test_the_forecast_error_is_of_the_last_whole_interval(make_ado):
    """Losses 10 % above and, in the next interval, 20 % below the law."""
    law = ado.ScalingLawFit(np.full(K, 2.0), np.full(K, 0.5), np.full(K, 0.3))
    policy = make_ado(PRIOR, lambda *_: law, start_step=0, interval=10)
    for step in range(31):
        off = 1.1 if step <= 20 else 0.8
        policy.update(off * law.predict(64.0 * (step + 1)), np.array([20, 16, 10, 8, 6, 4]))
        if step == 20:
            error = policy.health()["forecast_error"]["web"]
            assert (error["mean"], error["mean_abs"]) == (pytest.approx(0.1), pytest.approx(0.1))
    error = policy.health()["forecast_error"]["web"]
    assert (error["mean"], error["mean_abs"]) == (pytest.approx(-0.2), pytest.approx(0.2))


def test_health_lists_parameters_at_a_bound(make_ado):
    law = ado.ScalingLawFit(np.full(K, 2.0), np.full(K, 0.6), np.array([0.3, 0.9, 0.3, 0.3, 0.3, 0.3]))
    policy = make_ado(PRIOR, lambda *_: law, start_step=0)
    policy.update(np.full(K, 3.0), np.full(K, 8))
    assert policy.health()["at_bound"] == {"code": ["alpha"]}
    notices = [text for text in policy.take_notices() if "ado: " in text]
    assert [text.removeprefix("ado: ") for text in notices] == policy.health()["bounds"]
    assert "'code'" in notices[0]
