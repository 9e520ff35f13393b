"""A run killed with SIGKILL ten times at random moments equals one that was left alone, to the bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ado_stream.record import read_run

NUM_KILLS = 10


def train(settings_path: str) -> None:
    """What a killed process was doing: training from its newest checkpoint."""
    from ado_model import PRESETS, ModelConfig
    from ado_stream.train.config import load_config
    from ado_stream.train.run import run_training

    PRESETS["micro"] = ModelConfig(num_layers=1, width=16, num_heads=1)
    run_training(load_config(json.loads(Path(settings_path).read_text())))


@pytest.fixture
def start():
    """Starts this file with a settings file in a process of its own."""

    def start(path: Path) -> subprocess.Popen:
        root = Path(__file__).parents[2]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(str(root / part) for part in (".", "kernels", "model"))
        return subprocess.Popen([sys.executable, __file__, str(path)], env=environment, stdout=subprocess.DEVNULL)

    return start


def steps_of(run_dir: Path) -> list[dict]:
    lines = read_run(run_dir)[1]["step"]
    return [{key: value for key, value in line.items() if key not in ("time_s", "tokens_per_s")} for line in lines]


@pytest.mark.fault
def test_ten_kills_change_nothing(settings: dict, tmp_path: Path, start):
    generator = random.Random(3)
    paths = {}
    for name in ("whole", "killed"):
        paths[name] = tmp_path / f"{name}.json"
        changed = {**settings, "run_dir": str(tmp_path / name), "checkpoint": {"every_steps": 5}}
        changed["train"] = {**settings["train"], "steps": 200}
        paths[name].write_text(json.dumps(changed))
    whole = start(paths["whole"])
    assert whole.wait() == 0
    record = tmp_path / "killed" / "record.jsonl"
    for _ in range(NUM_KILLS):
        process = start(paths["killed"])
        before = record.read_bytes().count(b'"kind":"step"') if record.exists() else 0
        wanted = before + generator.randrange(5, 25)
        while process.poll() is None and (not record.exists() or record.read_bytes().count(b'"kind":"step"') < wanted):
            time.sleep(generator.random() * 0.02)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    last = start(paths["killed"])
    assert last.wait() == 0
    assert steps_of(tmp_path / "killed") == steps_of(tmp_path / "whole")
    (one,), (other,) = ((tmp_path / name / "checkpoints" / "step_00000200").glob("*.safetensors") for name in paths)
    for (name, tensor), (same, expected) in zip(
        sorted(load_file(one).items()), sorted(load_file(other).items()), strict=True
    ):
        assert name == same
        assert tensor.tolist() == expected.tolist()


if __name__ == "__main__":
    train(sys.argv[1])
