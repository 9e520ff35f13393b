"""A resume with other settings: what differs is printed before the first step and recorded."""

import json

import pytest

from ado_stream.record import read_run
from ado_stream.train.changed_settings import changed_settings, changes_table
from ado_stream.train.checkpoint_commit import commit
from ado_stream.train.run_config import load_config
from ado_stream.train.trainer import run_training
from tests.train.run_helpers import changed, interrupt

TITLE = "resumed with other settings than the checkpoint was saved with:"


def resume_event(settings: dict) -> dict:
    return next(event for event in read_run(settings["run_dir"])[1]["event"] if event["name"] == "resume")


def test_other_steps_and_learning_rates_are_shown_before_the_first_step(settings: dict, monkeypatch, capsys):
    interrupt(changed(settings, train={"learning_rate": 1e-3, "warmup_steps": 2}), monkeypatch)
    capsys.readouterr()
    other = changed(settings, train={"learning_rate": 4e-3, "warmup_steps": 2, "steps": 20})
    run_training(load_config(other))
    shown = capsys.readouterr().out
    assert shown.index(TITLE) < shown.index("step  ")
    cells = {tuple(line.rsplit(maxsplit=2)) for line in shown.splitlines()[:6]}
    rates = [step["lr"] for step in read_run(other["run_dir"])[1]["step"]]
    # half a cosine from the 2nd to the 11th step, of which the 8th is 6/9 through, down to a tenth
    assert cells >= {("  setting", "saved", "now"), ("  train.steps", "12", "20")}
    changes = resume_event(other)["detail"]["changes"]
    assert changes == {
        "train.steps": [12, 20],
        "train.learning_rate": [1e-3, 4e-3],
        "learning rate of step 8": [pytest.approx(1e-3 * (0.1 + 0.9 * 0.25)), rates[8]],
    }


def test_the_same_settings_show_nothing(settings: dict, monkeypatch, capsys):
    interrupt(settings, monkeypatch)
    run_training(load_config(settings))
    assert TITLE not in capsys.readouterr().out
    assert "changes" not in resume_event(settings)["detail"]


def test_a_learning_rate_that_follows_from_the_steps_is_shown(settings: dict, monkeypatch, capsys):
    """Only train.steps was changed: the rate of the next step jumps all the same."""
    interrupt(settings, monkeypatch)
    other = changed(settings, train={"steps": 40})
    run_training(load_config(other))
    before, now = resume_event(other)["detail"]["changes"]["learning rate of step 8"]
    assert now > 1.5 * before
    assert "  learning rate of step 8" in capsys.readouterr().out


def test_a_checkpoint_beyond_the_last_step_is_named(settings: dict, monkeypatch, capsys):
    interrupt(settings, monkeypatch)
    assert run_training(load_config(changed(settings, train={"steps": 6}))).step == 8
    assert "nothing to train: the checkpoint has 8 finished steps, 'train.steps' is 6" in capsys.readouterr().out


def test_checkpoints_without_settings_resume(settings: dict, monkeypatch, capsys):
    """As earlier versions wrote them: nothing to compare with."""
    directory = interrupt(settings, monkeypatch)
    metadata = json.loads((directory / "state.json").read_text())
    del metadata["settings"]
    (directory / "state.json").write_text(json.dumps(metadata))
    commit(directory)
    run_training(load_config(changed(settings, train={"steps": 16})))
    assert TITLE not in capsys.readouterr().out


def test_domains_are_compared_by_name():
    names = [f"d{number}" for number in range(9)]
    assert changed_settings(None, names, {}, ["d0", "new"], 4) == {
        "domains retired": ("d1, d2, d3, d4, d5 and 3 more", None),
        "domains added": (None, "new"),
    }


@pytest.mark.parametrize(("saved", "now"), [(3e-4, 3.00001e-4), (1e-5, "1e-05"), (None, "-"), (256, "256")])
def test_values_that_differ_are_shown_as_different(saved, now):
    line = changes_table({"train.learning_rate": (saved, now)}).splitlines()[-1]
    assert line.split() == ["train.learning_rate", repr(saved), repr(now)]
