"""AdoPolicy against docs/math.md section 4 written out domain by domain, and the credit experiments."""

import math

import numpy as np
import pytest

import ado_stream as ado

K = 4
PRIOR = np.array([0.4, 0.3, 0.296, 0.004])
LAW = ado.ScalingLawFit([2.0, 1.5, 2.5, 1.0], [0.6, 0.7, 0.9, 0.8], [0.4, 0.03, 0.3, 0.5])


def _floor_by_bisection(share, floor):
    """p_k = max(d, s p_k), the s found by bisection: not by the algorithm of mixture_bounds.py."""
    low, high = 0.0, 1.0 / max(share)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(max(floor, middle * p) for p in share) < 1.0 else (low, middle)
    return [max(floor, high * p) for p in share]


def _written_out(loss_TK, count_TK, start, interval, floor, residual, shared):
    """The mixtures of docs/math.md section 4 with plain loops; the law is LAW from the first refit on."""
    h, pibar, lbar, samples, mixtures = list(PRIOR), list(PRIOR), [None] * K, 0.0, []
    own = [0.0] * K
    fitted = False
    for t, (losses, counts) in enumerate(zip(loss_TK, count_TK, strict=True)):
        total = float(sum(counts))
        samples += total
        own = [own[k] + counts[k] for k in range(K)]
        h = [0.9 * h[k] + 0.1 * counts[k] / total for k in range(K)]
        for k in range(K):
            if counts[k]:
                lbar[k] = losses[k] if lbar[k] is None else 0.9 * lbar[k] + 0.1 * losses[k]
        fitted = fitted or (t >= start and t % interval == 0)
        if not fitted:
            mixtures.append(_floor_by_bisection(PRIOR, floor))
            continue
        rho = []
        for k in range(K):
            beta, eps, alpha = math.exp(LAW.log_beta[k]), math.exp(LAW.log_eps[k]), LAW.alpha[k]
            n = samples if shared else max(own[k], 1.0)
            predicted = eps + beta * n**-alpha
            credit = h[k] ** 0.5
            if residual and lbar[k] is not None:
                factor = 1.0 + (lbar[k] - predicted) / max(predicted - eps, 1e-3)
                credit *= min(max(factor, 0.5), 2.0)
            rho.append(max(alpha, 0.05) * (predicted - eps) / n * PRIOR[k] * credit)
        rho = [value / sum(rho) for value in rho]
        mixtures.append(_floor_by_bisection([0.1 * rho[k] + 0.9 * pibar[k] for k in range(K)], floor))
        pibar = [rho[k] / (t + 1) + (1 - 1 / (t + 1)) * pibar[k] for k in range(K)]
    return np.array(mixtures)


@pytest.mark.parametrize("credit", ["history", "residual"])
@pytest.mark.parametrize("floor", [0.0, 0.01, 0.2])
@pytest.mark.parametrize("shared", [True, False], ids=["shared count", "own counts"])
def test_the_default_preset_follows_the_formulas(shared, floor, credit, loss_stream, make_ado):
    loss_TK, count_TK = loss_stream(K, 300)
    settings = {"start_step": 13, "interval": 10, "floor": floor, "credit": credit, "shared_count": shared}
    policy = make_ado(PRIOR, lambda *_: LAW, **settings)
    mixture_TK = [policy.update(loss_K, count_K) for loss_K, count_K in zip(loss_TK, count_TK, strict=True)]
    expected_TK = _written_out(loss_TK, count_TK, 13, 10, floor, credit == "residual", shared)
    # float64 rounding in another order of operations; bisection ends within 1e-15 of s
    np.testing.assert_allclose(mixture_TK, expected_TK, rtol=1e-11)


def test_the_floor_holds_exactly_from_the_first_step(loss_stream, make_ado):
    loss_TK, count_TK = loss_stream(K, 200)
    policy = make_ado(PRIOR, floor=0.01)
    assert policy.mixture.min() == 0.01
    for loss_K, count_K in zip(loss_TK, count_TK, strict=True):
        assert policy.update(loss_K, count_K).min() >= 0.01


