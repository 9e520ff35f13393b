"""Losses of real training: laws fitted to the first half against the losses of the second.

real_losses.csv: every step's mean loss (nats per token) of ten kinds of text that a Python installation carries, from
500 steps of the nano model at 16 x 128 tokens, natural mixture, seed 17, as the demo trains it. Missing: not drawn.
"""

from pathlib import Path

import numpy as np
import pytest

import ado_stream as ado
from ado_stream.cli.fit import read_losses

BATCH, WARMUP, HALF = 16, 50, 250
RECORD = Path(__file__).parent / "real_losses.csv"


@pytest.fixture(scope="module")
def losses():
    """Samples (T,) and losses (K, T)."""
    _, samples_T, loss_KT = read_losses(RECORD, BATCH)
    assert loss_KT.shape == (10, 500)
    return samples_T, loss_KT


def _miss(observed_KT, forecast_KT):
    """(K,) mean observed over mean forecast loss, less one, where there was a loss."""
    forecast_KT = np.where(np.isnan(observed_KT), np.nan, forecast_KT)
    return np.nanmean(observed_KT, axis=1) / np.nanmean(forecast_KT, axis=1) - 1


def test_laws_of_the_first_half_forecast_the_second_better_than_the_last_losses_do(losses):
    """Measured: means missed by 3.5 % on average and 7.5 % at worst (the laws are late to see a rate that decays), by
    9.0 % and 14 % when the mean of the last 25 steps is taken for what is to come; better for 10 of 10 domains."""
    samples_T, loss_KT = losses
    fit = ado.fit_scaling_laws(
        samples_T[:HALF], loss_KT[:, :HALF], ado.FitConfig(ignore_steps=WARMUP, every=1), "numba"
    )
    later_KT = loss_KT[:, HALF:]
    law_K = np.abs(_miss(later_KT, fit.predict(samples_T[HALF:])))
    last_K = np.abs(_miss(later_KT, np.nanmean(loss_KT[:, HALF - 25 : HALF], axis=1, keepdims=True)))
    assert fit.valid.all()
    assert law_K.mean() < 0.04
    assert law_K.max() < 0.09
    assert law_K.mean() < 0.5 * last_K.mean()
    assert (law_K < last_K).sum() >= 9


def test_the_policys_own_forecasts_of_real_losses_are_as_good(losses):
    """Interval by interval, as health() reports it, of a run of 500 steps with the default schedule but fewer refits.

    Measured: means of 75 steps missed by 7 % after the first refit, which knew 100 steps, and by 3 % after the others.
    """
    _, loss_KT = losses
    policy = ado.AdoPolicy(np.ones(len(loss_KT)), ado.AdoConfig(interval=75), total_steps=500)
    miss_RK = []
    for step, loss_K in enumerate(loss_KT.T):
        policy.update(loss_K, np.isfinite(loss_K))
        if policy.fit_step == step:
            miss_RK.append([error["mean"] for error in policy.health()["forecast_error"].values()])
    assert miss_RK[0] == [None] * 10
    assert np.abs(np.array(miss_RK[2:], dtype=float)).mean() < 0.04
