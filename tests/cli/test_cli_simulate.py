"""`ado-stream simulate`: table, JSON, picture; errors that name the file and key."""

import json

import pytest

from ado_stream.cli.main import main

SPEC = """
steps: 400
global_batch_size: 64
noise: 0.1
domains:
  web: {prior: 3, eps: 2.0, beta: 20.0, alpha: 0.3}
  "code: C": {prior: 1, eps: 1.0, beta: 9.0, alpha: 0.2}
policies:
  natural:
  eager: {policy: ado, start_step: 40}
"""


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return path


def test_prints_a_table_and_draws(spec, tmp_path, capsys):
    picture = tmp_path / "out.png"
    assert main(["simulate", str(spec), "--plot", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "400 steps of 64 samples, 2 domains" in printed
    assert "eager" in printed
    assert "code: C" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_json_has_every_policy_and_draws_nothing(spec, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["simulate", str(spec), "--json", "--policy", "temperature", "--option", "tau=2", "--seed", "4"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["policies"]) == ["temperature"]
    mixture = found["policies"]["temperature"]["mixture"]
    assert mixture["web"] / mixture["code: C"] == pytest.approx(3**0.5)
    assert sum(found["policies"]["temperature"]["samples"].values()) == 400 * 64
    assert list(tmp_path.glob("*.png")) == []


def test_the_built_in_world_needs_no_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["simulate", "--steps", "200"]) == 0
    assert "22 domains" in capsys.readouterr().out
    assert (tmp_path / "simulate.png").exists()


@pytest.mark.parametrize(
    ("text", "arguments", "says"),
    [
        ("stesp: 4", [], "did you mean 'steps'"),
        ("- a\n- b", [], "mapping"),
        ("a: [", [], "cannot be read as YAML"),
        (SPEC, ["--policy", "adoo"], "did you mean 'ado'"),
        (SPEC, ["--option", "tau=2"], "--policy"),
        (SPEC, ["--policy", "temperature", "--option", "tau"], "KEY=VALUE"),
    ],
)
def test_errors_are_one_message(text, arguments, says, tmp_path, capsys):
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    assert main(["simulate", str(path), *arguments]) == 1
    assert says in capsys.readouterr().err


def test_a_missing_spec_is_named(tmp_path, capsys):
    assert main(["simulate", str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml" in capsys.readouterr().err
