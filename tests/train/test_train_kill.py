"""A run preempted at random moments, in one stage or in three, equals an uninterrupted one, to the bit."""

import os
import random
import signal
import threading
from pathlib import Path

import pytest

from ado_stream.train.train_step import TrainStep
from tests.train.run_helpers import checkpoint_tensors, untimed_lines
from tests.train.tiny_model import train_tiny

STAGES = [
    {"steps": 17, "seq_len": 16, "global_batch_size": 16},
    {"steps": 18, "mixture": "uniform", "learning_rate_end": 1e-3},
    {"steps": 25, "seq_len": 64, "global_batch_size": 4},
]


def long_run(settings: dict, run_dir: Path, num_steps: int, stages: list[dict]) -> dict:
    train = {"device": "cpu", "warmup_steps": 10, "steps": num_steps}
    return {**settings, "run_dir": str(run_dir), "train": train, "stages": stages, "checkpoint": {"every_steps": 5}}


def train_until_preempted(settings: dict, number: signal.Signals, num_updates: int, delay_s: float) -> None:
    """Trains, and sends itself a signal so long after the beginning of that update, counted from 1 in this process."""
    update, calls = TrainStep.update, []

    def counted(self, *arguments):
        calls.append(None)
        if len(calls) == num_updates:
            threading.Timer(delay_s, os.kill, (os.getpid(), number)).start()
        return update(self, *arguments)

    TrainStep.update = counted
    train_tiny(settings)


@pytest.mark.fault
@pytest.mark.parametrize(("num_preemptions", "num_steps", "stages"), [(10, 200, []), (4, 60, STAGES)])
def test_preemptions_change_nothing(settings: dict, tmp_path: Path, children, num_preemptions, num_steps, stages):
    """By SIGKILL, after which the steps since the last checkpoint are repeated, and by SIGTERM, which saves first."""
    whole = long_run(settings, tmp_path / "whole", num_steps, stages)
    preempted = long_run(settings, tmp_path / "preempted", num_steps, stages)
    children.run(train_tiny, whole)
    generator = random.Random(3)
    numbers = [signal.SIGKILL, signal.SIGTERM] * (num_preemptions // 2)
    generator.shuffle(numbers)
    for number in numbers:
        moment = generator.randrange(6, 18), 0.02 * generator.random()
        child = children.start(train_until_preempted, preempted, number, *moment)
        child.join()
        assert child.exitcode == (-signal.SIGKILL if number == signal.SIGKILL else 0), child.log.read_text()
    assert len(untimed_lines(preempted["run_dir"])) < num_steps
    children.run(train_tiny, preempted)
    for kind in ("step", "fit", "eval"):
        assert untimed_lines(preempted["run_dir"], kind) == untimed_lines(whole["run_dir"], kind)
    assert checkpoint_tensors(preempted["run_dir"], num_steps) == checkpoint_tensors(whole["run_dir"], num_steps)
