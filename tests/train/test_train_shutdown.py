"""How ranks exit: together after a commit or a stop, at once after an error, and never during a save."""

from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from ado_stream.errors import CheckpointError
from ado_stream.record import read_run
from ado_stream.train import checkpoint_commit
from ado_stream.train.run_config import load_config
from ado_stream.train.trainer import run_training
from tests.train import shutdown_on_ranks
from tests.train.child_processes import ChildProcesses


@pytest.mark.parametrize("asynchronous", [False, True])
def test_no_rank_continues_before_the_commit(children: ChildProcesses, tmp_path: Path, asynchronous: bool):
    """Otherwise the launcher could end rank 0 while it still hashes, because another rank has exited."""
    children.run(shutdown_on_ranks.save, str(tmp_path), asynchronous, True, num_ranks=2)
    assert [(tmp_path / f"result.{rank}").read_text() for rank in (0, 1)] == ["True", "True"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_commit_that_fails_is_a_checkpoint_error_on_every_rank(
    children: ChildProcesses, tmp_path: Path, asynchronous: bool
):
    children.run(shutdown_on_ranks.save, str(tmp_path), asynchronous, False, num_ranks=2)
    for rank in (0, 1):
        error = (tmp_path / f"result.{rank}").read_text()
        assert "step_00000001: not saved: OSError: [Errno 28] No space left on device" in error
    assert checkpoint_commit.list_checkpoints(tmp_path / "checkpoints") == []


def test_a_save_in_the_background_finishes_after_an_exception(children: ChildProcesses, settings: dict):
    """On two ranks, of which one raises while the save of step 4 is not yet committed."""
    settings["checkpoint"] = {"every_steps": 4, "asynchronous": True}
    settings["train"]["collective_timeout_s"] = 60.0
    ranks = children.start_ranks(2, shutdown_on_ranks.die_after_a_save, settings)
    for rank in ranks:
        rank.join(60)
        assert rank.exitcode == 1, rank.log.read_text()
    assert "rank 1: ValueError: died" in ranks[1].log.read_text()
    checkpoints = Path(settings["run_dir"]) / "checkpoints"
    directory, skipped = checkpoint_commit.newest_valid(checkpoints)
    assert (directory, skipped) == (checkpoint_commit.checkpoint_dir(checkpoints, 4), [])
    (saved,) = [each for each in read_run(settings["run_dir"])[1]["event"] if each["name"] == "checkpoint"]
    assert (saved["step"], saved["detail"]["directory"]) == (4, str(directory))
    assert saved["detail"]["seconds"] > shutdown_on_ranks.COMMIT_S


def test_the_record_names_no_checkpoint_that_was_not_committed(settings: dict, monkeypatch):
    def fails(directory: Path) -> None:
        raise OSError(28, "No space left on device")

    settings["checkpoint"] = {"every_steps": 4, "asynchronous": True}
    monkeypatch.setattr(checkpoint_commit, "commit", fails)
    with pytest.raises(CheckpointError, match="not saved: OSError"):
        run_training(load_config(settings))
    assert "checkpoint" not in [event["name"] for event in read_run(settings["run_dir"])[1]["event"]]


@pytest.mark.deadline
def test_a_rank_that_fails_does_not_wait_for_the_others(children: ChildProcesses, tmp_path: Path):
    """Destroying the process group would wait for an all-reduce that rank 0 never joins, until the timeout."""
    timeout_s = 20.0
    _, failing = children.start_ranks(2, shutdown_on_ranks.raise_beside_a_collective, str(tmp_path), timeout_s)
    failing.join(timeout_s)
    assert failing.exitcode == 1
    assert float((tmp_path / "result.1").read_text()) < timeout_s / 2


@pytest.mark.parametrize(
    ("rank", "kill", "found"),
    [
        (1, False, "rank 0: AdoStreamError: rank 1: DataError: wiki/shard.00042.mds: damaged."),
        (1, True, "rank 0: AdoStreamError: another rank was killed, hangs or cannot be reached"),
        (0, False, "rank 1: AdoStreamError: rank 0 has ended, and with it the key-value store"),
    ],
)
def test_a_rank_that_waits_for_one_that_failed_names_it(
    children: ChildProcesses, settings: dict, tmp_path: Path, rank: int, kill: bool, found: str
):
    """In place of a traceback that ends in gloo's sockets. The store is in rank 0's process here, not in torchrun's."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    ranks = children.start_ranks(2, shutdown_on_ranks.fail_in_update, str(tmp_path / "config.yaml"), rank, kill)
    for each in ranks:
        each.join(60)
    logs = [each.log.read_text() for each in ranks]
    assert ranks[1 - rank].exitcode == 1, logs
    assert logs[1 - rank].count(found) == 1
    assert "Traceback" not in logs[1 - rank]
    assert logs[rank].count("wiki/shard.00042.mds") == (0 if kill else 1)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_signal_stops_all_ranks_in_one_validation_pass(
    children: ChildProcesses, settings: dict, tmp_path: Path, strategy: str
):
    """The flag sent before one pass is read before the next: at most two of twelve passes run after the signal.

    The checkpoint then holds the state after the last step.
    """
    settings["evaluate"]["max_samples_per_domain"] = 32
    settings["train"]["strategy"] = strategy
    settings["checkpoint"]["every_steps"] = 0
    children.run(shutdown_on_ranks.stop_in_validation, settings, str(tmp_path), num_ranks=2)
    results = {(tmp_path / f"result.{rank}").read_text() for rank in (0, 1)}
    assert len(results) == 1
    passes, step, stopped = results.pop().split()
    assert int(passes) <= 3
    assert (step, stopped) == ("4", "True")
    directory = checkpoint_commit.checkpoint_dir(Path(settings["run_dir"]) / "checkpoints", 4)
    saved = {name: each for path in directory.glob("*.safetensors") for name, each in load_file(path).items()}
    updates = {name: each.item() for name, each in saved.items() if name.startswith("optimizer.step.")}
    assert updates
    assert set(updates.values()) == {4.0}
