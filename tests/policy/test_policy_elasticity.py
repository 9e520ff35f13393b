"""Elasticities against laws that are known, and what must hold for any history."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from ado_stream.policy.elasticity import ALPHA_A, fit_elasticities


def history(alpha_K, eps_K, beta_K, num_blocks=40, noise=0.02, seed=0):
    """Blocks of known laws over the last three quarters of a run: log(n / n0), losses, weights."""
    generator = np.random.default_rng(seed)
    log_ratio_KM = np.tile(np.log(np.linspace(0.25, 1.0, num_blocks)), (len(alpha_K), 1))
    loss_KM = eps_K[:, None] + beta_K[:, None] * np.exp(-alpha_K[:, None] * log_ratio_KM)
    loss_KM += noise * generator.standard_normal(loss_KM.shape)
    return log_ratio_KM, loss_KM, np.full(loss_KM.shape, noise**-2.0)


def test_the_elasticity_of_a_known_law_lies_within_its_deviation():
    """500 laws: the errors, in deviations, are those of a standard normal up to the grid's spacing and the prior."""
    generator = np.random.default_rng(1)
    alpha_K, eps_K, beta_K = generator.uniform((0.1, 1.0, 0.3), (1.0, 3.0, 2.0), (500, 3)).T
    found = fit_elasticities(*history(alpha_K, eps_K, beta_K, noise=0.05))
    error_K = (found.mean_K - alpha_K * beta_K) / found.sd_K
    assert np.mean(np.abs(error_K) < 2.0) > 0.85
    assert abs(np.median(error_K)) < 0.5


def test_without_noise_the_law_itself_comes_back():
    alpha_K = ALPHA_A[[5, 12, 20]]
    eps_K, beta_K = np.array([1.0, 2.0, 0.5]), np.array([0.5, 1.0, 2.0])
    log_ratio_KM, loss_KM, _ = history(alpha_K, eps_K, beta_K, noise=1e-9)
    found = fit_elasticities(log_ratio_KM, loss_KM, np.full(loss_KM.shape, 1e8))
    np.testing.assert_allclose(found.mean_K, alpha_K * beta_K, rtol=1e-3)
    np.testing.assert_allclose(found.eps_K, eps_K, rtol=1e-3)


@pytest.mark.parametrize(
    "loss_M",
    [np.full(9, 2.0), np.linspace(2.0, 3.0, 9), np.linspace(3.0, 0.5, 9), 2.0 + np.geomspace(1.0, 1e-4, 9)],
    ids=["flat", "rising", "through zero", "saturated"],
)
def test_the_closed_form_is_the_constrained_minimum(loss_M):
    """scipy minimises the same misfit over eps, beta >= 0 for the likeliest alpha."""
    log_ratio_M = np.log(np.arange(1, 10) / 9.0)
    found = fit_elasticities(log_ratio_M[None], loss_M[None], np.full((1, 9), 100.0))
    x_M = np.exp(-found.alpha_K[0] * log_ratio_M)

    def misfit(theta):
        return 100.0 * np.sum((loss_M - theta[0] - theta[1] * x_M) ** 2)

    own = misfit([found.eps_K[0], found.beta_K[0]])
    best = minimize(misfit, [1.0, 0.1], bounds=[(0, None), (0, None)], options={"ftol": 1e-15, "gtol": 1e-12})
    assert own <= best.fun + 1e-9 * (1.0 + best.fun)
    assert found.eps_K[0] >= 0.0
    assert found.beta_K[0] >= 0.0


def test_what_does_not_fall_has_no_elasticity():
    log_ratio_M = np.log(np.arange(1, 21) / 20.0)
    loss_KM = np.stack([np.full(20, 3.0), np.linspace(3.0, 3.5, 20)])
    found = fit_elasticities(np.tile(log_ratio_M, (2, 1)), loss_KM, np.full((2, 20), 2500.0))
    np.testing.assert_array_equal(found.mean_K, 0.0)
    assert (found.sd_K < 0.1).all()


def test_no_block_at_all_says_that_nothing_is_known():
    found = fit_elasticities(np.zeros((2, 5)), np.zeros((2, 5)), np.zeros((2, 5)))
    np.testing.assert_array_equal(found.mean_K, 0.0)
    np.testing.assert_array_equal(found.sd_K, np.inf)


@settings(max_examples=200)
@given(st.integers(1, 30), st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 1.0, 1e6]))
def test_every_history_gives_finite_numbers(num_blocks, seed, scale):
    generator = np.random.default_rng(seed)
    log_ratio_KM = -np.sort(-generator.uniform(-8.0, 0.0, (3, num_blocks)), axis=1)
    loss_KM = scale * generator.uniform(0.1, 10.0, (3, num_blocks))
    weight_KM = np.where(generator.random((3, num_blocks)) < 0.3, 0.0, generator.uniform(0.1, 1e4, (3, num_blocks)))
    found = fit_elasticities(log_ratio_KM, loss_KM, weight_KM)
    known_K = (weight_KM > 0).any(axis=1)
    for value_K in (found.mean_K, found.sd_K, found.alpha_K, found.beta_K, found.eps_K):
        assert np.isfinite(value_K[known_K]).all()
        assert (value_K >= 0.0).all()
    apart = fit_elasticities(log_ratio_KM[1:2], loss_KM[1:2], weight_KM[1:2])
    np.testing.assert_allclose(apart.mean_K, found.mean_K[1:2], rtol=1e-9, atol=1e-12)