def test_zero_residuals_change_nothing(make_ado):
    """Losses equal to the law's: both credits give the same mixture."""
    batch = np.array([20, 20, 20, 4])
    mixtures = {}
    for credit in ("history", "residual"):
        policy = make_ado(PRIOR, lambda *_: LAW, start_step=0, interval=1000, credit=credit, credit_memory=0.0)
        for step in range(50):
            mixtures[credit] = policy.update(LAW.predict(64.0 * (step + 1)), batch)
    # the average of one observation is that observation; log and exp round to 1e-16
    np.testing.assert_allclose(mixtures["residual"], mixtures["history"], rtol=1e-12)


@pytest.mark.parametrize(("shift", "factor"), [(0.05, 1.2), (-0.05, 0.8), (9.0, 2.0), (-9.0, 0.5)])
def test_residual_credit_is_the_forecast_error_in_units_of_the_gap(shift, factor, make_ado):
    """(L - eps) = 0.25 for every domain; one is observed `shift` above its law, so credit is 1 + shift / 0.25."""
    law = ado.ScalingLawFit(np.full(K, math.log(0.25 * 64.0**0.3)), np.zeros(K), np.full(K, 0.3))
    prior = np.full(K, 0.25)
    policy = make_ado(prior, lambda *_: law, start_step=0, credit="residual", floor=0.0, mixture_memory=1.0)
    loss_K = law.predict(64.0) + np.array([shift, 0.0, 0.0, 0.0])
    mixture_K = policy.update(np.maximum(loss_K, 1e-6), np.full(K, 16))
    np.testing.assert_allclose(mixture_K[0] / mixture_K[1], factor, rtol=1e-9)


def _residual_mixture(make_ado, gap_K, loss_K, count_K):
    """The preference of one step under residual credit alone (s = 0), laws with these gaps at the step's n = 64."""
    law = ado.ScalingLawFit(np.log(gap_K) + 0.3 * math.log(64.0), np.zeros(K), np.full(K, 0.3))
    settings = {"start_step": 0, "credit": "residual", "credit_power": 0.0, "floor": 0.0, "mixture_memory": 1.0}
    return make_ado(np.full(K, 0.25), lambda *_: law, **settings).update(loss_K, count_K)


def test_a_domain_never_observed_has_no_residual(make_ado):
    gap_K = np.array([0.4, 0.3, 0.2, 0.1])
    loss_K = np.where([True, True, True, False], 1.0 + gap_K, np.nan)
    mixture_K = _residual_mixture(make_ado, gap_K, loss_K, np.array([32, 16, 16, 0]))
    np.testing.assert_allclose(mixture_K, gap_K, rtol=1e-9)


def test_a_gap_under_a_thousandth_of_a_nat_counts_as_one(make_ado):
    """Else noise around a law at its eps would give full credit: 5e-4 nats over a gap of 1e-5."""
    gap_K = np.full(K, 1e-5)
    mixture_K = _residual_mixture(make_ado, gap_K, 1.0 + gap_K + [5e-4, 0, 0, 0], np.full(K, 16))
    np.testing.assert_allclose(mixture_K[0] / mixture_K[1], 1.5, rtol=1e-9)


def test_equal_domains_but_for_alpha_are_preferred_in_its_ratio(make_ado):
    """At the n where gaps are equal, speeds are as alpha, and alphas under 0.05 count as 0.05."""
    alpha_K = np.array([0.4, 0.2, 0.1, 0.001])
    law = ado.ScalingLawFit(alpha_K * math.log(64.0), np.zeros(K), alpha_K)
    policy = make_ado(np.full(K, 0.25), lambda *_: law, start_step=0, floor=0.0, mixture_memory=1.0)
    mixture_K = policy.update(np.full(K, 2.0), np.full(K, 16))
    np.testing.assert_allclose(mixture_K / mixture_K[2], [4.0, 2.0, 1.0, 0.5], rtol=1e-12)


@pytest.mark.parametrize("power", [0.5, 1.0, 0.0])
def test_credit_is_a_power_of_the_recent_share_of_samples(power, make_ado):
    """One domain drawn three times as often: in the long run its credit is 3^s that of the others."""
    law = ado.ScalingLawFit(np.full(K, 1.0), np.zeros(K), np.full(K, 0.3))
    settings = {"start_step": 0, "floor": 0.0, "mixture_memory": 1.0, "credit_power": power}
    policy = make_ado(np.full(K, 0.25), lambda *_: law, **settings)
    for _ in range(400):
        mixture_K = policy.update(np.full(K, 2.0), np.array([48, 16, 16, 16]))
    np.testing.assert_allclose(mixture_K[0] / mixture_K[1], 3.0**power, rtol=1e-12)


