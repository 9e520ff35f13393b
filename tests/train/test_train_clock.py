"""Seconds of a step: on a GPU those of the device, found without waiting; and of a run, what counts as training."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ado_stream.loader import AdaptiveLoader
from ado_stream.record import RunRecord, read_run
from ado_stream.train import clock as clock_module
from ado_stream.train import run as run_module
from ado_stream.train import steplog as steplog_module
from ado_stream.train.clock import StepClock
from ado_stream.train.config import load_config
from ado_stream.train.distributed import World
from ado_stream.train.run import run_training
from ado_stream.train.step import StepOutcome, TrainStep
from ado_stream.train.steplog import LogOptions, StepFacts, StepLog, largest_moves
from ado_stream.train.validation import Validator

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ALONE = World(0, 1, CPU)


class Host:
    """A clock of the host that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


class Event:
    """torch.cuda.Event of a device that is `behind` the host by some milliseconds, and on which nobody waits."""

    device_ms = 0.0

    def __init__(self, enable_timing: bool):
        assert enable_timing

    def record(self) -> None:
        self.at = Event.device_ms

    def elapsed_time(self, other: "Event") -> float:
        return other.at - self.at


@pytest.fixture
def host(monkeypatch) -> Host:
    host = Host()
    monkeypatch.setattr(clock_module, "time", host)
    monkeypatch.setattr(steplog_module, "time", host)
    return host


def test_on_a_gpu_the_devices_time_is_read_and_the_hosts_launches_are_not(host: Host, monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = StepClock(GPU, checkpoint_s=2.0)
    with clock.host("data"):
        host.now += 0.5
    with clock.device("forward_backward"):
        host.now += 0.001
        Event.device_ms += 300.0
    with clock.device("optimizer"):
        host.now += 0.001
        Event.device_ms += 20.0
    with clock.host("policy"):
        host.now += 0.25
    found = clock.seconds(ended=clock.started + 1.0)
    expected = {"data": 0.5, "forward_backward": 0.3, "optimizer": 0.02, "policy": 0.25, "checkpoint": 2.0}
    assert found == pytest.approx({**expected, "total": 3.0})  # floating-point seconds around 100


def test_on_a_cpu_every_part_is_the_hosts(host: Host):
    clock = StepClock(CPU)
    with clock.device("forward_backward"):
        host.now += 0.5
    assert clock.seconds(host.now) == {"forward_backward": 0.5, "checkpoint": 0.0, "total": 0.5}


def push(log: StepLog, step: int, num_tokens: int = 100) -> None:
    """A step that starts now."""
    one, tokens = torch.ones(1, dtype=torch.float64), torch.full((1,), float(num_tokens), dtype=torch.float64)
    share_K, samples_K = np.ones(1), np.ones(1, np.int64)
    facts = StepFacts(step, share_K, samples_K, samples_K, 0.1, StepClock(CPU))
    log.push(facts, StepOutcome(one, tokens, one.sum(), torch.tensor(True)))


def test_a_step_lasts_until_the_next_one_starts_or_the_log_is_flushed(host: Host, tmp_path: Path, capsys):
    """The first step takes 50 s (it compiles), the others 2 s; between steps 2 and 3 100 s pass in validation."""
    options = LogOptions(["one"], np.ones(1), 1, total_steps=5, every_steps=2, max_nonfinite=0)
    with RunRecord(tmp_path) as record:
        log = StepLog(ALONE, record, [], options)
        for step, seconds in enumerate((50.0, 2.0, 2.0, 2.0, 2.0)):
            push(log, step)
            host.now += seconds
            if step == 2:
                log.flush()
                host.now += 100.0
        log.flush()
    lines = [json.loads(line) for line in (tmp_path / "record.jsonl").read_text().splitlines()]
    assert [line["time_s"]["total"] for line in lines] == [50.0, 2.0, 2.0, 2.0, 2.0]
    assert [line["tokens_per_s"] for line in lines] == [2.0, 50.0, 50.0, 50.0, 50.0]
    console = capsys.readouterr().out.splitlines()
    assert len(console) == 3
    assert "tokens/s" not in console[0]
    assert all("  50 tokens/s" in line for line in console[1:])


@pytest.mark.deadline
def test_validation_is_in_no_steps_time(settings: dict, monkeypatch):
    """Nor is reading its samples: the step before was written first, so its time had ended."""

    class Slow(Validator):
        def __init__(self, *arguments):
            time.sleep(1.0)
            super().__init__(*arguments)

    settings["checkpoint"]["every_steps"] = 0
    monkeypatch.setattr(run_module, "Validator", Slow)
    run_training(load_config(settings))
    assert read_run(settings["run_dir"])[1]["step"][3]["time_s"]["total"] < 1.0
    lines = [json.loads(line) for line in (Path(settings["run_dir"]) / "record.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        if line["kind"] == "eval":
            steps = [each["step"] for each in lines[:number] if each["kind"] == "step"]
            assert steps == list(range(line["step"]))


@pytest.mark.deadline
def test_waiting_for_the_device_is_not_the_policys_time(settings: dict, monkeypatch):
    """Whoever asks first waits for a step that takes 0.3 s; that must be the log."""
    push, observe, wait_s, under_way = StepLog.push, AdaptiveLoader.observe, 0.3, []

    def waits(call):
        def called(*arguments, **options):
            if under_way:
                under_way.clear()
                time.sleep(wait_s)
            return call(*arguments, **options)

        return called

    def update(self, *arguments):
        under_way.append(None)
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


def test_the_largest_moves_are_named_in_points():
    names, before_K = ["a", "b", "c", "d", "e"], np.array([0.2, 0.2, 0.2, 0.2, 0.2])
    now_K = np.array([0.25, 0.08, 0.2004, 0.29, 0.1796])
    assert largest_moves(names, before_K, now_K) == ["b -12.0", "d +9.0", "a +5.0"]
    assert largest_moves(names, before_K, np.array([0.2, 0.2, 0.2004, 0.2002, 0.1994])) == []
    assert largest_moves(names, None, now_K) == []
