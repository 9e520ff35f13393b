"""Checkpoints: what is saved is loaded, pickles in them never run, a failed save leaves older ones."""

import pickle
import threading
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from ado_model import ModelConfig, Transformer
from ado_stream.errors import CheckpointError
from ado_stream.train import checkpoint, checkpoint_commit
from ado_stream.train.checkpoint import Checkpointer, TrainingState, load_model, load_training_state, read_metadata
from ado_stream.train.checkpoint_commit import (
    MARKER,
    checkpoint_dir,
    commit,
    find_fault,
    list_checkpoints,
    newest_valid,
)
from ado_stream.train.distributed import DistributedContext
from ado_stream.train.run_config import TrainSection
from ado_stream.train.train_step import make_optimizer
from tests.train.hot_loop import ONE_CPU

SIZES = ModelConfig(num_layers=1, width=16, num_heads=1, vocab_size=64, context_length=8)


def fresh(seed: int) -> TrainingState:
    torch.manual_seed(seed)
    model = Transformer(SIZES)
    optimizer = make_optimizer(model, TrainSection())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return TrainingState(model, optimizer)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with the committed checkpoints of steps 1 and 2."""
    checkpointer = Checkpointer(tmp_path, ONE_CPU, keep=2, asynchronous=False)
    for step in (1, 2):
        checkpointer.save(fresh(step), {"finished_steps": step})
    return tmp_path


def tensors_file(directory: Path) -> Path:
    (path,) = directory.glob("*.safetensors")
    return path


def test_an_asynchronous_save_returns_before_anything_is_written(tmp_path: Path, monkeypatch):
    may_write, write = threading.Event(), checkpoint.dcp.save
    monkeypatch.setattr(checkpoint.dcp, "save", lambda *args, **options: may_write.wait(60) and write(*args, **options))
    checkpointer = Checkpointer(tmp_path, ONE_CPU, keep=2, asynchronous=True)
    directory = checkpointer.save(fresh(1), {"finished_steps": 1})
    assert find_fault(directory) is not None
    may_write.set()
    checkpointer.wait()
    assert find_fault(directory) is None


def test_a_save_in_the_background_uses_its_ranks_device(tmp_path: Path, monkeypatch):
    """A new thread's device is 0, where every rank would allocate memory. torch.cuda.set_device is replaced here."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append((device, threading.current_thread())))
    checkpointer = Checkpointer(tmp_path, DistributedContext(0, 1, torch.device("cuda", 3)), keep=2, asynchronous=True)
    checkpointer.save(fresh(1), {"finished_steps": 1})
    checkpointer.wait()
    ((device, thread),) = chosen
    assert device == torch.device("cuda", 3)
    assert thread is not threading.main_thread()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_saved_state_is_loaded_to_the_bit(tmp_path: Path, asynchronous: bool):
    state = fresh(3)
    expected = {name: tensor.clone() for name, tensor in state.tensors().items()}
    checkpointer = Checkpointer(tmp_path, ONE_CPU, keep=2, asynchronous=asynchronous)
    metadata = {"finished_steps": 3, "run_id": "a", "drawn": {"d": 5}, "tokenizer": "bytes", "loader": {"any": [1]}}
    metadata["model"] = asdict(SIZES)
    directory = checkpointer.save(state, metadata)
    with torch.no_grad():  # a save in the background must have its own copy
        for parameter in state.model.parameters():
            parameter.add_(1.0)
    checkpointer.wait()
    other = fresh(4)
    load_training_state(directory, ONE_CPU, other)
    found = other.tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(torch.get_rng_state(), expected["rng.cpu"])
    assert read_metadata(directory) == metadata
    model = Transformer(SIZES)
    load_model(directory, model)
    assert torch.equal(model.embed_tokens.weight, expected["model.embed_tokens.weight"])


def test_bytes_that_are_no_state_of_a_generator_are_refused(tmp_path: Path, monkeypatch):
    state, zeros = fresh(3), torch.zeros_like(torch.get_rng_state())
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_rng_state", lambda: zeros)
        directory = Checkpointer(tmp_path, ONE_CPU, keep=2, asynchronous=False).save(state, {"finished_steps": 3})
    with pytest.raises(CheckpointError, match=r"'rng.cpu' is no state of a generator"):
        load_training_state(directory, ONE_CPU, fresh(4))


class Bomb:
    """Writes a file when unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "boom"))


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "tensors"])
def test_a_pickle_is_never_run(saved: Path, tmp_path: Path, name: str):
    """Even in a checkpoint whose marker lists it with the right hash."""
    directory, crater = checkpoint_dir(saved, 2), tmp_path / "crater"
    path = tensors_file(directory) if name == "tensors" else directory / name
    path.write_bytes(pickle.dumps(Bomb(crater)))
    (directory / MARKER).unlink()
    commit(directory)
    if name == "tensors":
        with pytest.raises(CheckpointError):
            load_training_state(directory, ONE_CPU, fresh(5))
    else:
        load_training_state(directory, ONE_CPU, fresh(5))
    assert not crater.exists()
    pickle.loads(pickle.dumps(Bomb(crater)))
    assert crater.exists()  # the pickle does write when loaded


def test_a_full_disk_leaves_the_older_ones(saved: Path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    checkpointer = Checkpointer(saved, ONE_CPU, keep=2, asynchronous=False)
    monkeypatch.setattr(checkpoint.dcp, "save", full)
    with pytest.raises(CheckpointError, match="not saved: OSError: .*No space left on device"):
        checkpointer.save(fresh(3), {"finished_steps": 3})
    assert [path.name for path in list_checkpoints(saved)] == ["step_00000002", "step_00000001"]
    assert newest_valid(saved) == (checkpoint_dir(saved, 2), [])


def test_a_checkpoint_is_kept_when_an_older_one_cannot_be_removed(saved: Path, monkeypatch):
    def refused(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint_commit, "prune", refused)
    checkpointer = Checkpointer(saved, ONE_CPU, keep=2, asynchronous=False)
    with pytest.raises(CheckpointError, match="step_00000003 is saved, but an older checkpoint could not be removed"):
        checkpointer.save(fresh(3), {"finished_steps": 3})
    assert newest_valid(saved) == (checkpoint_dir(saved, 3), [])


def test_dcps_exception_becomes_a_checkpoint_error(saved: Path):
    """CheckpointException is a BaseException, so `except Exception` would miss it."""
    directory = checkpoint_dir(saved, 2)
    torch.manual_seed(0)
    with pytest.raises(CheckpointError, match="step_00000002"):
        load_model(directory, Transformer(ModelConfig(num_layers=2, width=16, num_heads=1, vocab_size=64)))
