"""The public interface of the fit: ScalingLawFit, FitConfig, fit_scaling_laws, prepare_history."""

import re

import numpy as np
import pytest
import torch

import ado_stream as ado
from ado_stream.policy.scaling_laws import bounds_in_words, prepare_history


def history(steps=800, seed=0):
    generator = np.random.default_rng(seed)
    counts = 256.0 * np.arange(1, steps + 1)
    eps_K, beta_K, alpha_K = np.array([[2.0, 2.6], [30.0, 200.0], [0.35, 0.55]])[:, :, None]
    noise = np.exp(0.003 * generator.standard_normal((2, steps)))
    return counts, (eps_K + beta_K * counts**-alpha_K) * noise, (eps_K, beta_K, alpha_K)


def test_fit_predicts_what_comes_next():
    """Losses of the next 800 steps lie within 0.5 % of the law fitted on the first 800: a fifth of the noise's spread
    of a single point would be 0.06 %, extrapolation to twice the data costs the rest."""
    counts, losses, (eps_K, beta_K, alpha_K) = history()
    fit = ado.fit_scaling_laws(counts, losses, ado.FitConfig(ignore_steps=50))
    later = np.array([counts[-1] * 1.5, counts[-1] * 2.0])
    assert np.allclose(fit.predict(later), eps_K + beta_K * later**-alpha_K, rtol=5e-3)
    assert fit.valid.all()
    assert not fit.at_bound.any()


def test_a_fit_in_another_unit_is_the_same_fit_scaled():
    """Losses over 1.7 with a start_loss over 1.7: F, alpha and bounds stay, log_eps and log_beta lose log 1.7."""
    counts, losses, _ = history()
    losses[1] -= 1.3  # its floor is then below the bound
    unit = 1.7
    plain = ado.fit_scaling_laws(counts, losses, ado.FitConfig(ignore_steps=50))
    config = ado.FitConfig(ignore_steps=50, start_loss=np.log(50_000) / unit)
    scaled = ado.fit_scaling_laws(counts, losses / unit, config)
    assert plain.at_bound[1, 1]
    np.testing.assert_array_equal(scaled.at_bound, plain.at_bound)
    # dividing and multiplying rounds each loss by 1e-16; the search ends where gains are below 1e-9 of F
    for name, shift in (("log_beta", np.log(unit)), ("log_eps", np.log(unit)), ("alpha", 0.0), ("objective", 0.0)):
        np.testing.assert_allclose(getattr(scaled, name) + shift, getattr(plain, name), rtol=1e-4)
    np.testing.assert_allclose(scaled.predict(1e5) * unit, plain.predict(1e5), rtol=1e-5)


@pytest.mark.parametrize("start_loss", [0.0, -1.0, np.nan, "8"])
def test_a_start_loss_that_is_none_is_refused(start_loss):
    with pytest.raises(ado.ConfigError, match="start_loss"):
        ado.FitConfig(start_loss=start_loss)


def test_bounds_in_words_name_the_domains_once_a_bound():
    law = ado.ScalingLawFit([7.0, 2.0, 2.0, 2.0], [0.6, 0.5, 0.4, 0.6], [0.3, 0.8, 0.3, 0.0])
    found = bounds_in_words(law, ["a", "b", "c", "d"])
    assert {bound: re.findall("'(.)'", text) for bound, text in found.items()} == {
        "eps": ["b", "c"], "alpha low": ["d"], "alpha high": ["b"], "beta": ["a"],
    }  # fmt: skip
    assert all("log_" not in text for text in found.values())


