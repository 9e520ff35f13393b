"""The verbs train, eval and export: a run from a file, its losses, its model; mistakes in one message."""

import json
from pathlib import Path

import pytest
import yaml

from ado_stream.cli.main import main


@pytest.fixture
def config_file(settings: dict, tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_train_then_eval_then_export(config_file: Path, settings: dict, tmp_path: Path, capsys):
    assert main(["train", str(config_file), "train.steps=8"]) == 0
    assert f"done: step 8, {settings['run_dir']}" in capsys.readouterr().out
    assert main(["eval", settings["run_dir"], "--max-samples", "8", "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    last = [json.loads(line) for line in (Path(settings["run_dir"]) / "record.jsonl").read_text().splitlines()]
    recorded = [line for line in last if line["kind"] == "eval"][-1]
    # the same model and samples; batched otherwise, so float32 sums differ in their last bits
    assert found["validation"]["loss"] == pytest.approx(recorded["loss"], abs=1e-5)
    assert set(found["validation"]["domains"]) == {"easy", "medium", "hard"}
    assert main(["eval", settings["run_dir"], "--max-samples", "2", "--device", "cpu"]) == 0
    assert "mean of domains" in capsys.readouterr().out
    assert main(["export", settings["run_dir"], "--out", str(tmp_path / "exported")]) == 0
    assert (tmp_path / "exported" / "model.safetensors").exists()


def test_dry_run_prints_the_plan_and_writes_nothing(config_file: Path, settings: dict, capsys):
    assert main(["train", str(config_file), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "parameters" in out
    assert "repeats after" in out
    assert not Path(settings["run_dir"]).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "absent.yaml"], "NotFound: absent.yaml: no such config file."),
        (["train", "{config}", "train.leraning_rate=1"], "did you mean 'train.learning_rate'?"),
        (["train", "{config}", "--resume", "step_00000009"], "CheckpointError: step_00000009"),
        (["eval", "nowhere"], "NotFound: nowhere: no config.yaml here"),
        (["export", "nowhere", "--out", "x"], "NotFound: nowhere"),
    ],
)
def test_mistakes_give_one_message_and_exit_code_1(config_file: Path, arguments: list[str], message: str, capsys):
    assert main([each.format(config=config_file) for each in arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_tasks_without_the_harness_name_the_command(config_file: Path, settings: dict, capsys, monkeypatch):
    import sys

    assert main(["train", str(config_file), "train.steps=6"]) == 0
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    arguments = ["eval", settings["run_dir"], "--max-samples", "2", "--device", "cpu", "--tasks", "sciq"]
    assert main(arguments) == 1
    assert "pip install 'ado-stream[eval]'" in capsys.readouterr().err
