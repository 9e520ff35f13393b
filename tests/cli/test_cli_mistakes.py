"""What users get wrong in options, specs and paths comes back as one message that names it, before any work."""

import json
import re

import pytest

import ado_stream as ado
from ado_stream.cli import replay as replay_verb
from ado_stream.cli import simulate as simulate_verb
from ado_stream.cli.main import main
from ado_stream.record import RunRecord
from ado_stream.yaml_files import parse_assignments

SPEC = {"steps": 50, "domains": {"a": {"prior": 1, "eps": 1.0, "beta": 9.0, "alpha": 0.2}}, "policies": {"natural": {}}}
LAW = SPEC["domains"]["a"]
PRIOR = {"web": 6.0, "code": 4.0}


@pytest.mark.parametrize(
    ("policy", "options", "says"),
    [
        ("ado", {"start_step": "abc"}, "start_step is 'abc'; expected a whole number, 0 or more"),
        ("ado", {"interval": 2.5}, "interval is 2.5; expected a whole number, 1 or more"),
        ("ado", {"ignore_steps": 2.5}, "ignore_steps is 2.5; expected a whole number"),
        ("ado", {"hold_steps": 1.5}, "hold_steps is 1.5; expected a whole number, 1 or more"),
        ("ado", {"min_points": 0}, "min_points is 0; expected a whole number, 1 or more"),
        ("ado", {"total_steps": "many"}, "total_steps is 'many'; expected a whole number"),
        ("ado", {"shared_count": "no"}, "shared_count is 'no'; expected true or false"),
        ("ado", {"kappa": float("inf")}, "kappa is inf; expected a finite number, 0 or more"),
        ("ado", {"credit_memory": True}, "credit_memory is True; expected a finite number from 0 to 1"),
        ("ado", {"floor": "low"}, "floor is 'low'; expected a finite number, 0 or more"),
        ("ado", {"fitter": "numba"}, "fitter is 'numba'; expected a function"),
        ("ado", {"credit": 3}, "credit is 3; expected one of history, residual"),
        ("ado", {"fit": 5}, "fit is 5; expected a FitConfig, or a mapping"),
        ("ado", {"fit": {"every": 2.5}}, "every is 2.5; expected a whole number, 1 or more"),
        ("ado", {"fit": {"delta": "small"}}, "delta is 'small'; expected a finite number"),
        ("ado", {"fit": {"grid_alpha": 0.1}}, "grid_alpha is 0.1; expected a list of numbers"),
        ("ado", {"fit": {"grid_alpha": ["a"]}}, "grid_alpha is 'a'; expected a finite number"),
        ("temperature", {"tau": "abc"}, "tau is 'abc'; expected a finite number above 0"),
        ("unimax", {"budget": float("nan")}, "budget is nan; expected a finite number above 0"),
        ("odm", {"mixture_lag": -1}, "mixture_lag is -1; expected a whole number, 0 or more"),
        ("schedule", {"knots": 5}, "knots are 5; expected"),
        ("schedule", {"knots": [[0, [1, 1], 2]]}, r"knots are .*; expected \[\[step, weights\]"),
        ("schedule", {"knots": [[float("nan"), [1, 1]]]}, "step of a knot is nan; expected a finite number"),
        ("schedule", {"knots": [[0, [1, float("nan")]]]}, "domain 'code' has nan"),
        ("doremi", {"reference_losses": [2, 2], "eta": float("inf")}, "eta is inf; expected a finite number above 0"),
        (
            "doremi",
            {"reference_losses": [2, 2], "smoothing": 2},
            "smoothing is 2; expected a finite number from 0 to 1",
        ),
    ],
)
def test_options_of_a_policy(policy, options, says):
    with pytest.raises(ado.ConfigError, match=says):
        ado.make_policy(policy, PRIOR, **options)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda inside: ado.Floor(inside, "low"), "Floor is 'low'; expected a finite number, 0 or more"),
        (lambda inside: ado.Ceiling(inside, "high"), "Ceiling: expected 2 numbers, got 'high'"),
        (lambda inside: ado.Pin(inside, 0.3), r"shares are 0.3; expected \{domain: share\}"),
        (
            lambda inside: ado.Pin(inside, {"web": "half"}),
            "share of 'web' is 'half'; expected a finite number from 0 to 1",
        ),
        (lambda inside: ado.Freeze(inside, 2.5), "from_step is 2.5; expected a whole number, 0 or more"),
        (lambda inside: ado.RepetitionGuard(inside, [9, 9], "all"), "total_samples is 'all'; expected a whole number"),
        (lambda inside: ado.RepetitionGuard(inside, [9, 9], 9, float("nan")), "max_epochs is nan; expected a finite"),
        (lambda inside: ado.RepetitionGuard(inside, [0, 0], 9), "0 samples, but the run draws 9"),
    ],
)
def test_options_of_a_guard(make, says):
    with pytest.raises(ado.ConfigError, match=says):
        make(ado.make_policy("natural", PRIOR))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"noise": "abc"}, "noise is 'abc'; expected a finite number, 0 or more"),
        ({"steps": True}, "steps is True; expected a whole number, 1 or more"),
        ({"domains": {"a": {**LAW, "eps": "x"}}}, "eps of 'a' is 'x'; expected a finite number above 0"),
        ({"domains": {"a": {**LAW, "alpha": [3]}}}, r"alpha of 'a' is \[3\]; expected a finite number"),
        ({"domains": {"a": {**LAW, "noise": -1}}}, "noise of 'a' is -1; expected a finite number, 0 or more"),
        ({"domains": {"a": {**LAW, "prior": None}}}, "prior of 'a' is None; expected a finite number, 0 or more"),
        ({"domains": {"a": 3}}, "'a' is 3; give prior, eps, beta, alpha"),
        ({"transfer": {"a": 3}}, r"'a' is 3; expected \{teacher: weight\}"),
        ({"transfer": {"a": {"a": "x"}}}, "'a' of 'a' is 'x'; expected a finite number, 0 or more"),
        ({"transfer": "some"}, "transfer is 'some'; expected a finite number, 0 or more"),
        ({"bumps": 5}, "bumps: 5; expected a list"),
        ({"bumps": [{"step": "x", "height": 1, "decay_steps": 1}]}, "bumps: step is 'x'; expected a finite number"),
        ({"bumps": [{"step": 1, "height": 1, "decay_steps": 0}]}, "decay_steps is 0; expected a finite number above 0"),
        ({"policies": {"ado": 5}}, "'ado' is 5; expected options"),
    ],
)
def test_keys_of_a_spec(spec, says, tmp_path, capsys):
    path = tmp_path / "spec.yaml"
    path.write_text(json.dumps({**SPEC, **spec}))  # JSON is YAML
    assert main(["simulate", str(path), "--json"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("ConfigError: ")
    assert re.search(says, error), error


@pytest.fixture
def run_dirs(tmp_path):
    """Two runs of one step in a folder of runs."""
    for name in ("one", "two"):
        with RunRecord(tmp_path / "runs" / name) as record:
            record.write("run", version=1, domains=["a"], prior=[1.0], policy="natural", steps=1, global_batch_size=4)
            record.write("step", step=0, loss=2.0, domain_loss=[2.0], samples=[4], mixture=[1.0])
    return tmp_path / "runs"


@pytest.mark.parametrize(
    "value",
    ['!!int "x"', '!!bool "x"', '!!timestamp "x"', "9" * 5000, "0x" + "f" * 5000, "9" + ":59" * 3000, "[" * 2000, "*a"]
    + ["!!python/name:os.system", '"\\ud800"', "<<: 1"],
)
@pytest.mark.parametrize("verb", [["train", "--dry-run"], ["simulate"]])
def test_yaml_that_is_no_value_is_one_line(verb, value, tmp_path, capsys):
    path = tmp_path / "given.yaml"
    path.write_text(f"seed: {value}\n")
    assert main([verb[0], str(path), *verb[1:]]) == 1
    assert capsys.readouterr().err.startswith(f"ConfigError: {path}: not YAML: ")


@pytest.mark.parametrize("word", ["a=!!int x", "a=" + "9" * 5000, "a", "=1", "a=["])
def test_an_assignment_that_is_none_is_one_line(word):
    with pytest.raises(ado.ConfigError, match=r"^--option '.*( is|:) not KEY=VALUE"):
        parse_assignments([word], "--option", "--option a=1")


@pytest.mark.parametrize("where", ["absent/x.png", "x.doc", "folder.png"])
@pytest.mark.parametrize("verb", ["fit", "simulate", "replay"])
def test_a_picture_that_cannot_be_written_is_refused_before_any_work(
    verb, where, run_dirs, tmp_path, capsys, monkeypatch
):
    def worked(*_):
        raise AssertionError("worked before looking at the path")

    monkeypatch.setattr("ado_stream.cli.fit.read_losses", worked)
    monkeypatch.setattr(simulate_verb, "read_spec", worked)
    monkeypatch.setattr(replay_verb, "replay", worked)
    (tmp_path / "folder.png").mkdir()
    given = {"fit": ["losses.csv"], "simulate": [], "replay": [str(run_dirs / "one"), "--policy", "natural"]}
    assert main([verb, *given[verb], "--plot", str(tmp_path / where)]) == 1
    error = capsys.readouterr().err
    assert f"ConfigError: --plot {tmp_path / where}: " in error


def test_replay_of_a_folder_of_runs_asks_for_one(run_dirs, capsys):
    assert main(["replay", str(run_dirs), "--policy", "uniform"]) == 1
    assert f"ConfigError: {run_dirs} holds 2 runs; name one of them" in capsys.readouterr().err
    assert main(["replay", str(run_dirs / "two"), "--policy", "uniform", "--json"]) == 0


@pytest.mark.parametrize("more", [[], ["--plot", "laws.png"]])
def test_fit_with_all_rows_ignored_says_how_many_there_are(more, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "losses.csv").write_text("samples,web\n" + "".join(f"{64 * row},2.5\n" for row in range(1, 31)))
    assert main(["fit", "losses.csv", "--ignore-steps", "30", *more]) == 1
    assert "--ignore-steps 30 leaves none of the 30 rows of losses.csv to fit; expected at most 29" in (
        capsys.readouterr().err
    )
    assert main(["fit", "losses.csv", "--ignore-steps", "29"]) == 0


@pytest.mark.parametrize("command", [["demo"], ["report", "run"], ["prepare", "in"]])
def test_an_empty_folder_for_results_is_refused(command, capsys):
    """It would be the current one."""
    assert main([*command, "--out", ""]) == 1
    assert "expected a path" in capsys.readouterr().err
