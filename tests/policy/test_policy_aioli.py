"""Aioli against the paper's algorithm, written out with losses before and after every probe and a linear solve."""

import json

import numpy as np
import pytest

import ado_stream as ado
from ado_stream.policy.aioli import probe_effects

PRIOR = {"code": 60.0, "math": 30.0, "web": 10.0}  # in the order of the probes
STEPS, ROUND, PROBE = 130, 30, 4
H = 0.625


def _linear_world(num_domains, seed):
    """(K, K) nats that a probe of j alone takes from i; some of it negative."""
    return np.random.default_rng(seed).uniform(-0.05, 0.2, (num_domains, num_domains))


def _focused(j, num=3):
    return [H if k == j else (1 - H) / (num - 1) for k in range(num)]


def _published(effect_KK, start, lag, decay, eta=0.2):
    """Algorithm 1 with known losses: the mixture drawn at every step."""
    num = len(effect_KK)
    p, mean, loss = [1 / num] * num, None, np.full(num, 50.0)
    drawn, changes = [], {}
    for step in range(STEPS + lag + 1):
        number, place = divmod(step - start, ROUND)
        if step >= start and place < num * PROBE:
            j = (number + place // PROBE) % num
            if place == 0:
                design, drops = [], []
            if place % PROBE == 0:
                before = loss.copy()
            share = _focused(j, num)
        else:
            share = p
        loss = loss - effect_KK @ np.array(share) / PROBE
        if step >= start and place < num * PROBE and place % PROBE == PROBE - 1:
            design.append(share)
            drops.append(before - loss)
            if len(design) == num:
                a_KK = np.array([np.linalg.solve(design, [drop[i] for drop in drops]) for i in range(num)])
                a_KK = a_KK - min(a_KK.min(), 0.0)
                a_KK = a_KK / a_KK.sum()
                if decay is None:
                    mean = a_KK if mean is None else mean + a_KK
                else:
                    mean = a_KK if mean is None else (1 - decay) * a_KK + decay * mean
                weight = [np.exp(eta * sum(mean[i, k] for i in range(num))) for k in range(num)]
                changes[step + 1 + lag + 1] = [value / sum(weight) for value in weight]
        p = changes.get(step + 1, p)
        drawn.append(share)
    return np.array(drawn)


@pytest.mark.parametrize(("lag", "decay"), [(0, 0.1), (5, 0.1), (0, None), (5, None)])
def test_without_noise_the_mixtures_are_those_of_the_published_algorithm(lag, decay):
    effect_KK = _linear_world(3, seed=1)
    policy = ado.make_policy(
        "aioli", PRIOR, decay=decay, round_steps=ROUND, probe_steps=PROBE, start_step=10, mixture_lag=lag
    )
    drawn, loss_K = [policy.mixture] * (lag + 1), np.full(3, 50.0)
    for step in range(STEPS):
        drawn.append(policy.update(loss_K, 64.0 * drawn[step]))
        loss_K = loss_K - effect_KK @ drawn[step] / PROBE
    expected = _published(effect_KK, 10, lag, decay)
    # losses of 50 carry 7e-15; they are divided by focus minus the rest (0.44) and by a sum of A of at least 0.5
    np.testing.assert_allclose(drawn, expected[: len(drawn)], rtol=1e-11)
    assert policy.health()["rounds"] == 4
    assert np.abs(np.array(drawn)[-1] - 1 / 3).max() > 1e-3  # what was learnt moves the mixture


def test_effects_are_the_least_squares_solution_over_what_was_drawn():
    """Against the normal equations, with absent domains and uneven batches."""
    generator = np.random.default_rng(3)
    count_NK = generator.multinomial(12, [0.7, 0.2, 0.1], size=40).astype(float)
    loss_NK = np.where(count_NK > 0, generator.uniform(2, 3, (40, 3)), np.nan)
    found_KK = probe_effects(loss_NK, count_NK, 5)
    for i in range(3):
        left, right, dose = np.zeros((4, 4)), np.zeros(4), np.zeros(3)
        for loss_K, count_K in zip(loss_NK, count_NK, strict=True):
            if count_K[i]:
                row = np.array([1.0, *(-dose)])
                left += count_K[i] * np.outer(row, row)
                right += count_K[i] * row * loss_K[i]
            dose = dose + count_K / count_K.sum() / 5
        np.testing.assert_allclose(found_KK[i], np.linalg.solve(left, right)[1:], rtol=1e-7)  # cond(left) about 1e6


def test_a_domain_that_was_never_seen_in_the_probes_has_no_effect_on_itself():
    count_NK = np.column_stack([np.full(9, 4.0), np.zeros(9)])
    loss_NK = np.column_stack([np.linspace(3, 2, 9), np.full(9, np.nan)])
    np.testing.assert_array_equal(probe_effects(loss_NK, count_NK, 3)[1], [0.0, 0.0])


def test_probes_go_round_and_the_fit_of_a_round_holds_until_the_next(loss_stream):
    loss_TK, count_TK = loss_stream(3, 100)
    policy = ado.make_policy("aioli", PRIOR, round_steps=20, probe_steps=2, start_step=8)
    said = np.array([policy.mixture, *(policy.update(*row) for row in zip(loss_TK, count_TK, strict=True))])
    probed = said.argmax(axis=1)
    np.testing.assert_array_equal(probed[8:14], [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(probed[28:34], [1, 1, 2, 2, 0, 0])
    np.testing.assert_allclose(said[8:14].max(axis=1), H, rtol=1e-15)
    np.testing.assert_array_equal(said[15:28], np.tile(said[15], (13, 1)))
    assert np.abs(said[15] - said[14]).max() > 0.0  # step 14's losses are the last that the fit needs


def test_a_round_whose_domains_changed_is_left_out(loss_stream):
    loss_TK, count_TK = loss_stream(3, 60)
    options = {"round_steps": 20, "probe_steps": 2, "start_step": 0}
    first = ado.make_policy("aioli", PRIOR, **options)
    for row in zip(loss_TK[:23], count_TK[:23], strict=True):
        first.update(*row)
    fresh = ado.make_policy("aioli", {"math": 1.0, "new": 2.0, "web": 1.0}, **options)
    fresh.load_state_dict(json.loads(json.dumps(first.state_dict())), names=["math", "new", "web"])
    for row in zip(loss_TK[23:30], count_TK[23:30], strict=True):
        fresh.update(*row)
    assert fresh.health()["rounds"] == 1
    for row in zip(loss_TK[30:50], count_TK[30:50], strict=True):
        fresh.update(*row)
    assert fresh.health()["rounds"] == 2


def test_a_long_run_has_probes_that_fit_in_memory():
    """A third of a round of this run would be 8 million losses a domain."""
    policy = ado.make_policy("aioli", PRIOR, total_steps=10**9)
    assert policy._phase == len(PRIOR) * 4096
    with pytest.raises(ado.ConfigError, match="probe_steps is 4097; expected a whole number, 4096 at most"):
        ado.make_policy("aioli", PRIOR, probe_steps=4097)


def test_rounds_that_hold_no_probes_are_refused():
    with pytest.raises(ado.ConfigError, match=r"probes of 3 domains for 4 steps each, with mixture_lag 2, need .* 16"):
        ado.make_policy("aioli", PRIOR, round_steps=15, probe_steps=4, mixture_lag=2)
    with pytest.raises(ado.ConfigError, match="focus is 0.2"):
        ado.make_policy("aioli", PRIOR, focus=0.2)
    assert ado.make_policy("aioli", PRIOR, total_steps=40, mixture_lag=2).mixture.tolist() == [1 / 3] * 3
