"""How ranks end: what the tests run on each of them. Each rank leaves what it met in FOLDER/met.RANK."""

import os
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist

from ado_model import ModelConfig, Transformer
from ado_stream.errors import CheckpointError
from ado_stream.train import commit
from ado_stream.train.checkpoint import Checkpointer, TrainingState
from ado_stream.train.config import TrainSection
from ado_stream.train.distributed import join_world
from ado_stream.train.parallel import ParallelModel
from ado_stream.train.step import TrainStep, make_optimizer
from tests.train.micro import train_micro

SIZES = ModelConfig(num_layers=1, width=16, num_heads=1, vocab_size=64, context_length=8)
COMMIT_S = 1.0


def _slow(commits: bool) -> None:
    """Commits take COMMIT_S, and then fail if they are to."""
    usual = commit.commit

    def slowed(directory: Path) -> None:
        time.sleep(COMMIT_S)
        if not commits:
            raise OSError(28, "No space left on device")
        usual(directory)

    commit.commit = slowed


def save(folder: str, asynchronous: bool, commits: bool) -> None:
    """Saves once; met: whether the checkpoint counted when this rank was through, or the error it got."""
    _slow(commits)
    with join_world("cpu", 60) as world:
        model = Transformer(SIZES)
        state = TrainingState(model, make_optimizer(model, TrainSection()), {})
        saver = Checkpointer(Path(folder) / "checkpoints", world, keep=1, asynchronous=asynchronous)
        try:
            directory = saver.save(1, state)
            saver.wait()
            met = str((directory / commit.MARKER).exists())
        except CheckpointError as error:
            met = str(error)
        (Path(folder) / f"met.{world.rank}").write_text(met)


def die_after_a_save(settings: dict) -> None:
    """Trains; rank 1 raises two steps after its first save was begun in the background."""
    _slow(commits=True)
    update, calls = TrainStep.update, []

    def dying(self, *arguments):
        calls.append(None)
        if self._world.rank == 1 and len(calls) == settings["checkpoint"]["every_steps"] + 2:
            raise ValueError("died")
        return update(self, *arguments)

    TrainStep.update = dying
    train_micro(settings)


def raise_beside_a_collective(folder: str, timeout_s: float) -> None:
    """Rank 1 raises while a sum is under way that rank 0 never joins; met: when it was out."""
    started = time.monotonic()
    try:
        with join_world("cpu", timeout_s) as world:
            dist.all_reduce(torch.ones(1))
            if world.rank == 1:
                dist.all_reduce(torch.ones(1), async_op=True)
                raise ValueError("died")
            time.sleep(timeout_s)
    finally:
        (Path(folder) / f"met.{world.rank}").write_text(str(time.monotonic() - started))


def stop_in_validation(settings: dict, folder: str) -> None:
    """Trains; rank 1 is sent SIGTERM in its first validation pass; met: passes, step, and whether it was stopped."""
    loss, passes = ParallelModel.loss, []

    def loss_and_signal(self, *arguments):
        if not torch.is_grad_enabled():
            passes.append(None)
            if self.world.rank == 1 and len(passes) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, *arguments)

    ParallelModel.loss = loss_and_signal
    result = train_micro(settings)
    met = f"{len(passes)} {result.step} {result.stopped}"
    (Path(folder) / f"met.{os.environ['RANK']}").write_text(met)
