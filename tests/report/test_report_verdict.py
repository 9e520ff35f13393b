"""The verdict counts domains, gives both overall measures, and lists what makes a comparison unfair."""

from dataclasses import replace

import numpy as np
import pytest

from ado_stream.report.report_tables import domain_table
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
        text = tuple({"tokens": name, "head": name} for name in NAMES)
        mean = float(np.nanmean(losses))
        evaluation = Evaluation(10, "val", mean, losses, np.full(4, 50.0), np.full(4, 200.0), text)
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


def changed(run, text=None, num_bytes=None, **metadata):
    """The run with other recorded settings, and its validation with other text or sizes."""
    (final,) = run.evaluations
    final = replace(final, text_K=text or final.text_K, domain_bytes_K=np.array(num_bytes or final.domain_bytes_K))
    return replace(run, metadata={**run.metadata, **metadata}, evaluations=(final,))


def test_tokenizers_that_differ_are_compared_in_bits_per_byte(simulate, tmp_path):
    ado, natural = runs_with(simulate, tmp_path, [6.0, 6.0, 6.0, 6.2], [3.1, 3.0, 2.9, 3.0])
    for other in ({"tokenizer": "bpe:9000"}, {"tokenizer_fingerprint": "of another text"}):
        (found,) = compare([changed(ado, num_bytes=[400.0] * 4, **other), natural])
        assert found.withheld == "ado and natural were validated on different text of a, b, c, d."
        long = changed(ado, num_bytes=[210.0] * 4, **other)  # one text, but for where the tokens end
        (found,) = compare([long, natural])
        nats_a_byte = np.array([6.0, 6.0, 6.0, 6.2]) * 50 / 210 - np.array([3.1, 3.0, 2.9, 3.0]) * 50 / 200
        own, base = found.overall["mean of domains"]
        assert own - base == pytest.approx(nats_a_byte.mean() / np.log(2), rel=1e-12)
        assert (found.lower, found.higher) == (0, 4)
        assert "bits per byte (0.996 higher)" in found.sentence()
        assert "Tokenizers differ, so losses are compared in bits per byte of text." in caveats([long, natural])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"text": ({"tokens": "x", "head": "a"}, *({"tokens": n, "head": n} for n in "bcd"))}, "different text of a."),
        ({"text": (None,) * 4, "corpus": {"fingerprint": "other"}}, "different text of a, b, c, d."),
        ({"num_bytes": [np.nan] * 4, "tokenizer": "bytes"}, "no record of the bytes"),
    ],
)
def test_no_verdict_where_the_validation_text_differs(simulate, tmp_path, change, says):
    ado, natural = runs_with(simulate, tmp_path, [2.0] * 4, [3.0] * 4)
    ado = changed(ado, **change)
    (found,) = compare([ado, natural])
    assert says in found.withheld
    assert found.headline() == "No verdict: ado and natural cannot be compared"
    assert found.sentence().startswith(found.withheld)
    header, rows = domain_table([ado, natural], dict.fromkeys(NAMES, "#000000"))
    assert "ado: loss" in header
    assert not [name for name in header if "\N{MINUS SIGN}" in name]


def test_records_without_hashes_are_compared_where_the_corpus_is_one(simulate, tmp_path):
    runs = [changed(run, text=(None,) * 4) for run in runs_with(simulate, tmp_path, [2.0] * 4, [3.0] * 4)]
    assert [each.withheld for each in compare(runs)] == [""]


def test_a_domain_without_validation_text_is_named(simulate, tmp_path):
    runs = runs_with(simulate, tmp_path, [2.9, np.nan, 2.9, 2.9], [3.0] * 4)
    assert "ado: no validation text of b, which no measure includes." in caveats(runs)


def test_a_domain_that_no_run_could_validate_is_named_once(simulate, tmp_path):
    runs = runs_with(simulate, tmp_path, [2.9, np.nan, 2.9, 2.9], [3.0, np.nan, 3.0, 3.0])
    found = [sentence for sentence in caveats(runs) if "no validation text" in sentence]
    assert found == ["Every run: no validation text of b, which no measure includes."]
