"""Lines of the step log: what counts as a step's time, what the console shows, which domains changed most."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ado_stream.loader import AdaptiveLoader
from ado_stream.record import RunRecord, read_run
from ado_stream.train import trainer as trainer_module
from ado_stream.train.run_config import load_config
from ado_stream.train.step_log import LaunchedStep, LogOptions, StepLog, largest_changes
from ado_stream.train.step_timer import StepTimer
from ado_stream.train.train_step import StepOutcome, TrainStep
from ado_stream.train.trainer import run_training
from ado_stream.train.validation import Validator
from tests.train.hot_loop import ONE_CPU


def push(log: StepLog, step: int, num_tokens: int = 100) -> None:
    """Pushes a step that starts now."""
    one, tokens = torch.ones(1, dtype=torch.float64), torch.full((1,), float(num_tokens), dtype=torch.float64)
    share_K, samples_K = np.ones(1), np.ones(1, np.int64)
    launched = LaunchedStep(step, share_K, samples_K, samples_K, 0.1, StepTimer(ONE_CPU.device))
    log.push(launched, StepOutcome(one, tokens, one.sum(), torch.tensor(True)))


def test_a_step_lasts_until_the_next_one_starts_or_the_log_is_flushed(fake_clock, tmp_path: Path, capsys):
    """The first step takes 50 s (it compiles), the others 2 s; between steps 2 and 3 100 s pass in validation."""
    options = LogOptions(["one"], np.ones(1), 1, total_steps=5, every_steps=2, max_nonfinite=0)
    with RunRecord(tmp_path) as record:
        log = StepLog(ONE_CPU, record, [], options)
        for step, seconds in enumerate((50.0, 2.0, 2.0, 2.0, 2.0)):
            push(log, step)
            fake_clock.now += seconds
            if step == 2:
                log.flush()
                fake_clock.now += 100.0
        log.flush()
    lines = [json.loads(line) for line in (tmp_path / "record.jsonl").read_text().splitlines()]
    assert [line["time_s"]["total"] for line in lines] == [50.0, 2.0, 2.0, 2.0, 2.0]
    assert [line["tokens_per_s"] for line in lines] == [2.0, 50.0, 50.0, 50.0, 50.0]
    console = capsys.readouterr().out.splitlines()
    assert len(console) == 3
    assert "tokens/s" not in console[0]
    assert all("  50 tokens/s" in line for line in console[1:])


def test_a_sink_gets_names_that_its_console_may_print():
    class Sink:
        def write_scalars(self, step, values):
            self.values = values

    sink = Sink()
    options = LogOptions(["a\x1b]52;c;x\x07\n"], np.ones(1), 1, total_steps=5, every_steps=2, max_nonfinite=0)
    StepLog(ONE_CPU, None, [sink], options).write_scalars(3, {"loss": 1.0}, mixture=np.ones(1))
    assert sink.values == {"loss": 1.0, r"mixture/a\x1b]52;c;x\x07\n": 1.0}


@pytest.mark.deadline
def test_validation_does_not_count_as_a_steps_time(settings: dict, monkeypatch):
    """Nor does reading its samples: the previous step was written first, which ends its time."""

    class Slow(Validator):
        def __init__(self, *arguments, **options):
            time.sleep(1.0)
            super().__init__(*arguments, **options)

    settings["checkpoint"]["every_steps"] = 0
    monkeypatch.setattr(trainer_module, "Validator", Slow)
    run_training(load_config(settings))
    assert read_run(settings["run_dir"])[1]["step"][3]["time_s"]["total"] < 1.0
    lines = [json.loads(line) for line in (Path(settings["run_dir"]) / "record.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        if line["kind"] == "eval":
            steps = [each["step"] for each in lines[:number] if each["kind"] == "step"]
            assert steps == list(range(line["step"]))


@pytest.mark.deadline
def test_waiting_for_the_device_does_not_count_as_the_policys_time(settings: dict, monkeypatch):
    """The first reader of a step's results waits 0.3 s for it; that must be the log."""
    push, observe, wait_s, running = StepLog.push, AdaptiveLoader.observe, 0.3, []

    def waits(call):
        def called(*arguments, **options):
            if running:
                running.clear()
                time.sleep(wait_s)
            return call(*arguments, **options)

        return called

    def update(self, *arguments):
        running.append(None)
        return updates(self, *arguments)

    updates = TrainStep.update
    monkeypatch.setattr(TrainStep, "update", update)
    monkeypatch.setattr(StepLog, "push", waits(push))
    monkeypatch.setattr(AdaptiveLoader, "observe", waits(observe))
    settings["train"]["steps"] = 6
    run_training(load_config(settings))
    for line in read_run(settings["run_dir"])[1]["step"]:
        assert line["time_s"]["total"] > wait_s
        assert line["time_s"]["policy"] < wait_s


def test_the_largest_changes_in_percentage_points():
    names, before_K = ["a", "b", "c", "d", "e"], np.array([0.2, 0.2, 0.2, 0.2, 0.2])
    now_K = np.array([0.25, 0.08, 0.2004, 0.29, 0.1796])
    assert largest_changes(names, before_K, now_K) == ["b -12.0", "d +9.0", "a +5.0"]
    assert largest_changes(names, before_K, np.array([0.2, 0.2, 0.2004, 0.2002, 0.1994])) == []
    assert largest_changes(names, None, now_K) == []
