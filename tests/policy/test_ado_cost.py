"""A step of the policy costs the same late as early; what it costs is measured by benchmarks/bench_policy.py."""

import statistics
import time

import numpy as np
import pytest

import ado_stream as ado

K, BLOCK, BLOCKS = 22, 100, 15
LATE_STEP = 12_000


def _driver():
    """A policy with laws given, and a function that advances it by so many updates and returns processor seconds."""
    generator = np.random.default_rng(0)
    prior_K = generator.dirichlet(np.full(K, 0.5)) + 1e-3
    count_TK = generator.multinomial(256, prior_K / prior_K.sum(), size=500)
    loss_TK = np.where(count_TK > 0, generator.normal(3.0, 0.1, (500, K)), np.nan)
    law = ado.ScalingLawFit(np.full(K, 2.0), np.full(K, 0.6), generator.uniform(0.1, 0.6, K))
    policy = ado.AdoPolicy(prior_K, ado.AdoConfig(start_step=0, interval=1000, ignore_steps=0), lambda *_: law)

    def advance(steps):
        start = time.process_time()
        for step in range(steps):
            policy.update(loss_TK[step % 500], count_TK[step % 500])
        return time.process_time() - start

    return advance


@pytest.mark.deadline
def test_an_update_costs_the_same_late_as_early_and_as_little_as_2_000_additions():
    """Blocks in turn, medians of processor time: the reference, whose history is copied at every step, grows by 100."""
    late = _driver()
    late(LATE_STEP)
    early_us, late_us, addition_us = [], [], []
    total_K, number_K = np.zeros(K), np.ones(K)
    for _ in range(BLOCKS):
        early = _driver()
        early(50)
        early_us.append(early(BLOCK) / BLOCK * 1e6)
        late_us.append(late(BLOCK) / BLOCK * 1e6)
        start = time.process_time()
        for _ in range(1000):
            np.add(total_K, number_K, out=total_K)
        addition_us.append((time.process_time() - start) / 1000 * 1e6)
    early_cost, late_cost = statistics.median(early_us), statistics.median(late_us)
    assert late_cost < 2.0 * early_cost
    assert max(early_cost, late_cost) < 2000 * statistics.median(addition_us)  # of K numbers, by NumPy
