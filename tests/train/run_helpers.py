"""What several tests of whole runs use: changed configs, a simulated crash, records and checkpoints to compare."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from ado_stream.record import read_run
from ado_stream.train.run_config import load_config
from ado_stream.train.train_step import TrainStep
from ado_stream.train.trainer import run_training


def changed(settings: dict, **sections: object) -> dict:
    """`settings` with some keys of some sections, or whole values, replaced."""
    result = dict(settings)
    for name, value in sections.items():
        result[name] = {**settings[name], **value} if isinstance(value, dict) else value
    return result


class SimulatedCrash(Exception):
    """Stands for kill -9: nothing is written after it."""


def crash_at(monkeypatch, num_updates: int) -> None:
    """The next run raises SimulatedCrash in its update number `num_updates`, counted from 0 in this process."""
    update, calls = TrainStep.update, []

    def crashing(self, *arguments):
        calls.append(None)
        if len(calls) == num_updates + 1:
            raise SimulatedCrash
        return update(self, *arguments)

    monkeypatch.setattr(TrainStep, "update", crashing)


def interrupt(settings: dict, monkeypatch) -> Path:
    """Runs until a crash in step 10; returns the newest checkpoint, that of step 8."""
    with monkeypatch.context() as patch:
        crash_at(patch, 10)
        with pytest.raises(SimulatedCrash):
            run_training(load_config(settings))
    return Path(settings["run_dir"]) / "checkpoints" / "step_00000008"


def untimed_lines(run_dir: str | Path, kind: str = "step") -> list[dict]:
    """The record's lines of `kind` without what depends on the clock."""
    clocks = ("time_s", "tokens_per_s")
    return [{key: each for key, each in line.items() if key not in clocks} for line in read_run(run_dir)[1][kind]]


def checkpoint_tensors(run_dir: str | Path, step: int) -> dict[str, list]:
    """Every tensor of a checkpoint, of all ranks' files, exactly."""
    files = (Path(run_dir) / "checkpoints" / f"step_{step:08d}").glob("*.safetensors")
    return {name: tensor.tolist() for file in files for name, tensor in load_file(file).items()}
