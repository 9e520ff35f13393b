"""A run preempted ten times at random moments equals an uninterrupted one, to the bit."""

import random
import signal
import time
from pathlib import Path

import pytest

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


def num_steps(run_dir: Path) -> int:
    record = run_dir / "record.jsonl"
    return record.read_bytes().count(b'"kind":"step"') if record.exists() else 0


@pytest.mark.fault
def test_ten_preemptions_change_nothing(settings: dict, tmp_path: Path, children):
    """By SIGKILL, after which the steps since the last checkpoint are repeated, and by SIGTERM, which saves first."""
    whole, preempted = tmp_path / "whole", tmp_path / "preempted"
    children.run(train_tiny, long_run(settings, whole))
    generator = random.Random(3)
    numbers = [signal.SIGKILL, signal.SIGTERM] * (NUM_PREEMPTIONS // 2)
    generator.shuffle(numbers)
    for number in numbers:
        wanted = num_steps(preempted) + generator.randrange(6, 20)
        child = children.start(train_tiny, long_run(settings, preempted))
        while child.is_alive() and num_steps(preempted) < wanted:
            time.sleep(0.005)  # polling faster takes CPU time from the run
        time.sleep(generator.random() * 0.01)
        assert child.is_alive()
        child.kill() if number == signal.SIGKILL else child.terminate()
        child.join()
        assert child.exitcode == (-signal.SIGKILL if number == signal.SIGKILL else 0), child.log.read_text()
    assert num_steps(preempted) < NUM_STEPS
    children.run(train_tiny, long_run(settings, preempted))
    for kind in ("step", "fit", "eval"):
        assert untimed_lines(preempted, kind) == untimed_lines(whole, kind)
    assert checkpoint_tensors(preempted, NUM_STEPS) == checkpoint_tensors(whole, NUM_STEPS)
