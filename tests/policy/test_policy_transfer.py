"""EpiSelect with transfer: its scores in plain loops, its fit against scipy and against a known truth."""

import numpy as np
import pytest
from scipy.optimize import minimize

import ado_stream as ado
from ado_stream.policy import state_codec
from ado_stream.policy.episelect import EpiSelect, EpiSelectConfig
from ado_stream.policy.scaling_laws import FitConfig, fit_scaling_laws
from ado_stream.policy.transfer import first_transfer, fit_with_transfer, improve_transfer, transfer_among

TRUE_KK = np.array([[0.7, 0.3, 0.0], [0.05, 0.9, 0.05], [0.4, 0.1, 0.5]])
LAWS = ado.ScalingLawFit(
    log_beta=np.log([6.0, 4.0, 9.0]), log_eps=np.log([1.8, 2.2, 1.9]), alpha=np.array([0.3, 0.2, 0.35])
)


def _run(points=300, seed=0):
    """(counts, losses) of a run whose mixture goes from one domain to the next, so that their effects differ."""
    turns_MK = np.random.default_rng(seed).dirichlet(np.full(3, 0.4), size=points // 10)
    count_KM = (64.0 * np.repeat(turns_MK, 10, axis=0)).cumsum(axis=0).T + 1.0
    return count_KM, LAWS.predict(TRUE_KK @ count_KM)


def _objective(gamma_K, domain, count_KM, loss_M, delta):
    """The Huber loss of one domain's log residuals, in plain loops."""
    total = 0.0
    for count_K, loss in zip(count_KM.T, loss_M, strict=True):
        effective = sum(weight * count for weight, count in zip(gamma_K, count_K, strict=True))
        law = np.exp(LAWS.log_eps[domain]) + np.exp(LAWS.log_beta[domain]) * effective ** -LAWS.alpha[domain]
        residual = abs(np.log(loss) - np.log(law))
        total += residual**2 / 2 if residual <= delta else delta * (residual - delta / 2)
    return total


def test_for_given_laws_gamma_comes_as_low_as_scipys_minimum():
    """Losses with noise of 1 %. From the same start; ours goes on from where it was, as from refit to refit."""
    count_KM, loss_KM = _run(120)
    loss_KM = loss_KM * np.exp(0.01 * np.random.default_rng(5).standard_normal(loss_KM.shape))
    found_KK = first_transfer(3)
    for _ in range(6):
        found_KK = improve_transfer(found_KK, LAWS, count_KM, loss_KM, delta=0.05)
    np.testing.assert_allclose(found_KK.sum(axis=1), 1.0, rtol=1e-14)
    assert (found_KK >= 0.0).all()
    for domain in range(3):
        args = (domain, count_KM, loss_KM[domain], 0.05)
        start = _objective(first_transfer(3)[domain], *args)
        best = minimize(
            _objective, first_transfer(3)[domain], args, "SLSQP", bounds=[(0.0, 1.0)] * 3,
            constraints={"type": "eq", "fun": lambda gamma_K: gamma_K.sum() - 1.0}, options={"ftol": 1e-14},
        )  # fmt: skip
        ours = _objective(found_KK[domain], *args)
        assert ours <= best.fun + 0.02 * (start - best.fun)


def test_a_true_transfer_is_found_from_losses_without_noise():
    """Laws and gamma both fitted; a start at 0.9 for the domain itself is off by up to 0.4."""
    count_KM, loss_KM = _run(600)
    config = FitConfig(smooth_window=0, every=1, ignore_steps=5)
    found_KK = first_transfer(3)
    for _ in range(10):  # refits
        laws, found_KK = fit_with_transfer(count_KM, loss_KM, found_KK, fit_scaling_laws, config)
    assert np.abs(found_KK - TRUE_KK).max() < 0.06  # laws and gamma in turn come nearer by a fifth each time
    assert np.abs(laws.predict(found_KK @ count_KM) / loss_KM - 1.0)[:, 5:].max() < 2e-3


def test_effects_that_never_differed_leave_gamma_where_it_was():
    """Under one mixture all along effective samples are in proportion to own ones: every gamma fits alike."""
    count_KM = np.array([[0.5], [0.3], [0.2]]) * 64.0 * np.arange(1, 200)
    loss_KM = LAWS.predict(count_KM)
    laws = fit_scaling_laws(first_transfer(3) @ count_KM, loss_KM, FitConfig(smooth_window=0, every=1))
    found_KK = improve_transfer(first_transfer(3), laws, count_KM, loss_KM, 1e-3)
    assert np.abs(found_KK - first_transfer(3)).max() < 0.02


def test_a_law_that_is_not_valid_keeps_its_row():
    count_KM, loss_KM = _run(60)
    laws = ado.ScalingLawFit(LAWS.log_beta, LAWS.log_eps, np.array([np.nan, 0.2, 0.35]))
    found_KK = improve_transfer(first_transfer(3), laws, count_KM, loss_KM, 1e-3)
    np.testing.assert_array_equal(found_KK[0], first_transfer(3)[0])
    assert np.abs(found_KK[1:] - first_transfer(3)[1:]).max() > 0.01


def _full_policy(**more):
    settings = {"start_step": 0, "interval": 10, "ignore_steps": 0, "min_points": 1, **more}
    config = EpiSelectConfig(transfer="full", temperature=0.5, **settings)
    return EpiSelect([1.0, 2.0, 1.0], config, lambda *_: LAWS)


def test_shares_are_the_softmax_of_the_scores_in_plain_loops():
    policy = _full_policy(mixture_memory=1.0)
    generator = np.random.default_rng(2)
    count_TK = generator.multinomial(64, [0.5, 0.3, 0.2], size=25).astype(float)
    for count_K in count_TK:
        mixture_K = policy.update(generator.uniform(2, 3, 3), count_K)
    gamma_KK = state_codec.unpack(policy.state_dict()["gamma"], "gamma", 0.0, (3, 3))
    n = count_TK.sum(axis=0)
    scores = []
    for k in range(3):
        score = 0.0
        for m in range(3):
            effective = sum(gamma_KK[m, i] * n[i] for i in range(3))
            gap = np.exp(LAWS.log_beta[m]) * effective ** -LAWS.alpha[m]
            score += n[m] * LAWS.alpha[m] * gamma_KK[m, k] / effective * gap
        scores.append(np.exp(score / 0.5))
    np.testing.assert_allclose(mixture_K, np.array(scores) / sum(scores), rtol=1e-12)
    np.testing.assert_allclose(policy.law_counts(n), gamma_KK @ n, rtol=1e-15)
    assert policy.health()["own_weight"].keys() == {"0", "1", "2"}


def test_gamma_of_other_domains_keeps_what_it_had_and_sums_to_one():
    moved_KK = transfer_among(TRUE_KK, np.array([2, -1, 0]))
    np.testing.assert_allclose(moved_KK.sum(axis=1), 1.0, rtol=1e-15)
    assert moved_KK[0, 0] / moved_KK[0, 2] == pytest.approx(0.5 / 0.4)
    assert moved_KK[1].tolist() == pytest.approx([0.05, 0.9, 0.05])


def test_a_state_saved_without_transfer_is_refused():
    plain = ado.make_policy("episelect", [1.0, 1.0])
    with pytest.raises(ado.ResumeError, match="saved without transfer"):
        ado.make_policy("episelect", [1.0, 1.0], transfer="full").load_state_dict(plain.state_dict())
