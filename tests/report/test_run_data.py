"""Records become arrays: missing is NaN, laws predict what their formula says, directories expand to runs."""

import json

import numpy as np
import pytest

from ado_stream.errors import ConfigError, DataError, NotFound
from ado_stream.record import RunRecord, read_lines
from ado_stream.report.comparison import pick_baseline
from ado_stream.report.forecast_plot import draw_forecasts, forecast_error, halfway_law, next_interval_error
from ado_stream.report.plot_style import domain_colors, styled
from ado_stream.report.report_tables import DASH, health_table, law_table
from ado_stream.report.run_data import load_runs
from ado_stream.report.selection_plot import draw_selection, drawn_and_expected, promised_floor, worst_gaps

NAMES = ["code", "prose", "tables"]


def write(run_dir, steps, fits=(), **about):
    """A record with the given step and fit lines."""
    with RunRecord(run_dir) as record:
        fields = {"domains": NAMES, "prior": [0.5, 0.3, 0.2], "policy": "ado", "global_batch_size": 10, "steps": 4}
        record.write("run", version=1, **{**fields, **about})
        for line in steps:
            record.write("step", **line)
        for line in fits:
            record.write("fit", **line)
    return run_dir


def test_law_predicts_its_formula(simulate, tmp_path):
    (run,) = load_runs([simulate(tmp_path / "ado", NAMES)])
    law = run.laws[3]
    n = np.array([1.0, 7.0, 1e3, 1e9])
    eps, beta, alpha = np.exp(law.log_eps_K[1]), np.exp(law.log_beta_K[1]), law.alpha_K[1]
    # the same sum in another order of operations: a few roundings
    np.testing.assert_allclose(law.predict(1, n), eps + beta * n**-alpha, rtol=1e-13)


def test_missing_numbers_are_nan_not_zero(tmp_path):
    steps = [{"step": 0, "loss": None, "domain_loss": [1.0, None, 2.0], "samples": [5, 0, 5]}, {"step": 1}]
    (run,) = load_runs([write(tmp_path / "r", steps)])
    assert np.isnan(run.loss_S).all()
    np.testing.assert_array_equal(run.domain_loss_SK, [[1, np.nan, 2], [np.nan] * 3])
    assert np.isnan(run.mixture_SK).all()
    assert np.isnan(run.time_s["data"]).all()
    assert run.final is None


def test_shared_counts_are_all_samples_so_far(tmp_path):
    fit = {"step": 3, "n": 40, "log_beta": [1, 1, 1], "log_eps": [0, 0, 0], "alpha": [0.3] * 3, "valid": [True] * 3}
    (run,) = load_runs([write(tmp_path / "r", [{"step": step} for step in range(4)], [fit])])
    np.testing.assert_array_equal(run.counts_SK[:, 0], [10, 20, 30, 40])
    assert run.counts_SK[3, 2] == run.laws[0].n_K[2]


def test_own_counts_are_each_domains_samples(tmp_path):
    steps = [{"step": step, "samples": [5, 3, 2]} for step in range(4)]
    fit = {"step": 3, "n": [20, 12, 8], "log_beta": [1, 1, 1], "log_eps": [0, 0, 0], "alpha": [0.3] * 3}
    (run,) = load_runs([write(tmp_path / "r", steps, [fit])])
    np.testing.assert_array_equal(run.counts_SK[-1], run.laws[0].n_K)
    assert run.laws[0].valid_K.all()


def test_forecast_error_is_the_bias_put_in(simulate, tmp_path):
    (run,) = load_runs([simulate(tmp_path / "ado", NAMES, steps=400)])
    law = halfway_law(run)
    assert abs(law.step - 200) <= 10
    true = [forecast_error(run, law, k) for k in range(3)]
    # 2 % noise a sample over 200 steps of several samples: the means miss by well under 0.5 %
    assert np.abs(true).max() < 0.005
    for k in range(3):
        law.log_beta_K[k] += np.log(1.1)
        law.log_eps_K[k] += np.log(1.1)
    biased = [forecast_error(run, law, k) for k in range(3)]
    np.testing.assert_allclose(biased, (np.array(true) + 1) / 1.1 - 1, atol=1e-12)


