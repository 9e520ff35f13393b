"""A resume with other settings: what differs is printed before the first step and recorded."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

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


def write_list(path: Path, corpus: Path, **weights: float) -> Path:
    domains = {
        name: {"path": str(corpus / name / "train"), "val": str(corpus / name / "val"), "weight": weight}
        for name, weight in weights.items()
    }
    path.write_text(yaml.safe_dump({"seq_len": 32, "tokenizer": "bytes", "domains": domains}))
    return path


def test_weights_that_changed_in_a_corpus_yaml_are_shown(settings: dict, tmp_path, tiny_corpus, monkeypatch, capsys):
    """The config is the same: what differs is in a file that it names."""
    path = write_list(tmp_path / "corpus.yaml", tiny_corpus, easy=1, medium=1, hard=2)
    listed = settings | {"corpus": str(path), "policy": {"name": "natural"}}
    interrupt(listed, monkeypatch)
    write_list(path, tiny_corpus, easy=2, medium=1, hard=1)
    run_training(load_config(listed))
    changes = resume_event(listed)["detail"]["changes"]
    assert changes == {"prior": ["easy 0.25, hard 0.5", "easy 0.5, hard 0.25"]}
    assert "  prior    easy 0.25, hard 0.5  easy 0.5, hard 0.25" in capsys.readouterr().out


def test_other_validation_data_are_shown(settings: dict, tmp_path, tiny_corpus, monkeypatch, capsys):
    """Its losses would jump without a word, and a policy that learns from them with it."""
    path = write_list(tmp_path / "corpus.yaml", tiny_corpus, easy=1, medium=1, hard=2)
    listed = settings | {"corpus": str(path), "policy": {"name": "natural"}}
    interrupt(listed, monkeypatch)
    other = shutil.copytree(tiny_corpus / "medium" / "val", tmp_path / "other")
    path.write_text(path.read_text().replace(str(tiny_corpus / "easy" / "val"), str(other)))
    run_training(load_config(listed))
    (name, values), *others = resume_event(listed)["detail"]["changes"].items()
    assert (name, others) == ("validation data", [])
    assert [value.split()[0] for value in values] == ["easy", "easy"]
    assert values[0] != values[1]
    assert "  validation data  easy " in capsys.readouterr().out


def test_another_number_of_ranks_and_another_device_are_shown(settings: dict, monkeypatch, capsys):
    directory = interrupt(settings, monkeypatch)
    metadata = json.loads((directory / "state.json").read_text())
    metadata["settings"]["found"] |= {"ranks": 4, "device": "cuda"}  # as four GPUs would have saved it
    (directory / "state.json").write_text(json.dumps(metadata))
    commit(directory)
    run_training(load_config(settings))
    assert resume_event(settings)["detail"]["changes"] == {"ranks": [4, 1], "device": ["cuda", "cpu"]}


def test_a_domain_that_is_added_leaves_the_prior_of_the_others():
    found = {"ranks": 1, "device": "cpu", "end_token": 0, "packing": "join"}
    saved, now = (found | {"prior": prior} for prior in ({"a": 0.4, "b": 0.6}, {"a": 0.2, "b": 0.3, "c": 0.5}))
    schedule = {"peak": 1.0, "warmup_steps": 0, "steps": 9, "min_frac": 0.1}
    both = [{"config": {}, "schedule": schedule, "found": each} for each in (saved, now)]
    assert changed_settings(both[0], ["a", "b"], both[1], ["a", "b", "c"], 4) == {"domains added": (None, "c")}


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