def test_the_mixture_moves_by_at_most_g2_a_step_and_then_with_its_average(make_ado):
    """A law that prefers one domain only: pi is g2 rho + (1 - g2) pibar, pibar the average of rho over all steps."""
    law = ado.ScalingLawFit([5.0, -20.0, -20.0, -20.0], np.zeros(K), np.full(K, 0.3))
    policy = make_ado(np.full(K, 0.25), lambda *_: law, start_step=99, interval=99, floor=0.0)
    for _ in range(100):
        mixture_K = policy.update(np.full(K, 2.0), np.full(K, 16))
    np.testing.assert_allclose(mixture_K[0], 0.1 + 0.9 * 0.25, rtol=1e-9)
    for _ in range(100):
        mixture_K = policy.update(np.full(K, 2.0), np.full(K, 16))
    np.testing.assert_allclose(mixture_K[0], 0.1 + 0.9 * (1 - 0.75 * 99 / 199), rtol=1e-9)


def test_hold_keeps_the_mixture_for_a_period(loss_stream, make_ado):
    loss_TK, count_TK = loss_stream(K, 100)
    held, free = make_ado(PRIOR, hold_steps=20), make_ado(PRIOR)
    for step, (loss_K, count_K) in enumerate(zip(loss_TK, count_TK, strict=True)):
        before_K = held.mixture
        held_K, free_K = held.update(loss_K, count_K), free.update(loss_K, count_K)
        np.testing.assert_array_equal(held_K, free_K if step % 20 == 0 else before_K)


def test_refits_come_at_multiples_of_the_interval_from_the_start_step_on(loss_stream, make_ado, quick_fit):
    loss_TK, count_TK = loss_stream(K, 60)
    refits = []

    def fitter(counts, losses, config):
        refits.append((policy.step, losses.shape[1], config.ignore_steps))
        return quick_fit(counts, losses, config)

    policy = make_ado(PRIOR, fitter, start_step=11, interval=10, ignore_steps=3)
    for loss_K, count_K in zip(loss_TK, count_TK, strict=True):
        policy.update(loss_K, count_K)
    assert refits == [(20, 21, 3), (30, 31, 3), (40, 41, 3), (50, 51, 3)]
    assert policy.fit_step == 50


def test_own_counts_give_each_domain_its_own_n(loss_stream, make_ado, quick_fit):
    loss_TK, count_TK = loss_stream(K, 40)
    count_TK[:, 3] = 0
    seen = []

    def fitter(counts, losses, config):
        seen.append(counts.copy())
        return quick_fit(counts, losses, config)

    policy = make_ado(PRIOR, fitter, shared_count=False)
    for loss_K, count_K in zip(loss_TK, count_TK, strict=True):
        mixture_K = policy.update(loss_K, count_K)
    expected_KT = np.maximum(np.cumsum(count_TK, axis=0), 1).T[:, : seen[-1].shape[1]]
    np.testing.assert_array_equal(seen[-1], expected_KT)
    assert np.isfinite(mixture_K).all()


def _preference(make_ado, prior, gap_K):
    """rho after a step under laws with these gaps (NaN: no law) and exponents of 0.3, credit left out."""
    num = len(prior)
    law = ado.ScalingLawFit(np.log(gap_K) + 0.3 * math.log(16.0 * num), np.zeros(num), np.full(num, 0.3))
    settings = {"start_step": 0, "credit_power": 0.0, "floor": 0.0, "mixture_memory": 1.0}
    return make_ado(prior, lambda *_: law, **settings).update(np.full(num, 2.0), np.full(num, 16))


def test_a_domain_without_a_law_has_the_prior_weighted_mean_speed(make_ado):
    """Gaps 0.5 and 0.1 with priors 0.2 and 0.6: 0.2 for the third, where the plain mean would be 0.3."""
    mixture_K = _preference(make_ado, [0.2, 0.6, 0.2], [0.5, 0.1, np.nan])
    np.testing.assert_allclose(mixture_K, np.array([0.1, 0.06, 0.04]) / 0.2, rtol=1e-12)


