"""docs/faults.md K1: kill -9 in a save, a full disk in a save: the newest committed checkpoint loads, bit-equal."""

import random
import time
from pathlib import Path

import pytest
import torch

from ado_model import ModelConfig, Transformer
from ado_stream.errors import CheckpointError
from ado_stream.train import checkpoint_commit
from ado_stream.train.checkpoint import Checkpointer, TrainingState, load_training_state
from ado_stream.train.run_config import TrainSection
from ado_stream.train.train_step import make_optimizer
from tests.train.child_processes import ChildProcesses
from tests.train.hot_loop import ONE_CPU
from tests.waiting import wait_until

pytestmark = pytest.mark.fault
SIZES = ModelConfig(num_layers=2, width=64, num_heads=1, vocab_size=256, context_length=8)
NUM_KILLS = 40


def state_of(step: int) -> TrainingState:
    """The numbers that the checkpoint of `step` must hold."""
    model = Transformer(SIZES)
    state = TrainingState(model, make_optimizer(model, TrainSection()))
    torch.manual_seed(step)
    for name, tensor in state.tensors().items():
        if name != "rng.cpu":
            tensor.copy_(torch.randn(tensor.shape))
    return state


def holds_what_was_saved(directory: Path) -> bool:
    """Whether the tensors are to the bit those of the directory's step; False also when they cannot be read."""
    step = checkpoint_commit.checkpoint_step(directory)
    expected, found = state_of(step).tensors(), state_of(step + 1)
    try:
        load_training_state(directory, ONE_CPU, found)
    except (CheckpointError, FileNotFoundError, ValueError):
        return False
    return all(torch.equal(tensor, expected[name]) for name, tensor in found.tensors().items())


def save_for_ever(folder: Path, first: int, asynchronous: bool) -> None:
    """What a killed process was doing."""
    saver = Checkpointer(folder, ONE_CPU, keep=2, asynchronous=asynchronous)
    for step in range(first, first + 10_000):
        saver.save(state_of(step), {"finished_steps": step})


def test_k1_kill_9_at_forty_random_points_of_a_save(children: ChildProcesses, tmp_path: Path):
    """The sibling is in it: some of what was passed over would have been wrong numbers, or none."""
    generator = random.Random(1)
    newest, torn, useless = 0, 0, 0
    for number in range(NUM_KILLS):
        child = children.start(save_for_ever, tmp_path, newest + 1, number % 2 == 1)
        last = checkpoint_commit.checkpoint_dir(tmp_path, newest + generator.randrange(2, 4))
        wait_until(lambda last=last, child=child: last.exists() or not child.is_alive())
        assert child.is_alive(), child.log.read_text()
        time.sleep(generator.uniform(0.0, 0.05))
        child.kill()
        child.join()
        directory, skipped = checkpoint_commit.newest_valid(tmp_path)
        assert all(text.startswith("step_000") for text in skipped)
        torn += len(skipped)
        useless += sum(not holds_what_was_saved(tmp_path / text.partition(":")[0]) for text in skipped)
        if directory is not None:
            assert holds_what_was_saved(directory)
            assert checkpoint_commit.checkpoint_step(directory) >= newest
            newest = checkpoint_commit.checkpoint_step(directory)
    assert newest >= NUM_KILLS
    assert torn > NUM_KILLS / 4
    assert useless > 0


def test_k1_a_disk_that_is_full_in_a_save(small_disk):
    """Two fit; the third does not, says so, leaves nothing of itself, and is saved once there is room."""
    num_bytes = 4 * 3 * sum(parameter.numel() for parameter in Transformer(SIZES).parameters())
    folder = small_disk(int(2.6 * num_bytes) + 2**17)
    saver = Checkpointer(folder, ONE_CPU, keep=3, asynchronous=False)
    for step in (1, 2):
        saver.save(state_of(step), {"finished_steps": step})
    with pytest.raises(CheckpointError, match=r"step_00000003: not saved: .*No space left on device"):
        saver.save(state_of(3), {"finished_steps": 3})
    assert [path.name for path in folder.iterdir() if path.name.endswith("3")] == []
    assert checkpoint_commit.newest_valid(folder) == (checkpoint_commit.checkpoint_dir(folder, 2), [])
    assert holds_what_was_saved(checkpoint_commit.checkpoint_dir(folder, 2))
    checkpoint_commit.prune(folder, keep=1)
    saver.save(state_of(3), {"finished_steps": 3})
    assert holds_what_was_saved(checkpoint_commit.checkpoint_dir(folder, 3))
