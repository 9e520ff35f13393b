"""A run preempted ten times at random moments equals an uninterrupted one, to the bit."""

import os
import random
import signal
import threading
from pathlib import Path

import pytest

from ado_stream.train.train_step import TrainStep
from tests.train.run_helpers import checkpoint_tensors, untimed_lines
from tests.train.tiny_model import train_tiny

NUM_PREEMPTIONS = 10
NUM_STEPS = 200


def long_run(settings: dict, run_dir: Path) -> dict:
    return {
        **settings,
        "run_dir": str(run_dir),
        "train": {**settings["train"], "steps": NUM_STEPS},
        "checkpoint": {"every_steps": 5},
    }


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
def test_ten_preemptions_change_nothing(settings: dict, tmp_path: Path, children):
    """By SIGKILL, after which the steps since the last checkpoint are repeated, and by SIGTERM, which saves first."""
    whole, preempted = tmp_path / "whole", tmp_path / "preempted"
    children.run(train_tiny, long_run(settings, whole))
    generator = random.Random(3)
    numbers = [signal.SIGKILL, signal.SIGTERM] * (NUM_PREEMPTIONS // 2)
    generator.shuffle(numbers)
    for number in numbers:
        moment = generator.randrange(6, 18), 0.02 * generator.random()
        child = children.start(train_until_preempted, long_run(settings, preempted), number, *moment)
        child.join()
        assert child.exitcode == (-signal.SIGKILL if number == signal.SIGKILL else 0), child.log.read_text()
    assert len(untimed_lines(preempted)) < NUM_STEPS
    children.run(train_tiny, long_run(settings, preempted))
    for kind in ("step", "fit", "eval"):
        assert untimed_lines(preempted, kind) == untimed_lines(whole, kind)
    assert checkpoint_tensors(preempted, NUM_STEPS) == checkpoint_tensors(whole, NUM_STEPS)
