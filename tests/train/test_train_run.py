"""A whole run on one process: what it records, and that stopping and resuming it changes nothing."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ado_stream.errors import AdoStreamError, CheckpointError, ConfigError, ResumeError, StorageError
from ado_stream.record import read_run
from ado_stream.train import commit
from ado_stream.train import run as run_module
from ado_stream.train.config import load_config
from ado_stream.train.parallel import ParallelModel
from ado_stream.train.resume import find_beginning
from ado_stream.train.run import run_training
from ado_stream.train.step import TrainStep


def changed(settings: dict, **sections: object) -> dict:
    """`settings` with some keys of some sections, or whole values, replaced."""
    result = dict(settings)
    for name, value in sections.items():
        result[name] = {**settings[name], **value} if isinstance(value, dict) else value
    return result


def steps_of(run_dir: str | Path) -> list[dict]:
    """Step lines without their clocks."""
    lines = read_run(run_dir)[1]["step"]
    return [{key: value for key, value in line.items() if key not in ("time_s", "tokens_per_s")} for line in lines]


def tensors_of(run_dir: str | Path, step: int) -> dict[str, list]:
    """Every tensor in a checkpoint, exactly; the files' order of tensors is free."""
    (file,) = (Path(run_dir) / "checkpoints" / f"step_{step:08d}").glob("*.safetensors")
    return {name: tensor.tolist() for name, tensor in load_file(file).items()}


class Died(Exception):
    """Stands for kill -9: nothing after it is written."""


def dies_at(monkeypatch, step: int) -> None:
    """The next training dies inside its step `step`, counted from the start of that process."""
    update, calls = TrainStep.update, []

    def dying(self, *arguments):
        calls.append(None)
        if len(calls) > step:
            raise Died
        return update(self, *arguments)

    monkeypatch.setattr(TrainStep, "update", dying)


def test_a_run_that_died_and_resumed_equals_one_that_did_not(settings: dict, tmp_path: Path, monkeypatch):
    """To the bit: the same operations on the same numbers, on one CPU process."""
    whole = run_training(load_config(settings))
    assert (whole.step, whole.stopped) == (12, False)
    resumed = changed(settings, run_dir=str(tmp_path / "resumed"))
    for died_after in (6, 3):  # in step 6, after the checkpoint of 4; then in step 7, after the same one
        with monkeypatch.context() as patch:
            dies_at(patch, died_after)
            with pytest.raises(Died):
                run_training(load_config(resumed))
    assert run_training(load_config(resumed)).step == 12
    assert steps_of(resumed["run_dir"]) == steps_of(settings["run_dir"])
    assert tensors_of(resumed["run_dir"], 12) == tensors_of(settings["run_dir"], 12)
    for kind in ("eval", "fit"):
        assert read_run(resumed["run_dir"])[1][kind] == read_run(settings["run_dir"])[1][kind]
    resumes = [each for each in read_run(resumed["run_dir"])[1]["event"] if each["name"] == "resume"]
    assert len(resumes) == 1  # the earlier one spoke of the same step and was dropped with it


def test_the_record_says_what_happened(settings: dict, capsys):
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


def test_sigterm_stops_after_the_step_saves_and_the_run_goes_on(settings: dict, monkeypatch):
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
    assert [line["step"] for line in steps_of(settings["run_dir"])] == list(range(12))


@pytest.mark.parametrize(("every_steps", "step"), [(4, 4), (0, 12)])
def test_sigterm_in_a_validation_ends_it_after_the_pass_under_way(settings: dict, monkeypatch, every_steps, step):
    """It was to be three passes; neither they nor another step are waited for. The run goes on with that validation."""
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


def test_saving_in_the_background_saves_the_same(settings: dict, tmp_path: Path):
    run_training(load_config(settings))
    background = changed(settings, run_dir=str(tmp_path / "background"), checkpoint={"asynchronous": True})
    run_training(load_config(background))
    for step in (8, 12):
        assert tensors_of(background["run_dir"], step) == tensors_of(settings["run_dir"], step)


@pytest.mark.slow
def test_two_checkpoints_are_kept_and_resuming_at_an_older_one_sets_the_newer_aside(settings: dict):
    run_training(load_config(settings))
    checkpoints = Path(settings["run_dir"]) / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step_00000008", "step_00000012"]
    before = steps_of(settings["run_dir"])
    run_training(load_config(settings), resume=checkpoints / "step_00000008")
    assert steps_of(settings["run_dir"]) == before
    assert (checkpoints / "abandoned_0_step_00000012").is_dir()
    assert run_training(load_config(settings), resume="none").step == 12
    assert steps_of(settings["run_dir"]) == before


@pytest.mark.slow
def test_starting_anew_keeps_the_record_of_before(settings: dict):
    run_training(load_config(settings))
    run_dir = Path(settings["run_dir"])
    before = [(run_dir / "record.jsonl").read_bytes()]
    for number in (0, 1):
        run_training(load_config(settings), resume="none")
        assert (run_dir / f"abandoned_{number}_record.jsonl").read_bytes() == before[number]
        before.append((run_dir / "record.jsonl").read_bytes())
    ids = {json.loads(text.splitlines()[0])["run_id"] for text in before}
    assert len(ids) == 3


def test_another_runs_checkpoint_starts_a_run_of_its_own(settings: dict, tmp_path: Path):
    """Under its own id, in its own record, and with a checkpoint even where no step is left; the first stays as is."""
    run_training(load_config(settings))
    first, second = Path(settings["run_dir"]), tmp_path / "second"
    left = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    for step in (8, 12):
        taken = first / "checkpoints" / f"step_{step:08d}"
        result = run_training(load_config(changed(settings, run_dir=str(second))), resume=taken)
        assert (result.step, result.stopped) == (12, False)
        assert tensors_of(second, 12) == tensors_of(first, 12)
        run, lines = read_run(second)
        assert run["run_id"] != read_run(first)[0]["run_id"]
        assert [line["step"] for line in lines["step"]] == list(range(step, 12))
        assert lines["event"][0]["detail"] == {"checkpoint": str(taken)}
    assert (second / "abandoned_0_record.jsonl").exists()
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == left


