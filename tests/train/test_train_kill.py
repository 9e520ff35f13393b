"""A run preempted ten times at random moments equals one that was left alone, to the bit."""

import random
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ado_stream.record import read_run
from tests.train.micro import train_micro

NUM_PREEMPTIONS = 10
NUM_STEPS = 200


def settings_of(settings: dict, run_dir: Path) -> dict:
    return {
        **settings,
        "run_dir": str(run_dir),
        "train": {**settings["train"], "steps": NUM_STEPS},
        "checkpoint": {"every_steps": 5},
    }


def num_steps(run_dir: Path) -> int:
    record = run_dir / "record.jsonl"
    return record.read_bytes().count(b'"kind":"step"') if record.exists() else 0


def lines_of(run_dir: Path) -> dict[str, list[dict]]:
    """Step, fit and eval lines without their clocks."""
    kinds = read_run(run_dir)[1]
    clocks = ("time_s", "tokens_per_s")
    return {
        kind: [{key: value for key, value in line.items() if key not in clocks} for line in kinds[kind]]
        for kind in ("step", "fit", "eval")
    }


@pytest.mark.fault
def test_ten_preemptions_change_nothing(settings: dict, tmp_path: Path, forked):
    """By SIGKILL, which leaves the steps since the last checkpoint to be done again, and by SIGTERM, which saves."""
    whole, preempted = tmp_path / "whole", tmp_path / "preempted"
    forked.run(train_micro, settings_of(settings, whole))
    generator = random.Random(3)
    numbers = [signal.SIGKILL, signal.SIGTERM] * (NUM_PREEMPTIONS // 2)
    generator.shuffle(numbers)
    for number in numbers:
        wanted = num_steps(preempted) + generator.randrange(6, 20)
        child = forked.start(train_micro, settings_of(settings, preempted))
        while child.is_alive() and num_steps(preempted) < wanted:
            time.sleep(0.005)  # not less: whoever watches takes a core from whom he watches
        time.sleep(generator.random() * 0.01)
        assert child.is_alive()
        child.kill() if number == signal.SIGKILL else child.terminate()
        child.join()
        assert child.exitcode == (-signal.SIGKILL if number == signal.SIGKILL else 0), child.log.read_text()
    assert num_steps(preempted) < NUM_STEPS
    forked.run(train_micro, settings_of(settings, preempted))
    assert lines_of(preempted) == lines_of(whole)
    (one,), (other,) = (
        (folder / "checkpoints" / f"step_{NUM_STEPS:08d}").glob("*.safetensors") for folder in (whole, preempted)
    )
    expected, found = load_file(one), load_file(other)
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].tolist() == expected[name].tolist(), name
