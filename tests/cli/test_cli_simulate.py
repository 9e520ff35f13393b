"""`ado-stream simulate`: table, JSON, picture; errors that name the file and key."""

import json

import numpy as np
import pytest

from ado_stream.cli.main import main
from ado_stream.cli.simulate import summarise
from ado_stream.report import plot_style
from ado_stream.report.plot_style import new_figure
from ado_stream.simulate.closed_loop import Outcome, read_spec
from ado_stream.simulate.worlds import WORLDS

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


def test_a_picture_has_names_of_any_characters(spec, tmp_path):
    """Of two dollars matplotlib would make mathematics; a name that begins with an underscore would have no legend."""
    text = SPEC.replace("web:", "$a_{$:").replace("code: C", "_\u4e2d").replace("eager", "$b_{$")
    spec.write_text(text, encoding="utf-8")
    picture = tmp_path / "out.svg"
    assert main(["simulate", str(spec), "--plot", str(picture)]) == 0
    drawn = picture.read_text()
    assert all(drawn.count(name) >= times for name, times in (("$a_{$", 1), ("_\u4e2d", 1), ("$b_{$", 2)))


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


BY_HAND = """
steps: 4
global_batch_size: 4
mixture_lag: 0
domains:
  a: {prior: 3, eps: 1, beta: 4, alpha: 1}
  b: {prior: 1, eps: 2, beta: 8, alpha: 1}
policies:
  first: {policy: fixed, weights: {a: 1, b: 3}}
  natural:
  uniform:
  half: {policy: fixed, weights: {a: 0, b: 1}}
"""
DRAWN = {"first": (1, 3), "natural": (3, 1), "uniform": (2, 2), "half": (0, 4)}  # samples of a and b in each batch


# min of 3/4 (1 + 4 / x) + 1/4 (2 + 8 / y) where x + y = 18: x / y is the root of 3 / 2
ORACLE = 1.25 + 3 / (18 * 1.5**0.5 / (1 + 1.5**0.5)) + 2 / (18 / (1 + 1.5**0.5))


def _by_hand(label, step):
    """Losses of a and b, 1 + 4 / n and 2 + 8 / n, and their mean by the prior."""
    a, b = (eps + 4 * eps / (1 + step * drawn) for eps, drawn in zip((1, 2), DRAWN[label], strict=True))
    return a, b, 0.75 * a + 0.25 * b


@pytest.fixture
def by_hand(tmp_path):
    path = tmp_path / "by_hand.yaml"
    path.write_text(BY_HAND)
    return path


