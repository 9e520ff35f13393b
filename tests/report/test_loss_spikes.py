"""Steps whose loss stood out: against a plain loop, with planted spikes, none in a smooth run."""

import json
import math
import statistics

import numpy as np
import pytest

from ado_stream.record import RunRecord
from ado_stream.report.loss_spikes import deviations, find_spikes
from ado_stream.report.run_data import load_runs

NAMES = ["web", "code"]


def write_run(folder, loss_SK, samples_SK, total_S=None):
    with RunRecord(folder) as record:
        record.write("run", version=1, domains=NAMES, prior=[0.5, 0.5], policy="natural", steps=len(loss_SK))
        for step, (loss_K, samples_K) in enumerate(zip(loss_SK, samples_SK, strict=True)):
            mean = float(np.nansum(loss_K * samples_K) / samples_K.sum())
            record.write(
                "step", step=step, loss=mean if total_S is None else total_S[step], domain_loss=loss_K,
                samples=samples_K, mixture=[0.5, 0.5],
            )  # fmt: skip
    (run,) = load_runs([folder])
    return run


def smooth(num_steps: int) -> np.ndarray:
    """(S, 2) losses that fall by a power law, with noise of one in a hundred."""
    fall_S = 2 + 8 * np.arange(1, num_steps + 1) ** -0.4
    return fall_S[:, None] * (1 + 0.01 * np.random.default_rng(0).standard_normal((num_steps, 2)))


@pytest.mark.slow
def test_planted_spikes_alone_are_found(tmp_path):
    loss_SK, samples_SK = smooth(3000), np.full((3000, 2), 4)
    loss_SK[700, 1] *= 1.5
    loss_SK[1500] *= 1.4
    loss_SK[1501] *= 1.4
    found = [(spike.step, spike.domain) for spike in find_spikes(write_run(tmp_path, loss_SK, samples_SK))]
    assert found[:2] == [(700, None), (700, "code")]
    assert {step for step, _ in found} == {700, 1500, 1501}
    assert {domain for step, domain in found if step == 1500} == {None, "web", "code"}


def test_a_loss_that_is_not_finite_stands_out_and_an_absent_domain_does_not(tmp_path):
    loss_SK, samples_SK = smooth(100), np.full((100, 2), 4)
    loss_SK[::3, 1], samples_SK[::3, 1] = np.nan, 0  # absent
    total_S = np.nansum(loss_SK * samples_SK, axis=1) / samples_SK.sum(axis=1)
    loss_SK[50, 0] = total_S[50] = math.inf  # null in the record
    run = write_run(tmp_path, loss_SK, samples_SK, total_S)
    assert [(spike.step, spike.domain, spike.deviations) for spike in find_spikes(run)] == [
        (50, None, math.inf),
        (50, "web", math.inf),
    ]


@pytest.mark.parametrize("window", [3, 16, 40])
def test_deviations_are_those_of_a_plain_loop(window, monkeypatch):
    from ado_stream.report import loss_spikes

    monkeypatch.setattr(loss_spikes, "_LOSSES_AT_ONCE", 7)
    loss_M = smooth(120)[:, 0]
    loss_M[[5, 60, 61]] = math.nan
    loss_M[80:90] = 3.0  # no spread at all, in a short window
    median_M, deviations_M = deviations(loss_M, window)
    before: list[float] = []
    for m, loss in enumerate(loss_M.tolist()):
        if math.isnan(loss):
            assert deviations_M[m] == math.inf
            continue
        if len(before) < min(16, window):
            assert math.isnan(deviations_M[m])
        else:
            middle = statistics.median(before)
            spread = 1.4826 * statistics.median(abs(each - middle) for each in before)
            assert median_M[m] == pytest.approx(middle, rel=1e-14)
            assert deviations_M[m] == pytest.approx((loss - middle) / max(spread, 1e-3 * middle), rel=1e-9, abs=1e-9)
        before = [*before, loss][-window:]


def test_a_lasting_rise_is_listed_until_half_the_window_lies_behind_it(tmp_path):
    loss_SK, samples_SK = np.full((300, 2), 2.0), np.full((300, 2), 4)
    loss_SK[100:] = 3.0
    steps = {spike.step for spike in find_spikes(write_run(tmp_path, loss_SK, samples_SK), window=40)}
    assert steps == set(range(100, 120))


def test_a_record_without_steps_has_none(tmp_path):
    assert find_spikes(write_run(tmp_path, np.empty((0, 2)), np.empty((0, 2)))) == []


def test_the_verb_prints_json(tmp_path, capsys):
    from ado_stream.cli.main import main

    loss_SK, samples_SK = smooth(60), np.full((60, 2), 4)
    loss_SK[40, 0] = 30.0
    write_run(tmp_path, loss_SK, samples_SK)
    assert main(["trace", str(tmp_path), "--spikes", "--json"]) == 0
    total, web = map(json.loads, capsys.readouterr().out.splitlines())
    assert (total["step"], total["domain"], web["step"], web["domain"], web["loss"]) == (40, None, 40, "web", 30.0)
