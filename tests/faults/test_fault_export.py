"""docs/faults.md K4: kill -9 in an export leaves no folder of that name or a whole one; the export can be repeated."""

import itertools
import random
import time
from pathlib import Path

import pytest

from ado_model import ModelConfig, Transformer
from ado_stream.evaluate.model_export import export_hugging_face
from tests.train.child_processes import ChildProcesses
from tests.waiting import wait_until

pytestmark = pytest.mark.fault
SIZES = ModelConfig(num_layers=2, width=64, num_heads=1, vocab_size=4096, context_length=8)
FILES = {"config.json", "generation_config.json", "model.safetensors"}
NUM_KILLS = 20


def export_for_ever(folder: str) -> None:
    """What a killed process was doing."""
    model = Transformer(SIZES)
    for number in itertools.count():
        export_hugging_face(model, Path(folder) / str(number))


def test_a_killed_export_leaves_no_folder_or_a_whole_one(children: ChildProcesses, tmp_path: Path):
    num_torn = 0
    for seed in range(NUM_KILLS):
        folder = tmp_path / str(seed)
        folder.mkdir()
        child = children.start(export_for_ever, str(folder))
        wait_until(lambda folder=folder, child=child: (folder / "0").exists() or not child.is_alive())
        assert child.is_alive(), child.log.read_text()
        time.sleep(random.Random(seed).uniform(0.0, 0.05))
        child.kill()
        child.join()
        for exported in (path for path in folder.iterdir() if path.suffix != ".partial"):
            assert {path.name for path in exported.iterdir()} == FILES
        for left in folder.glob("*.partial"):
            num_torn += 1
            again = export_hugging_face(Transformer(SIZES), left.with_suffix(""))
            assert {path.name for path in again.iterdir()} == FILES
            assert not left.exists()
    assert num_torn, "no kill fell into an export"
