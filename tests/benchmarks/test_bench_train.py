"""The benchmark of training steps measures what it says, run small on a CPU with the code that a GPU runs."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ado_model import PRESETS
from benchmarks import bench_train
from benchmarks.bench_train import CASES, Case, Loop
from tests.train.tiny_model import TINY_MODEL

TINY = Case(
    "micro", "cpu", rows=4, num_tokens=32, vocabulary=320, num_domains=3, pairs=4, steps=2, matmul_size=64,
    history_steps=300, bars=(0.5, 0.001),
)  # fmt: skip


@pytest.fixture(autouse=True)
def micro(monkeypatch) -> None:
    monkeypatch.setitem(PRESETS, "micro", TINY_MODEL)


def test_a_case_is_measured_from_end_to_end():
    found = bench_train.measure(TINY)
    assert found["pairs_of_windows"] == 4
    assert found["tokens_per_s"] == pytest.approx(4 * 32 / found["step_s"])
    flops = replace(TINY_MODEL, vocab_size=320, context_length=32).flops_per_token(32)
    assert found["share_of_matmul"] == pytest.approx(flops * found["tokens_per_s"] / found["matmul_flop_per_s"])
    low, high = found["ado_share_of_loop"]["interval_95"]
    assert low <= found["ado_share_of_loop"]["median"] <= high
    assert found["ado_share_of_refits"] > 0
    assert found["ado_share_of_sums"] > 0
    apart = found["ado_share_of_sums"] + found["ado_share_of_refits"]
    assert found["ado_share"] == pytest.approx(found["ado_share_of_loop"]["median"] + apart)
    assert found["ado_share_interval_95"] == pytest.approx([low + apart, high + apart])


def test_a_bar_is_met_by_the_whole_interval():
    assert bench_train.verdict([-0.001, 0.0009], 0.001) == "met"
    assert bench_train.verdict([0.0011, 0.002], 0.001) == "missed"
    assert bench_train.verdict([0.0, 0.002], 0.001).startswith("not resolved")


@pytest.fixture
def loops(tmp_path: Path) -> Iterator[list[Loop]]:
    corpus = bench_train.write_corpus(tmp_path, TINY.num_domains, TINY.num_tokens)
    step, _ = bench_train.make_step(TINY)
    both = [Loop(TINY, corpus, step, with_ado) for with_ado in (True, False)]
    yield both
    for loop in both:
        loop.close()


def test_ado_decides_every_step_of_its_own_loop_and_none_of_the_other(loops: list[Loop]):
    """By laws, past the lag; and without a refit in the windows, whose cost is added apart."""
    ado, natural = loops
    refits = ado.policy.health()["refits"]
    for loop in loops:
        loop.run(20)
    assert ado.policy.step == bench_train.REFIT_INTERVAL + 1 + 20
    assert ado.policy.health()["refits"] == refits == 1
    assert not np.allclose(ado._dataset.mixture_in_force, ado._dataset.prior_K)
    np.testing.assert_array_equal(natural._dataset.mixture_in_force, natural._dataset.prior_K)


def test_windows_end_with_the_time(loops: list[Loop]):
    assert len(bench_train.windows_in_turn(replace(TINY, pairs=100, seconds=0.0), loops)) == 3


def test_the_share_is_the_median_of_pairs_whatever_drifts():
    """The machine gets twice as slow half-way; ADO takes 2 % more in every pair."""
    drift_R = np.where(np.arange(20) < 10, 1.0, 2.0)
    found = bench_train.median_difference(np.stack([1.02 * drift_R, drift_R], axis=1) / drift_R[:, None])
    assert found["median"] == pytest.approx(0.02)
    assert found["interval_95"] == pytest.approx([0.02, 0.02])


def test_results_are_named_by_card_and_day():
    assert bench_train.result_name(None) == "train"
    name, _, day = bench_train.result_name("NVIDIA H200").rpartition("-20")
    assert name == "train-nvidia-h200"
    assert len(day) == len("26-11-25")


def test_the_gpus_cases_are_those_that_the_bars_speak_of():
    assert [(case.preset, case.bars) for case in CASES["cuda"]] == [("124M", (0.5, 0.001)), ("1.3B", (0.55, 0.001))]