def test_next_interval_error_uses_only_the_next_interval(simulate, tmp_path):
    (run,) = load_runs([simulate(tmp_path / "ado", NAMES, steps=200, refit_every=50)])
    ends = [*(law.step for law in run.laws[1:]), 199]
    expected = []
    for law, end in zip(run.laws, ends, strict=True):
        rows = (run.step_S > law.step) & (run.step_S <= end) & np.isfinite(run.domain_loss_SK[:, 0])
        foreseen = (
            np.exp(law.log_eps_K[0]) + np.exp(law.log_beta_K[0]) * (32.0 * (run.step_S[rows] + 1)) ** -law.alpha_K[0]
        )
        expected.append(abs(run.domain_loss_SK[rows, 0].mean() / foreseen.mean() - 1))
    assert next_interval_error(run, 0) == pytest.approx(np.median(expected), abs=1e-12)


def test_held_and_missing_laws_are_labelled(tmp_path):
    """A refit that fails for a domain leaves its older law in the record; one that never had any has nulls."""
    steps = [{"step": step, "domain_loss": [2.0] * 3, "samples": [5, 3, 2]} for step in range(9)]
    law = {"n": 40, "log_beta": [0, 0, None], "log_eps": [0.6, 0.6, None], "alpha": [0.3, 0.3, None]}
    (run,) = load_runs([write(tmp_path / "r", steps, [{"step": 4, **law, "valid": [True, False, False]}])])
    np.testing.assert_array_equal(run.laws[0].predict(1, np.array([50.0])), run.laws[0].predict(0, np.array([50.0])))
    with styled():
        panels = draw_forecasts(run, domain_colors(NAMES)).figure.axes
    texts = [panel.texts[-1].get_text() for panel in panels[:3]]
    miss = 2.0 / run.laws[0].predict(0, run.counts_SK[5:, 0]).mean() - 1
    error = f"−{-100 * miss:.1f} %"
    assert texts == [f"forecast {error}", f"held law {error}", "no law"]
    _, rows = law_table(run, domain_colors(NAMES))
    assert [row[1] for row in rows] == ["1.822", "1.822", DASH]
    assert [row[-1] for row in rows] == ["1 of 1", "0 of 1", "0 of 1"]


def test_the_health_table_has_every_counter_in_its_column():
    health = {
        "ignored_losses": {"code": 1200, "prose": 0, "tables": 3},
        "held_laws": {"code": 0, "prose": 4500, "tables": 6},
        "at_bound": {"prose": ["alpha", "log_eps"]},
        "forecast_error": {
            "code": {"mean": -0.0123, "mean_abs": 0.0456},
            "prose": {"mean": 0.5, "mean_abs": None},
            "tables": {"mean": None, "mean_abs": None},
        },
    }
    header, rows = health_table(health, domain_colors(NAMES))
    assert header == ["domain", "losses ignored", "laws held", "at a bound", "forecast error", "its size"]
    assert [[row[0].text, *row[1:]] for row in rows] == [
        ["code", "1,200", "0", DASH, "−1.23 %", "4.56 %"],
        ["prose", "0", "4,500", "alpha, log_eps", "+50.00 %", f"{DASH} %"],
        ["tables", "3", "6", DASH, f"{DASH} %", f"{DASH} %"],
    ]


def test_the_floor_line_is_the_recorded_floor(simulate, tmp_path):
    """Not one of the options: the default floor is in none of them."""
    runs = load_runs([simulate(tmp_path / policy, NAMES, policy=policy, steps=20) for policy in ("ado", "natural")])
    assert [promised_floor(run) for run in runs] == [0.005, pytest.approx(np.nan, nan_ok=True)]
    with styled():
        texts = [
            [text.get_text() for text in draw_selection(run, domain_colors(NAMES)).figure.axes[0].texts] for run in runs
        ]
    assert texts == [["floor 0.5 %"], []]


