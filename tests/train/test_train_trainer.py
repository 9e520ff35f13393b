"""A whole run on one process: what it records, and that stopping and resuming it changes nothing."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from ado_stream.errors import AdoStreamError, CheckpointError, ResumeError, StorageError
from ado_stream.evaluate.trained_run import open_run
from ado_stream.record import read_run
from ado_stream.train import checkpoint_commit
from ado_stream.train.parallel import ParallelModel
from ado_stream.train.run_config import CONFIG_FILE, load_config
from ado_stream.train.train_step import TrainStep
from ado_stream.train.trainer import run_training
from tests.train.run_helpers import SimulatedCrash, changed, checkpoint_tensors, crash_at, untimed_lines


def test_a_run_that_crashed_and_resumed_equals_an_uninterrupted_one(
    finished: Path, settings: dict, tmp_path: Path, monkeypatch
):
    """To the bit: the same operations on the same numbers, on one CPU process."""
    resumed = changed(settings, run_dir=str(tmp_path / "resumed"))
    for num_updates in (6, 3):  # in step 6, after the checkpoint of 4; then in step 7, resumed from the same one
        with monkeypatch.context() as patch:
            crash_at(patch, num_updates)
            with pytest.raises(SimulatedCrash):
                run_training(load_config(resumed))
    assert run_training(load_config(resumed)).step == 12
    assert untimed_lines(resumed["run_dir"]) == untimed_lines(settings["run_dir"])
    assert checkpoint_tensors(resumed["run_dir"], 12) == checkpoint_tensors(settings["run_dir"], 12)
    for kind in ("eval", "fit"):
        assert read_run(resumed["run_dir"])[1][kind] == read_run(settings["run_dir"])[1][kind]
    resumes = [each for each in read_run(resumed["run_dir"])[1]["event"] if each["name"] == "resume"]
    assert len(resumes) == 1  # the first one's line was of the same step and dropped at the second


def test_the_record_of_a_run(settings: dict, capsys):
    run_training(load_config(settings))
    run, lines = read_run(settings["run_dir"])
    assert run["domains"] == ["easy", "medium", "hard"] or sorted(run["domains"]) == ["easy", "hard", "medium"]
    assert [line["step"] for line in lines["step"]] == list(range(12))
    assert [line["step"] for line in lines["eval"]] == [4, 8, 12]
    assert lines["fit"]
    for fit in lines["fit"]:
        assert fit["n"] == 8 * (fit["step"] + 1)
    for line in lines["step"]:
        assert sum(line["samples"]) == 8
        assert sum(line["domain_tokens"]) == 8 * 32
        assert sum(line["mixture"]) == pytest.approx(1.0, abs=1e-12)
        weights = np.array(line["domain_tokens"])
        present = weights > 0
        losses = np.array([np.nan if loss is None else loss for loss in line["domain_loss"]])
        assert line["loss"] == pytest.approx(np.average(losses[present], weights=weights[present]), rel=1e-12)
        assert set(line["time_s"]) == {"data", "forward_backward", "optimizer", "policy", "checkpoint", "total"}
    assert any(line["mixture"] != lines["step"][0]["mixture"] for line in lines["step"])
    assert "step     12/12" in capsys.readouterr().out


def test_sigterm_stops_after_the_step_with_a_checkpoint_to_resume_from(settings: dict, monkeypatch):
    update, calls = TrainStep.update, []

    def update_and_signal(self, *arguments):
        calls.append(None)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "update", update_and_signal)
        first = run_training(load_config(settings))
    assert (first.step, first.stopped) == (3, True)
    assert (Path(settings["run_dir"]) / "checkpoints" / "step_00000003" / "COMMIT.json").exists()
    second = run_training(load_config(settings))
    assert (second.step, second.stopped) == (12, False)
    assert [line["step"] for line in untimed_lines(settings["run_dir"])] == list(range(12))


@pytest.mark.parametrize(("every_steps", "step"), [(4, 4), (0, 12)])
def test_sigterm_in_a_validation_ends_it_after_the_current_pass(settings: dict, monkeypatch, every_steps, step):
    """Neither the other two passes nor another step are run. The resumed run begins with that validation."""
    settings["evaluate"]["every_steps"] = every_steps
    loss, passes = ParallelModel.loss, []

    def loss_and_signal(self, *arguments):
        if not torch.is_grad_enabled():
            passes.append(None)
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ParallelModel, "loss", loss_and_signal)
        result = run_training(load_config(settings))
    assert (result.step, result.stopped, len(passes)) == (step, True, 1)
    assert read_run(settings["run_dir"])[1]["eval"] == []
    result = run_training(load_config(settings))
    assert (result.step, result.stopped) == (12, False)
    assert read_run(settings["run_dir"])[1]["eval"][0]["step"] == step


def test_a_save_in_the_background_is_equal(finished: Path, settings: dict, tmp_path: Path):
    background = changed(settings, run_dir=str(tmp_path / "background"), checkpoint={"asynchronous": True})
    run_training(load_config(background))
    for step in (8, 12):
        assert checkpoint_tensors(background["run_dir"], step) == checkpoint_tensors(settings["run_dir"], step)


@pytest.mark.slow
def test_two_checkpoints_are_kept_and_resuming_at_the_older_renames_the_newer(settings: dict):
    run_training(load_config(settings))
    checkpoints = Path(settings["run_dir"]) / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step_00000008", "step_00000012"]
    before = untimed_lines(settings["run_dir"])
    run_training(load_config(settings), resume=checkpoints / "step_00000008")
    assert untimed_lines(settings["run_dir"]) == before
    assert (checkpoints / "abandoned_0_step_00000012").is_dir()
    assert run_training(load_config(settings), resume="none").step == 12
    assert untimed_lines(settings["run_dir"]) == before


@pytest.mark.slow
def test_a_restart_renames_the_old_record(settings: dict):
    run_training(load_config(settings))
    run_dir = Path(settings["run_dir"])
    before = [(run_dir / "record.jsonl").read_bytes()]
    for number in (0, 1):
        run_training(load_config(settings), resume="none")
        assert (run_dir / f"abandoned_{number}_record.jsonl").read_bytes() == before[number]
        before.append((run_dir / "record.jsonl").read_bytes())
    ids = {json.loads(text.splitlines()[0])["run_id"] for text in before}
    assert len(ids) == 3


def test_another_runs_checkpoint_starts_a_new_run(finished: Path, settings: dict, tmp_path: Path):
    """With its own id, record and checkpoint, even where no step is left; the first run is unchanged."""
    first, second = Path(settings["run_dir"]), tmp_path / "second"
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    for step in (8, 12):
        taken = first / "checkpoints" / f"step_{step:08d}"
        result = run_training(load_config(changed(settings, run_dir=str(second))), resume=taken)
        assert (result.step, result.stopped) == (12, False)
        assert checkpoint_tensors(second, 12) == checkpoint_tensors(first, 12)
        run, lines = read_run(second)
        assert run["run_id"] != read_run(first)[0]["run_id"]
        assert [line["step"] for line in lines["step"]] == list(range(step, 12))
        assert lines["event"][0]["detail"] == {"checkpoint": str(taken)}
    assert (second / "abandoned_0_record.jsonl").exists()
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before


def test_a_damaged_checkpoint_is_skipped_and_reported(finished: Path, settings: dict, capsys):
    steps, (file,) = untimed_lines(settings["run_dir"]), Path(settings["run_dir"]).glob("checkpoints/*12/*.safetensors")
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    capsys.readouterr()
    assert run_training(load_config(settings)).step == 12
    assert f"skipped checkpoint step_00000012: {file.name} has xxh64" in capsys.readouterr().out
    events = read_run(settings["run_dir"])[1]["event"]
    passed, resume = [each for each in events if each["step"] == 8 and each["name"] != "checkpoint"]
    assert passed["detail"]["fault"].startswith("step_00000012: ")
    assert resume["detail"]["checkpoint"].endswith("step_00000008")
    assert untimed_lines(settings["run_dir"]) == steps
    for file in Path(settings["run_dir"]).glob("checkpoints/step_*/state.json"):
        file.unlink()
    with pytest.raises(CheckpointError, match="no valid checkpoint: step_00000012: state.json is missing"):
        run_training(load_config(settings))


def test_a_resume_hashes_its_checkpoint_once(settings: dict, monkeypatch):
    run_training(load_config(changed(settings, train={"steps": 8})))
    find_fault, asked = checkpoint_commit.find_fault, []
    monkeypatch.setattr(
        checkpoint_commit, "find_fault", lambda directory: asked.append(directory.name) or find_fault(directory)
    )
    run_training(load_config(settings))
    run_training(load_config(settings), resume=Path(settings["run_dir"]) / "checkpoints" / "step_00000012")
    assert asked == ["step_00000008", "step_00000012"]


def test_a_nan_step_is_skipped_counted_and_kept_from_the_policy(settings: dict, monkeypatch):
    forward_backward, calls = TrainStep.forward_backward, []

    def poisoned(self, *arguments):
        sums, counts = forward_backward(self, *arguments)
        calls.append(None)
        if len(calls) in (3, 5):
            sums[0] = float("nan")
        return sums, counts

    monkeypatch.setattr(TrainStep, "forward_backward", poisoned)
    run_training(load_config(settings))
    lines = read_run(settings["run_dir"])[1]
    assert [line["step"] for line in lines["event"] if line["name"] == "skip"] == [2, 4]
    assert all(np.isfinite(line["mixture"]).all() for line in lines["step"])
    calls.clear()
    with pytest.raises(AdoStreamError, match="2 steps of this run were not finite, 'train.max_nonfinite' is 1"):
        run_training(load_config(changed(settings, train={"max_nonfinite": 1})), resume="none")


def test_another_model_or_corpus_is_refused(settings: dict):
    """A longer context is the same model: its parameters are."""
    settings = changed(settings, model={"context_length": 64})
    run_training(load_config(changed(settings, train={"steps": 6})))
    with pytest.raises(ResumeError, match="context_length 64 saved, 32 now"):
        run_training(load_config(changed(settings, model={"context_length": 32})))
    with pytest.raises(ResumeError, match="seed"):
        run_training(load_config(changed(settings, seed=18)))
    assert run_training(load_config(changed(settings, train={"steps": 7}, model={"context_length": 96}))).step == 7


def test_a_run_directory_that_cannot_be_created_is_named(settings: dict, tmp_path: Path):
    (tmp_path / "file").touch()
    for place, why in {"file": "File exists", "file/run": "Not a directory"}.items():
        with pytest.raises(StorageError) as caught:
            run_training(load_config(changed(settings, run_dir=str(tmp_path / place))))
        assert str(caught.value).startswith(
            f"'run_dir' is {tmp_path / place}: cannot be written: {why}.\n  Choose another"
        )


def test_the_files_of_a_run_directory(settings: dict):
    run_training(load_config(changed(settings, train={"steps": 2}, policy={"name": "natural", "options": {}})))
    kept = json.dumps(sorted(path.name for path in Path(settings["run_dir"]).iterdir()))
    assert kept == json.dumps([".lock", "checkpoints", "config.yaml", "record.jsonl"])
    assert load_config(Path(settings["run_dir"]) / CONFIG_FILE).train.steps == 2


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    "surrounding",
    [
        lambda: torch.device("meta"),
        lambda: default_dtype(torch.float64),
        lambda: default_dtype(torch.bfloat16),
        torch.inference_mode,
    ],
    ids=["meta", "float64", "bfloat16", "inference"],
)
def test_what_the_process_has_set_for_torch_changes_nothing(finished: Path, settings: dict, tmp_path, surrounding):
    """Neither training nor loading; to the bit, and what was set is still set afterwards."""
    other = changed(settings, run_dir=str(tmp_path / "other"))
    with surrounding():
        before = torch.get_default_device(), torch.get_default_dtype(), torch.is_inference_mode_enabled()
        run_training(load_config(other))
        loaded = open_run(other["run_dir"])
        assert before == (torch.get_default_device(), torch.get_default_dtype(), torch.is_inference_mode_enabled())
    assert untimed_lines(other["run_dir"]) == untimed_lines(settings["run_dir"])
    assert checkpoint_tensors(other["run_dir"], 12) == checkpoint_tensors(settings["run_dir"], 12)
    assert {(each.device.type, each.dtype, each.requires_grad) for each in loaded.model.parameters()} == {
        ("cpu", torch.float32, True)
    }