def test_laws_of_domains_with_zero_prior_still_have_a_mean_speed(make_ado):
    np.testing.assert_allclose(_preference(make_ado, [0.0, 1.0], [0.5, np.nan]), [0.0, 1.0], rtol=1e-12)


@pytest.mark.parametrize("log_beta", [-800.0, 800.0], ids=["all speeds 0", "speeds beyond float64"])
def test_speeds_that_overflow_or_are_all_zero_give_the_prior(log_beta, make_ado):
    law = ado.ScalingLawFit(np.full(K, log_beta), np.zeros(K), np.full(K, 0.3))
    policy = make_ado(PRIOR, lambda *_: law, start_step=0, floor=0.0, mixture_memory=1.0)
    with np.errstate(over="ignore"):
        mixture_K = policy.update(np.full(K, 2.0), np.full(K, 16))
    np.testing.assert_array_equal(mixture_K, policy.prior_K)


def test_the_floor_holds_at_once_after_the_domains_changed(make_ado):
    """The new domain's prior is below the floor, before any update."""
    before, after = make_ado({"a": 1, "b": 1}, floor=0.1), make_ado({"a": 50, "b": 49, "c": 1}, floor=0.1)
    before.update([2.0, 2.0], [32, 32])
    after.load_state_dict(before.state_dict(), names=["a", "b", "c"])
    np.testing.assert_allclose(after.mixture, [0.45, 0.45, 0.1], rtol=1e-12)


def _settled_exponent(make_ado, steps, **settings):
    """The exponent of shares against alpha gap after so many steps under laws that do not change."""
    log_beta_K = np.array([2.0, 2.1, 2.25, 2.3])
    law = ado.ScalingLawFit(log_beta_K, np.full(4, 0.6), np.full(4, 0.3))
    settings = {"start_step": 0, "interval": 10**6, "floor": 0.0, "min_points": 1, **settings}
    policy = make_ado(np.ones(4), lambda *_: law, **settings)
    own_K, generator = np.zeros(4), np.random.default_rng(0)
    for _ in range(steps):
        count_K = generator.multinomial(4096, policy.mixture)
        own_K += count_K
        policy.update(np.full(4, 3.0), count_K)
    n_K = own_K if settings.get("shared_count") is False else own_K.sum()
    return np.polyfit(log_beta_K - 0.3 * np.log(n_K), np.log(policy.mixture), 1)[0]


@pytest.mark.parametrize(
    ("settings", "q"),
    [
        ({}, 2.0),
        ({"credit_power": 0.0}, 1.0),
        ({"shared_count": False}, 2.0 / 3.0),
        ({"shared_count": False, "credit_power": 0.0}, 0.5),
        ({"credit_power": 0.25}, 4.0 / 3.0),
    ],
)
def test_the_loop_settles_at_the_fixed_point_that_the_config_states(settings, q, make_ado):
    assert ado.AdoConfig(**settings).fixed_point == pytest.approx(q, rel=1e-12)
    assert f"q = {q:.3g} " in ado.AdoConfig(**settings).settles
    # mixture_memory 1: the running mean, which takes ten times the steps for each digit, is left out. Draws of 4,096
    # samples leave 1 % of noise in a share
    assert _settled_exponent(make_ado, 400, mixture_memory=1.0, **settings) == pytest.approx(q, abs=0.07)


@pytest.mark.parametrize("g2", [0.1, 0.5])
def test_mixture_memory_changes_how_soon_the_fixed_point_is_reached_not_where(g2, make_ado):
    """The distance to q = 2 falls as t^-c with c = (1 - s) / (1 - g2 s): between 50 and 800 steps by 16^-c."""
    rate = 0.5 / (1.0 - 0.5 * g2)
    assert f"steps^-{rate:.2g} " in ado.AdoConfig(mixture_memory=g2).settles + " "
    early, late = (2.0 - _settled_exponent(make_ado, steps, mixture_memory=g2) for steps in (50, 800))
    assert late / early == pytest.approx(16.0**-rate, rel=0.25)


def test_a_credit_power_of_one_has_no_fixed_point():
    assert ado.AdoConfig(credit_power=1.0).fixed_point is None
    assert "one domain" in ado.AdoConfig(credit_power=1.0).settles
    assert ado.make_policy("gap", [1.0, 1.0], total_steps=5000).health()["settles"] is None
