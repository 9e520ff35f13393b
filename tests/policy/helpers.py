"""A stream of losses and counts, a cheap fitter, ADO with a short schedule: fixtures of the policies' tests."""

from collections.abc import Callable

import numpy as np
import pytest

import ado_stream as ado


def _loss_stream(num_domains: int, steps: int, seed: int = 0):
    """(steps, K) losses with NaN where the domain was absent, and (steps, K) counts of a batch of 64."""
    generator = np.random.default_rng(seed)
    share_K = generator.dirichlet(np.ones(num_domains))
    count_TK = generator.multinomial(64, share_K, size=steps)
    floor_K, gap_K = generator.uniform(1.5, 3.0, num_domains), generator.uniform(0.5, 4.0, num_domains)
    loss_TK = floor_K + gap_K * (1.0 + np.arange(steps)[:, None]) ** -0.3
    loss_TK = loss_TK * (1.0 + 0.02 * generator.standard_normal((steps, num_domains)))
    return np.where(count_TK > 0, loss_TK, np.nan), count_TK


def _quick_fit(counts, loss_KT, config):
    """Laws read off two points: cheap, deterministic, each domain on its own."""
    late_K = loss_KT[:, -1]
    early_K = loss_KT[:, : max(1, loss_KT.shape[1] // 2)].mean(axis=1)
    return ado.ScalingLawFit(
        log_beta=np.log(1.0 + np.abs(early_K - late_K)), log_eps=np.log(0.8 * late_K), alpha=0.05 + 0.1 * early_K
    )


@pytest.fixture
def loss_stream() -> Callable:
    return _loss_stream


@pytest.fixture
def quick_fit() -> Callable:
    return _quick_fit


@pytest.fixture
def make_ado() -> Callable:
    """make_ado(prior, fitter=..., **AdoConfig fields): start 5, interval 7, nothing ignored."""

    def make(prior, fitter=_quick_fit, **settings):
        settings = {"start_step": 5, "interval": 7, "ignore_steps": 0, **settings}
        return ado.AdoPolicy(prior, ado.AdoConfig(**settings), fitter)

    return make
