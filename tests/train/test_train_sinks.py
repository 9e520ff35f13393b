"""TensorBoard and Weights & Biases get the record's numbers; a resumed run goes on in the same curves, by its id."""

import sys
from pathlib import Path

import numpy as np
import pytest

from ado_stream.errors import ConfigError
from ado_stream.record import read_run
from ado_stream.train.config import load_config
from ado_stream.train.run import run_training


def train_in_two_parts(settings: dict, monkeypatch, sink: str) -> dict[str, list[dict]]:
    """Twelve steps; the first process dies in the ninth. Returns the record's lines."""
    from ado_stream.train.step import TrainStep

    settings["log"] = {"every_steps": 1, sink: True}
    update, calls = TrainStep.update, []

    def dying(self, *arguments):
        calls.append(None)
        if len(calls) == 9:
            raise KeyError("died")
        return update(self, *arguments)

    monkeypatch.setattr(TrainStep, "update", dying)
    settings["checkpoint"]["every_steps"] = 5
    with pytest.raises(KeyError):
        run_training(load_config(settings))
    run_training(load_config(settings))
    return read_run(settings["run_dir"])[1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # TensorBoard's own
def test_tensorboard_holds_every_step_once(settings: dict, monkeypatch):
    from tensorboard.backend.event_processing import event_accumulator as events

    lines = train_in_two_parts(settings, monkeypatch, "tensorboard")
    found = events.EventAccumulator(str(Path(settings["run_dir"]) / "tensorboard")).Reload()
    losses = found.Scalars("loss")
    assert [point.step for point in losses] == list(range(12))
    assert [point.value for point in losses] == pytest.approx([line["loss"] for line in lines["step"]])  # float32
    shares = [point.value for point in found.Scalars("mixture/easy")]
    run = read_run(settings["run_dir"])[0]
    place = run["domains"].index("easy")
    assert shares == pytest.approx([line["mixture"][place] for line in lines["step"]])
    drawn = np.cumsum([line["samples"][place] for line in lines["step"]])
    assert [point.value for point in found.Scalars("tokens/easy")] == pytest.approx(drawn * 32)
    (size,) = {domain["samples"] for name, domain in run["corpus"]["domains"].items() if name == "easy"}
    assert [point.value for point in found.Scalars("epochs/easy")] == pytest.approx(drawn / size)
    for name, kind, key in (("val_domain_loss/easy", "eval", "domain_loss"), ("alpha/easy", "fit", "alpha")):
        points = [(point.step, point.value) for point in found.Scalars(name)]
        assert points == [(line["step"], pytest.approx(line[key][place])) for line in lines[kind]], name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Weights & Biases' own
def test_wandb_keeps_the_runs_id_over_a_resume(settings: dict, monkeypatch):
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true"), ("WANDB_DIR", settings["run_dir"])):
        monkeypatch.setenv(name, value)
    train_in_two_parts(settings, monkeypatch, "wandb")
    run_id = read_run(settings["run_dir"])[0]["run_id"]
    parts = sorted((Path(settings["run_dir"]) / "wandb").glob("offline-run-*"))
    assert len(parts) == 2
    for part in parts:
        assert part.name.endswith(run_id)
        assert (part / f"run-{run_id}.wandb").stat().st_size > 0


class StandIn:
    """What of `wandb` the sink uses; notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple] = []

    def init(self, **options):
        self.told.append(("project", options["project"]))
        return self

    def define_metric(self, *arguments, **options):
        pass

    def log(self, values):
        pass

    def finish(self, exit_code):
        self.told.append(("exit_code", exit_code))


def test_wandb_is_told_of_a_crash_and_of_the_users_project(settings: dict, monkeypatch):
    wandb = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    train_in_two_parts(settings, monkeypatch, "wandb")
    assert wandb.told == [("project", "ado-stream"), ("exit_code", 1), ("project", "ado-stream"), ("exit_code", 0)]
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    run_training(load_config(settings))
    assert wandb.told[4:] == [("project", "mine"), ("exit_code", 0)]


@pytest.mark.parametrize(("sink", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_named_with_its_command(settings: dict, monkeypatch, sink: str, module: str):
    monkeypatch.setitem(sys.modules, module, None)
    settings["log"] = {"every_steps": 1, sink: True}
    with pytest.raises(ConfigError, match=rf"'log.{sink}' needs .* pip install 'ado-stream\[{sink}\]'"):
        run_training(load_config(settings))