def test_predict_and_slope_are_their_formulas():
    fit = ado.ScalingLawFit([1.0, 2.0], [0.5, 0.8], [0.3, 0.5])
    n = np.array([1e3, 1e6, 1e9])
    eps_K, beta_K, alpha_K = np.exp([[0.5], [0.8]]), np.exp([[1.0], [2.0]]), np.array([[0.3], [0.5]])
    assert np.allclose(fit.predict(n), eps_K + beta_K * n**-alpha_K, rtol=1e-12)
    assert np.allclose(fit.slope(n), alpha_K * (fit.predict(n) - eps_K) / n, rtol=1e-9)  # the difference cancels
    step = 1e-4 * n  # central difference: truncation 1e-8 relative, rounding 1e-16 / 1e-4 / (share of the slope)
    assert np.allclose(fit.slope(n), (fit.predict(n - step) - fit.predict(n + step)) / (2 * step), rtol=1e-5)
    assert fit.predict(1e6).shape == (2,)
    assert np.array_equal(fit.predict(np.full((2, 3), n)), fit.predict(n))
    assert np.isnan(fit.objective).all()
    assert fit.valid.all()


def test_slope_at_a_huge_count_is_neither_zero_nor_nan():
    fit = ado.ScalingLawFit([-60.0], [1.0], [0.8])
    assert fit.slope(1e12)[0] > 0.0


def test_prepared_history_gives_the_same_fit():
    counts, losses, _ = history()
    config = ado.FitConfig(ignore_steps=30, every=7)
    raw = ado.fit_scaling_laws(counts, losses, config)
    prepared = prepare_history(losses, config)
    assert prepared.shape == (2, len(counts[config.kept]))
    again = ado.fit_scaling_laws(counts[config.kept], prepared, config.prepared())
    assert np.array_equal(again.objective, raw.objective)
    assert np.array_equal(again.alpha, raw.alpha)


def test_a_domain_that_cannot_be_fitted_is_not_valid():
    counts, losses, _ = history(steps=200)
    losses[1] = np.nan
    fit = ado.fit_scaling_laws(counts, losses)
    assert fit.valid.tolist() == [True, False]
    assert np.isnan(fit.predict(1e6)[1])
    assert not fit.at_bound[1].any()


@pytest.mark.parametrize("shape", ["flat", "rising", "one spike", "constant"])
def test_extreme_losses_are_no_error(shape):
    counts = 256.0 * np.arange(1, 401)
    loss = {
        "flat": 3.0 + 0.01 * np.random.default_rng(0).standard_normal(400),
        "rising": 2.0 + np.arange(400) / 400,
        "one spike": np.where(np.arange(400) == 200, 1e6, 3.0),
        "constant": np.full(400, 3.0),
    }[shape]
    fit = ado.fit_scaling_laws(counts, loss[None])
    assert fit.valid.all()
    assert np.isfinite(fit.predict(counts)).all()
    assert (fit.slope(counts) >= 0.0).all() or shape == "rising"


def test_errors_are_typed():
    counts, losses, _ = history(steps=60)
    with pytest.raises(ado.ConfigError, match="smooth_window must be 0"):
        ado.FitConfig(smooth_window=4)
    with pytest.raises(ado.ConfigError, match="alpha must all have shape"):
        ado.ScalingLawFit([1.0], [1.0, 2.0], [0.3])
    with pytest.raises(ado.ConfigError, match="valid must have shape"):
        ado.ScalingLawFit([1.0], [1.0], [0.3], valid=[True, False])
    with pytest.raises(ado.PolicyError, match="counts must have shape"):
        ado.fit_scaling_laws(counts[1:], losses)
    with pytest.raises(ado.ConfigError, match="one of auto, numba, triton"):
        ado.fit_scaling_laws(counts, losses, backend="cuda")
    with pytest.raises(ado.PolicyError, match="above 0"):
        ado.ScalingLawFit([1.0], [1.0], [0.3]).predict(0.0)
    with pytest.raises(ado.PolicyError, match="counts must be a number"):
        ado.ScalingLawFit([1.0], [1.0], [0.3]).predict(np.ones((2, 2)))
    with pytest.raises(ado.PolicyError, match="must have shape"):
        prepare_history(losses[0])


def test_triton_without_a_gpu_is_a_config_error(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    counts, losses, _ = history(steps=60)
    with pytest.raises(ado.ConfigError, match="TRITON_INTERPRET=1"):
        ado.fit_scaling_laws(counts, losses, backend="triton")
