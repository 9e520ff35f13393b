"""The verdict counts domains, gives both overall measures, and lists what makes a comparison unfair."""

from dataclasses import replace

import numpy as np
import pytest

from ado_stream.report.run_data import Evaluation, load_runs
from ado_stream.report.verdict import caveats, compare

NAMES = ["a", "b", "c", "d"]
TOKENS = np.array([700.0, 100, 100, 100])


def runs_with(simulate, tmp_path, ado_loss, natural_loss):
    """Two runs of otherwise equal settings whose final validation losses are given."""
    runs = []
    for label, losses in (("ado", ado_loss), ("natural", natural_loss)):
        (run,) = load_runs([simulate(tmp_path / label, NAMES, policy=label, steps=10)])
        losses = np.array(losses, dtype=float)
        sizes = {name: {"tokens": tokens} for name, tokens in zip(NAMES, TOKENS, strict=True)}
        metadata = {**run.metadata, "corpus": {**run.metadata["corpus"], "domains": sizes}}
        evaluation = Evaluation(10, "val", float(np.nanmean(losses)), losses, np.full(4, 50.0))
        runs.append(replace(run, metadata=metadata, evaluations=(evaluation,)))
    return runs


def test_lower_level_higher_are_counted(simulate, tmp_path):
    (found,) = compare(runs_with(simulate, tmp_path, [3.0, 3.004, 3.0, 2.9], [3.1, 3.0, 2.9, 3.0]))
    assert (found.lower, found.level, found.higher) == (2, 1, 1)
    assert found.sentence().startswith("ado ends lower than natural on 2 of 4 domains (1 level, 1 higher).")


def test_both_overall_measures_are_given(simulate, tmp_path):
    (found,) = compare(runs_with(simulate, tmp_path, [2.9, 3.2, 3.2, 3.2], [3.0, 3.1, 3.1, 3.1]))
    assert found.overall["by corpus size"] == pytest.approx((2.99, 3.03))
    assert found.overall["mean of domains"] == pytest.approx((3.125, 3.075))
    assert found.headline() == "A mixed result: ado against natural"
    assert "by corpus size 2.990 against 3.030 nats (0.040 lower)" in found.sentence()
    assert "mean of domains 3.125 against 3.075 nats (0.050 higher)" in found.sentence()


@pytest.mark.parametrize(
    ("ado", "expected"),
    [
        (2.9, "ado reached a lower validation loss than natural"),
        (3.1, "ado reached a higher validation loss than natural"),
        (3.002, "ado and natural are level"),
    ],
)
def test_headline(simulate, tmp_path, ado, expected):
    (found,) = compare(runs_with(simulate, tmp_path, [ado] * 4, [3.0] * 4))
    assert found.headline() == expected


def test_unmeasured_domain_is_not_counted(simulate, tmp_path):
    (found,) = compare(runs_with(simulate, tmp_path, [2.9, np.nan, 2.9, 2.9], [3.0] * 4))
    assert found.num_domains == 3


def test_one_run_has_nothing_to_compare(simulate, tmp_path):
    assert compare(load_runs([simulate(tmp_path / "ado", NAMES, steps=5)])) == []


def test_caveats_name_what_differs(simulate, tmp_path):
    paths = [simulate(tmp_path / "ado", NAMES, steps=20, planned=50, seed=1)]
    paths.append(simulate(tmp_path / "natural", NAMES, policy="natural", steps=20, batch=64, seed=2))
    found = " ".join(caveats(load_runs(paths)))
    assert "ado stopped at step 20 of 50" in found
    assert "batch size 32 in ado, 64 in natural" in found
    assert "seed 1 in ado, 2 in natural" in found


def test_equal_settings_leave_only_the_seed_to_mention(simulate, tmp_path):
    found = caveats(runs_with(simulate, tmp_path, [3.0] * 4, [3.1] * 4))
    assert len(found) == 1
    assert "One seed" in found[0]


def test_non_finite_steps_are_counted(simulate, tmp_path):
    runs = load_runs([simulate(tmp_path / "ado", NAMES, steps=200, broken=True)])
    assert any("20 steps with a loss that is not finite" in sentence for sentence in caveats(runs))