def test_worst_gap_is_the_largest_of_any_step(tmp_path):
    steps = [
        {"step": 0, "samples": [5, 3, 2], "mixture": [0.5, 0.3, 0.2]},
        {"step": 1, "samples": [6, 2, 2], "mixture": [0.52, 0.28, 0.2]},
        {"step": 2, "samples": None, "mixture": [0.52, 0.28, 0.2]},
    ]
    (run,) = load_runs([write(tmp_path / "r", steps)])
    np.testing.assert_allclose(worst_gaps(run), [0.8, 0.8, 0.0], atol=1e-12)  # 10 x 0.52 in floating point
    assert drawn_and_expected(run)[0].shape == (2, 3)


def test_a_directory_of_runs_expands_to_all(simulate, tmp_path):
    simulate(tmp_path / "runs" / "natural", NAMES, policy="natural", steps=5)
    simulate(tmp_path / "runs" / "ado", NAMES, steps=5)
    runs = load_runs([tmp_path])
    assert [run.label for run in runs] == ["ado", "natural"]
    assert pick_baseline(runs).label == "natural"
    assert len(load_runs([tmp_path, tmp_path / "runs" / "ado"])) == 2


def test_labels_of_runs_with_one_name_differ(simulate, tmp_path):
    paths = [simulate(tmp_path / day / "run", NAMES, steps=3) for day in ("monday", "friday")]
    assert [run.label for run in load_runs(paths)] == ["monday/run", "friday/run"]


def test_missing_and_damaged_records_raise_typed_errors(simulate, tmp_path):
    with pytest.raises(NotFound, match="nothing"):
        load_runs([tmp_path / "nothing"])
    with pytest.raises(ConfigError, match="no run"):
        load_runs([])
    path = simulate(tmp_path / "run", NAMES, steps=3) / "record.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "{broken", *lines[1:]]) + "\n")
    with pytest.raises(DataError, match=":2:"):
        load_runs([path.parent])


def test_torn_last_line_is_left_out(simulate, tmp_path):
    path = simulate(tmp_path / "run", NAMES, steps=3) / "record.jsonl"
    path.write_text(path.read_text() + json.dumps({"kind": "step", "step": 3})[:-4])
    assert load_runs([path.parent])[0].num_steps == 3


def test_no_laws_no_law_figure(simulate, tmp_path):
    (run,) = load_runs([simulate(tmp_path / "run", NAMES, policy="natural", steps=10)])
    assert halfway_law(run) is None
    assert draw_forecasts(run, domain_colors(NAMES)) is None


@pytest.mark.parametrize(
    "line",
    [
        "3", "[]", '{"kind": 1}', '{"kind": "step"}', '{"kind": "step", "step": -1}', "[" * 9**5, '{"kind": "run"}',
        '{"kind": "run", "version": 1, "domains": ["a"], "tokenizer": ["bpe"]}',
        '{"kind": "run", "version": 1, "domains": ["a"], "stages": [{"steps": 3}]}',
        '{"kind": "step", "step": 0, "time_s": 3}', '{"kind": "eval", "step": 0, "domain_text": [{"tokens": "1"}]}',
        '{"kind": "event", "step": 0, "detail": "x"}',
    ],
)  # fmt: skip
def test_a_line_that_is_none_of_a_record_is_named(tmp_path, line):
    (tmp_path / "record.jsonl").write_text(f"{line}\n")
    with pytest.raises(DataError, match=r"record.jsonl:1"):
        read_lines(tmp_path / "record.jsonl")


@pytest.mark.parametrize(
    "line",
    [
        {"kind": "eval", "domain_text": [None]},
        {"kind": "fit", "valid": [True]},
        {"kind": "step", "samples": [1, 2]},
        {"kind": "run", "version": 1, "domains": ["easy", "hard", "medium"], "prior": [0.5, 0.5]},
    ],
)
def test_a_line_of_other_domains_is_refused(tmp_path, line):
    path = write(tmp_path / "r", [{"step": 0}]) / "record.jsonl"
    path.write_text(path.read_text() + json.dumps({"step": 1, **line}) + "\n")
    with pytest.raises(DataError, match=r"record.jsonl: a line does not fit the run's domains"):
        load_runs([tmp_path / "r"])