def test_a_torn_checkpoint_is_passed_over_and_said_so(settings: dict, capsys):
    run_training(load_config(settings))
    steps, (file,) = steps_of(settings["run_dir"]), Path(settings["run_dir"]).glob("checkpoints/*12/*.safetensors")
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    capsys.readouterr()
    assert run_training(load_config(settings)).step == 12
    assert f"passed over step_00000012: {file.name} has xxh64" in capsys.readouterr().out
    events = read_run(settings["run_dir"])[1]["event"]
    passed, resume = [each for each in events if each["step"] == 8 and each["name"] != "checkpoint"]
    assert passed["detail"]["fault"].startswith("step_00000012: ")
    assert resume["detail"]["checkpoint"].endswith("step_00000008")
    assert steps_of(settings["run_dir"]) == steps
    for torn in Path(settings["run_dir"]).glob("checkpoints/step_*/state.json"):
        torn.unlink()
    with pytest.raises(CheckpointError, match="no checkpoint can be trusted: step_00000012: state.json is missing"):
        run_training(load_config(settings))


def test_a_resume_hashes_its_checkpoint_once(settings: dict, monkeypatch):
    run_training(load_config(changed(settings, train={"steps": 8})))
    fault_of, asked = commit.fault_of, []
    monkeypatch.setattr(commit, "fault_of", lambda directory: asked.append(directory.name) or fault_of(directory))
    run_training(load_config(settings))
    run_training(load_config(settings), resume=Path(settings["run_dir"]) / "checkpoints" / "step_00000012")
    assert asked == ["step_00000008", "step_00000012"]


def test_a_nan_is_skipped_counted_and_kept_from_the_policy(settings: dict, monkeypatch):
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
    run_training(load_config(changed(settings, train={"steps": 6})))
    with pytest.raises(ResumeError, match="context_length 32 there, 64 here"):
        run_training(load_config(changed(settings, model={"context_length": 64})))
    with pytest.raises(ResumeError, match="seed"):
        run_training(load_config(changed(settings, seed=18)))


def test_an_explicit_checkpoint_must_be_sound(settings: dict, tmp_path: Path):
    torn = tmp_path / "step_00000003"
    torn.mkdir()
    with pytest.raises(CheckpointError, match="COMMIT.json is missing; its save was not finished"):
        run_training(load_config(settings), resume=torn)


def test_what_resume_names_must_be_a_checkpoint(settings: dict, tmp_path: Path):
    """Not the place of one: which of its checkpoints is meant is for the user to say."""
    folders = {
        "absent": "no such directory. Name a checkpoint, such as RUN/checkpoints/step_00000300, or auto.",
        "run": f"not a checkpoint; it holds some. Name one of them, such as {tmp_path}/run/checkpoints/step_00000008.",
        "run/checkpoints": f"not a checkpoint; it holds some. Name one of them, such as {tmp_path}/run/checkpoints/",
        "empty": "not a checkpoint directory; expected a name such as step_00000300.",
    }
    for name in ("run/checkpoints/step_00000004", "run/checkpoints/step_00000008", "empty"):
        (tmp_path / name).mkdir(parents=True)
    for name, message in folders.items():
        with pytest.raises(CheckpointError) as caught:
            find_beginning(tmp_path / "new", str(tmp_path / name))
        assert str(caught.value).startswith(f"{tmp_path / name}: {message}")


def test_a_run_directory_that_cannot_be_is_named(settings: dict, tmp_path: Path):
    (tmp_path / "file").touch()
    for place, why in {"file": "File exists", "file/run": "Not a directory"}.items():
        with pytest.raises(StorageError) as caught:
            run_training(load_config(changed(settings, run_dir=str(tmp_path / place))))
        assert str(caught.value) == f"'run_dir' is {tmp_path / place}: no run can be kept there: {why}."


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"model": {"preset": "3B"}}, "'model.preset' is '3B'; choose one of nano, 70M, 124M, 1.3B, micro"),
        ({"model": {"context_length": 16}}, "prepare the corpus with --seq-len 16"),
        ({"model": {"vocab_size": 100}}, "the corpus has 257 tokens; raise it"),
        ({"policy": {"prior": {"easy": 1.0}}}, "differ in: hard, medium"),
        ({"policy": {"guards": [{"value": 1}]}}, "each guard needs a name"),
        ({"data": {"cache_limit": "much"}}, "'data.cache_limit' is 'much'; give bytes"),
        ({"train": {"device": "warp"}}, "device 'warp': use auto"),
    ],
)
def test_settings_that_cannot_work(settings: dict, section: dict, message: str):
    with pytest.raises(ConfigError) as caught:
        run_training(load_config(changed(settings, **section)))
    assert message in str(caught.value)


def test_rank_without_a_launcher_is_refused(settings: dict, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match="torchrun --nproc-per-node"):
        run_training(load_config(settings))


def test_the_module_names_where_a_run_keeps_its_things(settings: dict):
    run_training(load_config(changed(settings, train={"steps": 2}, policy={"name": "natural", "options": {}})))
    kept = json.dumps(sorted(path.name for path in Path(settings["run_dir"]).iterdir()))
    assert kept == json.dumps(["checkpoints", "config.yaml", "record.jsonl"])
    assert load_config(Path(settings["run_dir"]) / run_module.CONFIG_FILE).train.steps == 2
