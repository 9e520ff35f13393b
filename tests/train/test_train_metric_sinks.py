"""TensorBoard and Weights & Biases get the record's values; a resumed run continues the same curves."""

import sys
from pathlib import Path

import numpy as np
import pytest

from ado_stream.errors import ConfigError
from ado_stream.record import read_run
from ado_stream.train.run_config import load_config
from ado_stream.train.trainer import run_training
from tests.train.run_helpers import SimulatedCrash, changed, crash_at


def crash_and_resume(settings: dict, monkeypatch, sink: str) -> dict[str, list[dict]]:
    """Twelve steps; the first process crashes in the ninth. Returns the record's lines."""
    config = load_config(changed(settings, log={"every_steps": 1, sink: True}, checkpoint={"every_steps": 5}))
    with monkeypatch.context() as patch:
        crash_at(patch, 8)
        with pytest.raises(SimulatedCrash):
            run_training(config)
    run_training(config)
    return read_run(settings["run_dir"])[1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # TensorBoard's own
def test_tensorboard_holds_every_step_once(settings: dict, monkeypatch):
    from tensorboard.backend.event_processing import event_accumulator as events

    lines = crash_and_resume(settings, monkeypatch, "tensorboard")
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
def test_wandb_keeps_the_runs_id_after_a_resume(settings: dict, monkeypatch):
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true"), ("WANDB_DIR", settings["run_dir"])):
        monkeypatch.setenv(name, value)
    crash_and_resume(settings, monkeypatch, "wandb")
    run_id = read_run(settings["run_dir"])[0]["run_id"]
    parts = sorted((Path(settings["run_dir"]) / "wandb").glob("offline-run-*"))
    assert len(parts) == 2
    for part in parts:
        assert part.name.endswith(run_id)
        assert (part / f"run-{run_id}.wandb").stat().st_size > 0


class FakeWandb:
    """The part of `wandb` that the sink uses; records its calls."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def init(self, **options):
        self.calls.append(("project", options["project"]))
        return self

    def define_metric(self, *arguments, **options):
        pass

    def log(self, values):
        pass

    def finish(self, exit_code):
        self.calls.append(("exit_code", exit_code))


def test_wandb_gets_the_exit_code_and_the_users_project(settings: dict, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    crash_and_resume(settings, monkeypatch, "wandb")
    assert wandb.calls == [("project", "ado-stream"), ("exit_code", 1), ("project", "ado-stream"), ("exit_code", 0)]
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    run_training(load_config(changed(settings, run_dir=settings["run_dir"] + "-2", log={"wandb": True})))
    assert wandb.calls[4:] == [("project", "mine"), ("exit_code", 0)]


@pytest.mark.parametrize(("sink", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_named_with_its_command(settings: dict, monkeypatch, sink: str, module: str):
    monkeypatch.setitem(sys.modules, module, None)
    settings["log"] = {"every_steps": 1, sink: True}
    with pytest.raises(ConfigError, match=rf"'log.{sink}' needs .* pip install 'ado-stream\[{sink}\]'"):
        run_training(load_config(settings))


def test_a_login_that_fails_is_one_line(settings: dict, monkeypatch):
    wandb = FakeWandb()

    def fail(**options):
        raise wandb.Error("No API key configured. Use `wandb login` to log in.")

    wandb.init = fail
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(ConfigError, match=r"(?s)'log.wandb': No API key configured.* WANDB_MODE=offline"):
        run_training(load_config(changed(settings, log={"wandb": True})))
