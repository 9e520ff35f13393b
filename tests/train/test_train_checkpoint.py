"""Checkpoints: damaged ones are named and passed over, pickles in them never run, a full disk is survived."""

import json
import pickle
import shutil
import threading
from pathlib import Path

import pytest
import torch

from ado_model import ModelConfig, Transformer
from ado_stream.errors import CheckpointError
from ado_stream.train import checkpoint, commit
from ado_stream.train.checkpoint import Checkpointer, TrainingState, load_facts, load_model, load_training
from ado_stream.train.config import TrainSection
from ado_stream.train.distributed import World
from ado_stream.train.step import make_optimizer

ALONE = World(0, 1, torch.device("cpu"))
SIZES = ModelConfig(num_layers=1, width=16, num_heads=1, vocab_size=64, context_length=8)


def fresh(seed: int) -> TrainingState:
    torch.manual_seed(seed)
    model = Transformer(SIZES)
    optimizer = make_optimizer(model, TrainSection())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return TrainingState(model, optimizer, {"finished_steps": seed})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with the committed checkpoints of steps 1 and 2."""
    saver = Checkpointer(tmp_path, ALONE, keep=2, asynchronous=False)
    for step in (1, 2):
        saver.save(step, fresh(step))
    return tmp_path


def tensors_file(directory: Path) -> Path:
    (path,) = directory.glob("*.safetensors")
    return path


def test_an_asynchronous_save_returns_before_anything_is_written(tmp_path: Path, monkeypatch):
    may_write, write = threading.Event(), checkpoint.dcp.save
    monkeypatch.setattr(checkpoint.dcp, "save", lambda *args, **options: may_write.wait(60) and write(*args, **options))
    saver = Checkpointer(tmp_path, ALONE, keep=2, asynchronous=True)
    directory = saver.save(1, fresh(1))
    assert commit.fault_of(directory) is not None
    may_write.set()
    saver.wait()
    assert commit.fault_of(directory) is None


def test_a_save_in_the_background_computes_on_its_ranks_device(tmp_path: Path, monkeypatch):
    """A thread begins on device 0, where every rank would take memory. Its device is a stand-in here."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append((device, threading.current_thread())))
    saver = Checkpointer(tmp_path, World(0, 1, torch.device("cuda", 3)), keep=2, asynchronous=True)
    saver.save(1, fresh(1))
    saver.wait()
    ((device, thread),) = chosen
    assert device == torch.device("cuda", 3)
    assert thread is not threading.main_thread()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_was_saved_is_loaded(tmp_path: Path, asynchronous: bool):
    state = fresh(3)
    expected = {name: tensor.clone() for name, tensor in state.tensors().items()}
    saver = Checkpointer(tmp_path, ALONE, keep=2, asynchronous=asynchronous)
    directory = saver.save(3, state)
    with torch.no_grad():  # a save in the background must have its own copy
        for parameter in state.model.parameters():
            parameter.add_(1.0)
    saver.wait()
    other = fresh(4)
    load_training(directory, ALONE, other)
    found = other.tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(torch.get_rng_state(), expected["rng.cpu"])
    assert load_facts(directory) == {"finished_steps": 3}
    model = Transformer(SIZES)
    load_model(directory, model)
    assert torch.equal(model.embed_tokens.weight, expected["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda at: (at / "COMMIT.json").unlink(), "COMMIT.json is missing; its save was not finished"),
        (lambda at: (at / "COMMIT.json").write_text("{"), "COMMIT.json cannot be read"),
        (lambda at: tensors_file(at).unlink(), "is missing"),
        (lambda at: tensors_file(at).write_bytes(tensors_file(at).read_bytes()[:-9]), "bytes were saved"),
        (lambda at: tensors_file(at).write_bytes(tensors_file(at).read_bytes()[:-1] + b"!"), "xxh64"),
        (lambda at: (at / "extra.safetensors").write_bytes(b"x"), "extra.safetensors is not of this checkpoint"),
    ],
)
def test_a_damaged_one_is_named_and_the_one_before_is_taken(saved: Path, damage, reason: str):
    newest = commit.directory_of(saved, 2)
    damage(newest)
    directory, passed_over = commit.newest_sound(saved)
    assert directory == commit.directory_of(saved, 1)
    (text,) = passed_over
    assert text.startswith("step_00000002: ")
    assert all(word in text for word in reason.split())
    with pytest.raises(CheckpointError, match="step_00000002"):
        load_facts(newest)


class Bomb:
    """Writes a file when unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "boom"))


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "tensors"])
def test_a_pickle_is_never_run(saved: Path, tmp_path: Path, name: str):
    """Even in a checkpoint whose marker vouches for it."""
    directory, crater = commit.directory_of(saved, 2), tmp_path / "crater"
    path = tensors_file(directory) if name == "tensors" else directory / name
    path.write_bytes(pickle.dumps(Bomb(crater)))
    (directory / commit.MARKER).unlink()
    commit.commit(directory)
    if name == "tensors":
        with pytest.raises(CheckpointError):
            load_training(directory, ALONE, fresh(5))
    else:
        load_training(directory, ALONE, fresh(5))
    assert not crater.exists()
    pickle.loads(pickle.dumps(Bomb(crater)))
    assert crater.exists()  # the bomb was live


def test_a_full_disk_leaves_the_older_ones(saved: Path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    saver = Checkpointer(saved, ALONE, keep=2, asynchronous=False)
    monkeypatch.setattr(checkpoint.dcp, "save", full)
    with pytest.raises(CheckpointError, match="not saved: OSError: .*No space left on device"):
        saver.save(3, fresh(3))
    assert [path.name for path in commit.newest_first(saved)] == ["step_00000002", "step_00000001"]
    assert commit.newest_sound(saved) == (commit.directory_of(saved, 2), [])


def test_a_checkpoint_stays_where_older_ones_cannot_be_removed(saved: Path, monkeypatch):
    def refused(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(commit, "prune", refused)
    saver = Checkpointer(saved, ALONE, keep=2, asynchronous=False)
    with pytest.raises(CheckpointError, match="step_00000003 is saved, but an older checkpoint cannot be removed"):
        saver.save(3, fresh(3))
    assert commit.newest_sound(saved) == (commit.directory_of(saved, 3), [])


def test_dcps_own_exception_is_not_let_through(saved: Path):
    """CheckpointException is a BaseException, so `except Exception` would miss it."""
    directory = commit.directory_of(saved, 2)
    torch.manual_seed(0)
    with pytest.raises(CheckpointError, match="step_00000002"):
        load_model(directory, Transformer(ModelConfig(num_layers=2, width=16, num_heads=1, vocab_size=64)))


def test_pruning_keeps_the_newest_committed(saved: Path):
    for step in (5, 6, 7):
        shutil.copytree(commit.directory_of(saved, 1), commit.directory_of(saved, step))
    (commit.directory_of(saved, 6) / commit.MARKER).unlink()
    commit.prune(saved, keep=2)
    assert [commit.step_of(path) for path in commit.newest_first(saved)] == [7, 6, 5]  # 6 is torn, but newer than 5
    assert json.loads((commit.directory_of(saved, 7) / commit.MARKER).read_text())["version"] == 1


def test_other_names_are_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="not a checkpoint directory"):
        commit.step_of(tmp_path / "latest")
