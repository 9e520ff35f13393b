"""How ranks end: functions that the tests run on each rank. Each writes its result to FOLDER/result.RANK."""

import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from ado_model import PRESETS, ModelConfig, Transformer
from ado_stream.cli.main import main
from ado_stream.errors import CheckpointError, DataError
from ado_stream.train import checkpoint_commit
from ado_stream.train.checkpoint import Checkpointer, TrainingState
from ado_stream.train.distributed import join_process_group
from ado_stream.train.parallel import ParallelModel
from ado_stream.train.run_config import TrainSection
from ado_stream.train.train_step import TrainStep, make_optimizer
from tests.train.tiny_model import TINY_MODEL, train_tiny

SIZES = ModelConfig(num_layers=1, width=16, num_heads=1, vocab_size=64, context_length=8)
COMMIT_S = 1.0


def _slow(commits: bool) -> None:
    """Makes commits take COMMIT_S, and fail if `commits` is False."""
    commit = checkpoint_commit.commit

    def slowed(directory: Path) -> None:
        time.sleep(COMMIT_S)
        if not commits:
            raise OSError(28, "No space left on device")
        commit(directory)

    checkpoint_commit.commit = slowed


def save(folder: str, asynchronous: bool, commits: bool) -> None:
    """Saves once; result: whether the checkpoint was committed when this rank's save returned, or its error."""
    _slow(commits)
    with join_process_group("cpu", 60) as context:
        model = Transformer(SIZES)
        state = TrainingState(model, make_optimizer(model, TrainSection()))
        checkpointer = Checkpointer(Path(folder) / "checkpoints", context, keep=1, asynchronous=asynchronous)
        try:
            directory = checkpointer.save(state, {"finished_steps": 1})
            checkpointer.wait()
            result = str((directory / checkpoint_commit.MARKER).exists())
        except CheckpointError as error:
            result = str(error)
        (Path(folder) / f"result.{context.rank}").write_text(result)


def die_after_a_save(settings: dict) -> None:
    """Trains; rank 1 raises two steps after its first save started in the background."""
    _slow(commits=True)
    update, calls = TrainStep.update, []

    def dying(self, *arguments):
        calls.append(None)
        if self._context.rank == 1 and len(calls) == settings["checkpoint"]["every_steps"] + 2:
            raise ValueError("died")
        return update(self, *arguments)

    TrainStep.update = dying
    train_tiny(settings)


def raise_beside_a_collective(folder: str, timeout_s: float) -> None:
    """Rank 1 raises while a sum is under way that rank 0 never joins; met: when it was out."""
    started = time.monotonic()
    try:
        with join_process_group("cpu", timeout_s) as context:
            dist.all_reduce(torch.ones(1))
            if context.rank == 1:
                dist.all_reduce(torch.ones(1), async_op=True)
                raise ValueError("died")
            time.sleep(timeout_s)
    finally:
        (Path(folder) / f"result.{context.rank}").write_text(str(time.monotonic() - started))


def stop_in_validation(settings: dict, folder: str) -> None:
    """Trains; rank 1 gets SIGTERM in its first validation pass; result: passes, step, and whether it was stopped."""
    loss, passes = ParallelModel.loss, []

    def loss_and_signal(self, *arguments):
        if not torch.is_grad_enabled():
            passes.append(None)
            if self.context.rank == 1 and len(passes) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, *arguments)

    ParallelModel.loss = loss_and_signal
    result = train_tiny(settings)
    text = f"{len(passes)} {result.step} {result.stopped}"
    (Path(folder) / f"result.{os.environ['RANK']}").write_text(text)


def fail_in_update(config: str, rank: int, kill: bool) -> None:
    """Trains by the command; `rank` raises, or is killed, in its third step."""
    PRESETS["tiny"] = TINY_MODEL
    update, calls = TrainStep.update, []

    def failing(self, *arguments):
        calls.append(None)
        if self._context.rank == rank and len(calls) == 3:
            if kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise DataError("wiki/shard.00042.mds: damaged.")
        return update(self, *arguments)

    TrainStep.update = failing
    sys.exit(main(["train", config]))