def test_every_number_of_a_world_computed_by_hand(by_hand, capsys):
    """By prior, after 2, 3 and 4 steps: natural 2.345, 2.05, 1.881; uniform 2.25, 1.964, 1.806; first ends at 2.004."""
    assert main(["simulate", str(by_hand), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["steps"], found["global_batch_size"], found["domains"]) == (4, 4, 2)
    assert list(found["policies"]) == list(DRAWN)
    reached = {label: policy["steps_to_first"] for label, policy in found["policies"].items()}
    assert reached == {"first": 4, "natural": 4, "uniform": 3, "half": None}
    for label, policy in found["policies"].items():
        a, b, mean = _by_hand(label, 4)
        assert policy["loss_by_prior"] == pytest.approx(mean, rel=1e-12)
        assert policy["loss_uniform"] == pytest.approx((a + b) / 2, rel=1e-12)
        assert policy["regret"] == pytest.approx(mean - ORACLE, rel=1e-9)
        assert policy["loss"] == pytest.approx({"a": a, "b": b}, rel=1e-12)
        assert policy["mixture"] == pytest.approx(dict(zip("ab", (n / 4 for n in DRAWN[label]), strict=True)))
        assert policy["samples"] == dict(zip("ab", (4 * n for n in DRAWN[label]), strict=True))
        assert policy["health"]["step"] == 4


def test_the_table_and_the_curves_of_a_world_computed_by_hand(by_hand, tmp_path, capsys, monkeypatch):
    figures = []

    def kept(*arguments):
        figures.append(new_figure(*arguments))
        return figures[0]

    monkeypatch.setattr(plot_style, "new_figure", kept)
    assert main(["simulate", str(by_hand), "--plot", str(tmp_path / "out.png")]) == 0
    rows = {row.split()[0]: row.split()[1:] for row in capsys.readouterr().out.splitlines() if row}
    for label, reached in (("first", ["4"]), ("natural", ["4"]), ("uniform", ["3"]), ("half", ["not", "reached"])):
        a, b, mean = _by_hand(label, 4)
        assert rows[label] == [f"{mean:.4f}", f"{(a + b) / 2:.4f}", f"{mean - ORACLE:.4f}", *reached]
    for index, name in enumerate("ab"):
        cells = [(f"{_by_hand(label, 4)[index]:.4f}", f"{25 * DRAWN[label][index]:.2f}%") for label in DRAWN]
        oracle = 18 / (1 + 1.5 ** (index - 0.5)) - 1  # of 16 samples
        assert rows[name][:2] == [("75.00%", "25.00%")[index], f"{oracle / 0.16:.2f}%"]
        assert rows[name][2:] == [cell for pair in cells for cell in pair]
    loss, ahead = figures[0].subfigs[0].axes
    for label, curve, difference in zip(DRAWN, loss.lines, ahead.lines, strict=True):
        mean_S = np.array([_by_hand(label, step)[2] for step in (1, 2, 3, 4)])
        first_S = np.array([_by_hand("first", step)[2] for step in (1, 2, 3, 4)])
        assert curve.get_label() == difference.get_label() == label
        assert curve.get_xdata().tolist() == difference.get_xdata().tolist() == [1, 2, 3, 4]
        assert curve.get_ydata() == pytest.approx(mean_S, rel=1e-12)
        assert difference.get_ydata() == pytest.approx(mean_S - first_S, abs=1e-12)


@pytest.mark.parametrize(
    ("losses", "reached"),
    [((9, 3, 2, 2), 4), ((9, 1, 3, 2), 6), ((9, 1, 1, 3), None), ((2, 2, 2, 2), 0), ((9, 9, 9, 2), 6)],
)
def test_a_loss_is_reached_where_it_stays(losses, reached):
    """A loss that falls under the first policy's and rises again has reached nothing yet."""
    spec = read_spec({"steps": 6, "domains": {"a": {"prior": 1, "eps": 1, "beta": 1, "alpha": 1}}})
    step_S, mixture_SK, policy = np.array([0, 2, 4, 6]), np.ones((4, 1)), spec.make("natural")

    def ends(losses):
        return Outcome(step_S, mixture_SK, np.array(losses, dtype=float)[:, None], np.ones(1), policy)

    found = summarise(spec, {"first": ends((9, 8, 7, 2)), "other": ends(losses)})
    assert found["policies"]["first"]["steps_to_first"] == 6
    assert found["policies"]["other"]["steps_to_first"] == reached


@pytest.mark.parametrize(
    ("text", "arguments", "says"),
    [
        ("stesp: 4", [], "did you mean 'steps'"),
        ("- a\n- b", [], "mapping"),
        ("a: [", [], "not YAML"),
        (SPEC, ["--policy", "adoo"], "did you mean 'ado'"),
        (SPEC, ["--policy", "temperature", "--option", "tau"], "KEY=VALUE"),
    ],
)
def test_errors_are_one_message(text, arguments, says, tmp_path, capsys):
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    assert main(["simulate", str(path), *arguments]) == 1
    assert says in capsys.readouterr().err


def test_every_world_prints_a_row_and_every_policy_a_column(capsys):
    """Each policy's regret is that which the world gives alone."""
    arguments = ["--steps", "300", "--policy", "natural", "--policy", "uniform"]
    assert main(["simulate", "--world", "all", *arguments]) == 0
    rows = [line.rsplit(maxsplit=3) for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["world", *WORLDS]
    assert rows[0][1:] == ["oracle", "natural", "uniform"]
    assert main(["simulate", "--world", "unlearnable-40", *arguments, "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    found = dict(zip(rows[0][1:], rows[1 + WORLDS.index("unlearnable-40")][1:], strict=True))
    regret = {label: f"{1e3 * policy['regret']:.1f}" for label, policy in alone["policies"].items()}
    assert found == {"oracle": f"{alone['oracle']['loss']:.4f}", **regret}


def test_a_missing_spec_is_named(tmp_path, capsys):
    assert main(["simulate", str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml" in capsys.readouterr().err
