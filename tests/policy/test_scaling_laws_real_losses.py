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
    """Than the mean of the last 25 steps taken for what is to come; were either as likely to be nearer, the laws would
    be for 9 or 10 of 10 domains once in 93 such records. (They miss by 3.5 % on average, the last losses by 9.0 %; the
    laws are late to see a rate that decays.)"""
    samples_T, loss_KT = losses
    fit = ado.fit_scaling_laws(
        samples_T[:HALF], loss_KT[:, :HALF], ado.FitConfig(ignore_steps=WARMUP, every=1), "numba"
    )
    later_KT = loss_KT[:, HALF:]
    law_K = np.abs(_miss(later_KT, fit.predict(samples_T[HALF:])))
    last_K = np.abs(_miss(later_KT, np.nanmean(loss_KT[:, HALF - 25 : HALF], axis=1, keepdims=True)))
    assert fit.valid.all()
    assert law_K.mean() < last_K.mean()
    assert law_K.max() < last_K.max()
    assert (law_K < last_K).sum() >= 9


def test_the_policys_own_forecasts_beat_the_last_losses_in_every_interval(losses):
    """As health() reports them, of a run of 500 steps with the default schedule but fewer refits: misses of the means
    of 75 steps, against those of the mean of the 25 steps before."""
    _, loss_KT = losses
    policy = ado.AdoPolicy(np.ones(len(loss_KT)), ado.AdoConfig(interval=75), total_steps=500)
    miss_RK, last_RK, fitted = [], [], None
    for step, loss_K in enumerate(loss_KT.T):
        policy.update(loss_K, np.isfinite(loss_K))
        if policy.fit_step == step:
            miss_RK.append([error["mean"] for error in policy.health()["forecast_error"].values()])
            if fitted is not None:
                last_K = np.nanmean(loss_KT[:, fitted - 24 : fitted + 1], axis=1, keepdims=True)
                last_RK.append(_miss(loss_KT[:, fitted + 1 : step + 1], last_K))
            fitted = step
    assert miss_RK[0] == [None] * 10
    miss_R, last_R = (np.abs(np.array(each, dtype=float)).mean(axis=1) for each in (miss_RK[1:], last_RK))
    assert len(miss_R) == 4
    assert (miss_R < last_R).all()
