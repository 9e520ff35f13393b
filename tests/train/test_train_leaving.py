"""Ranks end together when all is well, and each at once when it is not; a save is never cut off by either."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from ado_stream.errors import CheckpointError, ConfigError
from ado_stream.record import read_run
from ado_stream.train import commit
from ado_stream.train.config import load_config
from ado_stream.train.distributed import join_world
from ado_stream.train.run import run_training
from tests.train import leaving_on_ranks
from tests.train.forked import Forked


@pytest.mark.parametrize("asynchronous", [False, True])
def test_no_rank_goes_on_before_the_checkpoint_is_committed(forked: Forked, tmp_path: Path, asynchronous: bool):
    """Else the launcher could end rank 0 while it still hashes, because another rank has left."""
    forked.run(leaving_on_ranks.save, str(tmp_path), asynchronous, True, num_ranks=2)
    assert [(tmp_path / f"met.{rank}").read_text() for rank in (0, 1)] == ["True", "True"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_commit_that_fails_is_a_checkpoint_error_on_every_rank(forked: Forked, tmp_path: Path, asynchronous: bool):
    forked.run(leaving_on_ranks.save, str(tmp_path), asynchronous, False, num_ranks=2)
    for rank in (0, 1):
        met = (tmp_path / f"met.{rank}").read_text()
        assert "step_00000001: not saved: OSError: [Errno 28] No space left on device" in met
    assert commit.newest_first(tmp_path / "checkpoints") == []


def test_a_save_in_the_background_outlives_an_exception(forked: Forked, settings: dict):
    """On two ranks, of which one raises while the save of step 4 is not yet committed."""
    settings["checkpoint"] = {"every_steps": 4, "asynchronous": True}
    settings["train"]["collective_timeout_s"] = 60.0
    ranks = forked.start_ranks(2, leaving_on_ranks.die_after_a_save, settings)
    for rank in ranks:
        rank.join(60)
        assert rank.exitcode == 1, rank.log.read_text()
    assert "rank 1: ValueError: died" in ranks[1].log.read_text()
    checkpoints = Path(settings["run_dir"]) / "checkpoints"
    directory, passed_over = commit.newest_sound(checkpoints)
    assert (directory, passed_over) == (commit.directory_of(checkpoints, 4), [])
    (saved,) = [each for each in read_run(settings["run_dir"])[1]["event"] if each["name"] == "checkpoint"]
    assert (saved["step"], saved["detail"]["directory"]) == (4, str(directory))
    assert saved["detail"]["seconds"] > leaving_on_ranks.COMMIT_S


def test_the_record_names_no_checkpoint_that_was_not_committed(settings: dict, monkeypatch):
    def fails(directory: Path) -> None:
        raise OSError(28, "No space left on device")

    settings["checkpoint"] = {"every_steps": 4, "asynchronous": True}
    monkeypatch.setattr(commit, "commit", fails)
    with pytest.raises(CheckpointError, match="not saved: OSError"):
        run_training(load_config(settings))
    assert read_run(settings["run_dir"])[1]["event"] == []


@pytest.mark.deadline
def test_a_rank_that_fails_does_not_wait_for_the_others(forked: Forked, tmp_path: Path):
    """Destroying the group would: for the sum that rank 0 never joins, until the group's timeout."""
    timeout_s = 20.0
    _, failing = forked.start_ranks(2, leaving_on_ranks.raise_beside_a_collective, str(tmp_path), timeout_s)
    failing.join(timeout_s)
    assert failing.exitcode == 1
    assert float((tmp_path / "met.1").read_text()) < timeout_s / 2


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_leave_a_validation_together(forked: Forked, settings: dict, tmp_path: Path, strategy: str):
    """The answer to "shall we stop" comes a pass after the question: at most two passes of twelve after the signal.

    What is then saved is the state of the steps before.
    """
    settings["evaluate"]["max_samples_per_domain"] = 32
    settings["train"]["strategy"] = strategy
    settings["checkpoint"]["every_steps"] = 0
    forked.run(leaving_on_ranks.stop_in_validation, settings, str(tmp_path), num_ranks=2)
    met = {(tmp_path / f"met.{rank}").read_text() for rank in (0, 1)}
    assert len(met) == 1
    passes, step, stopped = met.pop().split()
    assert int(passes) <= 3
    assert (step, stopped) == ("4", "True")
    directory = commit.directory_of(Path(settings["run_dir"]) / "checkpoints", 4)
    saved = {name: each for path in directory.glob("*.safetensors") for name, each in load_file(path).items()}
    updates = {name: each.item() for name, each in saved.items() if name.startswith("optimizer.step.")}
    assert updates
    assert set(updates.values()) == {4.0}


def test_a_callers_group_must_be_able_to_send_from_the_host(monkeypatch):
    """One of NCCL alone cannot be made here; only its name is asked for."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with join_world("cpu") as world:
            assert (world.rank, world.size, world.device) == (0, 1, torch.device("cpu"))
        assert dist.is_initialized()
        monkeypatch.setattr(dist, "get_backend_config", lambda: "cuda:nccl")
        with pytest.raises(ConfigError, match="init_process_group\\('cpu:gloo,cuda:nccl'\\)"), join_world("cpu"):
            pass
    finally:
        dist.destroy_process_group()
