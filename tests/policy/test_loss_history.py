"""The history of losses: filled, bounded, thinned by two, exact when saved."""

import json

import numpy as np
import pytest

import ado_stream as ado
from ado_stream.policy.loss_history import MAX_LOSSES, MAX_ROWS, MIN_ROWS, LossHistory, max_history_rows
from ado_stream.simulate.closed_loop import read_spec, simulate
from ado_stream.simulate.default_spec import default_spec

K = 3


def _record(history, steps, start=0):
    """Losses that name their step and domain: loss = step + 1 + k / 10, n = 10 (step + 1)."""
    for step in range(start, start + steps):
        loss_K = step + 1.0 + np.arange(K) / 10
        history.record(10.0 * (step + 1), loss_K, np.ones(K), np.ones(K, dtype=bool))


@pytest.mark.parametrize("steps", [5, 16, 17, 31, 32, 33, 64, 100, 1000])
def test_past_its_capacity_rows_stay_equally_spaced_and_bounded(steps):
    history = LossHistory(K, capacity=16)
    _record(history, steps)
    counts, loss_KM = history.points()
    stride = history.stride
    assert history.rows == len(counts) == loss_KM.shape[1] <= 16
    assert stride == max(1, 2 ** int(np.ceil(np.log2(steps / 16))))
    np.testing.assert_array_equal(counts, 10.0 * (1 + stride * np.arange(len(counts))))
    np.testing.assert_array_equal(loss_KM[2], counts / 10 + 0.2)
    assert steps - (counts[-1] / 10) < stride  # the newest row is the newest there can be


def test_a_missing_loss_repeats_the_last_one_also_where_no_row_was_kept():
    history = LossHistory(1, capacity=2)
    for step, loss in enumerate([1.0, 2.0, 3.0, np.nan, np.nan]):
        history.record(step + 1.0, np.array([loss]), np.ones(1), np.array([np.isfinite(loss)]))
    assert history.stride == 4  # rows of steps 0 and 4; the loss of step 2 was in no kept row, yet fills step 4
    np.testing.assert_array_equal(history.points()[1], [[1.0, 3.0]])


@pytest.mark.parametrize("stop", [0, 3, 16, 17, 40])
def test_a_saved_history_continues_identically(stop):
    one, two, whole = (LossHistory(K, capacity=16) for _ in range(3))
    _record(one, stop)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())), np.arange(K), K)
    _record(two, 50, start=stop)
    _record(whole, stop + 50)
    for found, expected in zip(two.points(), whole.points(), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("num_domains", [1, 22, 64, 65, 100, 1000, 3000, 4096, 50_000])
def test_the_capacity_is_bounded_by_the_number_of_losses(num_domains):
    rows = max_history_rows(num_domains)
    assert rows % 2 == 0
    assert (rows == MAX_ROWS) == (num_domains <= 64)
    assert rows * num_domains <= MAX_LOSSES or rows == MIN_ROWS
    assert rows == MAX_ROWS or (rows + 2) * num_domains > MAX_LOSSES  # no fewer than could be


def test_the_state_of_a_thousand_domains_stays_small_however_long_the_run():
    history = LossHistory(1000)
    loss_K, ones_K, seen_K = np.full(1000, 2.5), np.ones(1000), np.ones(1000, dtype=bool)
    for step in range(2 * MAX_ROWS):
        history.record(step + 1.0, loss_K, ones_K, seen_K)
    state = history.state_dict()
    assert len(json.dumps(state)) < 4 / 3 * 8 * MAX_LOSSES + 100_000  # base64 of 32 MiB; counts and the last losses


@pytest.mark.parametrize("stop", [5, 15, 16, 31, 32, 40])
def test_a_history_loaded_into_a_smaller_capacity_is_thinned_to_it(stop):
    """Domains added at a resume may lower the capacity: 16 rows become 4, equally spaced and in step."""
    large, small, whole = LossHistory(K, capacity=16), LossHistory(K, capacity=4), LossHistory(K, capacity=4)
    _record(large, stop)
    small.load_state_dict(large.state_dict(), np.arange(K), K)
    _record(small, 50, start=stop)
    _record(whole, stop + 50)
    assert small.stride == whole.stride
    for found, expected in zip(small.points(), whole.points(), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_thinning_early_moves_the_mixture_about_as_much_as_another_seed(monkeypatch):
    """The rows left to a thousand domains: no more than twice as far as the two seeds lie apart, in half the sum of
    |difference of shares| at the end of a closed loop."""
    mixtures = []
    for seed, rows in ((17, MAX_ROWS), (18, MAX_ROWS), (17, max_history_rows(1000))):
        monkeypatch.setattr("ado_stream.policy.loss_history.max_history_rows", lambda num_domains, rows=rows: rows)
        spec = read_spec({**default_spec(16_000), "seed": seed, "policies": {"ado": {}}})
        policy = spec.make("ado")
        mixtures.append(simulate(spec, policy).mixture_SK[-1])
        assert policy._history.stride == (1 if rows == MAX_ROWS else 4)
    whole, other_seed, thinned = mixtures
    assert 0 < np.abs(thinned - whole).sum() <= 2 * np.abs(other_seed - whole).sum()


def test_a_history_of_own_counts_does_not_load_into_one_of_shared_counts():
    own = LossHistory(K, own_counts=True, capacity=16)
    own.record(np.ones(K), np.ones(K), np.ones(K), np.ones(K, dtype=bool))
    with pytest.raises(ado.ResumeError, match="shared_count"):
        LossHistory(K, capacity=16).load_state_dict(own.state_dict(), np.arange(K), K)


def test_thinning_halves_the_rows_that_the_fit_leaves_out(make_ado, monkeypatch):
    """ignore_steps are steps: with every second step stored, half as many rows."""
    monkeypatch.setattr("ado_stream.policy.loss_history.max_history_rows", lambda num_domains: 16)
    seen = []

    def fitter(counts, losses, config):
        seen.append((losses.shape[1], config.ignore_steps))
        return ado.ScalingLawFit(np.zeros(2), np.zeros(2), np.full(2, 0.3))

    policy = make_ado([1.0, 1.0], fitter, start_step=8, interval=8, ignore_steps=5)
    for _ in range(41):
        policy.update([2.0, 2.0], [1, 1])
    assert seen == [(9, 5), (9, 3), (13, 3), (9, 2), (11, 2)]
