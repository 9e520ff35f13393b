"""Committed checkpoints: a damaged one is named and skipped, and old ones are removed."""

import json
import shutil
from pathlib import Path

import pytest

from ado_stream.errors import CheckpointError
from ado_stream.train.checkpoint import verify_checkpoint
from ado_stream.train.checkpoint_commit import (
    MARKER,
    checkpoint_dir,
    checkpoint_step,
    commit,
    list_checkpoints,
    newest_valid,
    prune,
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with the committed checkpoints of steps 1 and 2."""
    for step in (1, 2):
        directory = checkpoint_dir(tmp_path, step)
        directory.mkdir()
        (directory / "state.json").write_text("{}")
        (directory / "shard-0.safetensors").write_bytes(bytes(range(100)))
        commit(directory)
    return tmp_path


def listed(directory: Path, **changes) -> None:
    marker = directory / "COMMIT.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | changes))


def tensors_file(directory: Path) -> Path:
    (path,) = directory.glob("*.safetensors")
    return path


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda at: (at / "COMMIT.json").unlink(), "COMMIT.json is missing; the save did not finish"),
        (lambda at: (at / "COMMIT.json").write_text("{"), "COMMIT.json cannot be read"),
        (lambda at: (at / "COMMIT.json").write_bytes(b"\0" * 300), "COMMIT.json cannot be read"),
        (lambda at: (at / "COMMIT.json").write_text("[" * 100_000), "COMMIT.json cannot be read"),
        (lambda at: (at / "COMMIT.json").write_text("[]"), "COMMIT.json [] expected an object"),
        (lambda at: listed(at, version=2), "COMMIT.json has version 2"),
        (lambda at: listed(at, files=None), "COMMIT.json files expected an object"),
        (lambda at: listed(at, files={"state.json": {"bytes": 1e400, "xxh64": ""}}), "bytes inf expected a count"),
        (lambda at: listed(at, files={"../x": {"bytes": 1, "xxh64": ""}}), "../x is missing"),
        (lambda at: listed(at, files={"": {"bytes": 1, "xxh64": ""}}), "is missing"),
        (lambda at: [(at / "COMMIT.json").unlink(), (at / "COMMIT.json").mkdir()], "COMMIT.json cannot be read"),
        (lambda at: [(at / "state.json").unlink(), (at / "state.json").symlink_to("state.json")], "cannot be read"),
        (lambda at: tensors_file(at).unlink(), "is missing"),
        (lambda at: tensors_file(at).write_bytes(tensors_file(at).read_bytes()[:-9]), "bytes, saved were"),
        (lambda at: tensors_file(at).write_bytes(tensors_file(at).read_bytes()[:-1] + b"!"), "xxh64"),
        (lambda at: (at / "extra.safetensors").write_bytes(b"x"), "extra.safetensors is not listed in COMMIT.json"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_previous_one_is_taken(saved: Path, damage, reason: str):
    newest = checkpoint_dir(saved, 2)
    damage(newest)
    directory, skipped = newest_valid(saved)
    assert directory == checkpoint_dir(saved, 1)
    (text,) = skipped
    assert text.startswith("step_00000002: ")
    assert all(word in text for word in reason.split())
    with pytest.raises(CheckpointError, match="step_00000002"):
        verify_checkpoint(newest)


def test_pruning_keeps_the_newest_committed(saved: Path):
    for step in (5, 6, 7):
        shutil.copytree(checkpoint_dir(saved, 1), checkpoint_dir(saved, step))
    (checkpoint_dir(saved, 6) / MARKER).unlink()
    prune(saved, keep=2)
    assert [checkpoint_step(path) for path in list_checkpoints(saved)] == [7, 6, 5]  # 6 is not committed, but newer
    assert json.loads((checkpoint_dir(saved, 7) / MARKER).read_text())["version"] == 1


def test_a_name_that_no_save_gives_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="not a checkpoint directory"):
        checkpoint_step(tmp_path / "latest")
