"""Saves and loads a training run: tensors by torch.distributed.checkpoint, the rest as JSON beside them.

Each rank writes the parts it holds as safetensors (DCP's own storage for that format), so a checkpoint of any world
and strategy loads on any other, and no file of it can carry a pickle. Invariant: a checkpoint counts only once it is
committed (commit.py); an older one stays until then. A save in the background works on a copy.
"""

import json
import shutil
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from ado_stream.durable import write_durably
from ado_stream.errors import CheckpointError
from ado_stream.train import commit
from ado_stream.train.distributed import World, on_main

STATE_FILE = "state.json"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint is of: tensors that are read or filled in place, and JSON-able facts."""

    model: nn.Module
    optimizer: torch.optim.AdamW
    facts: dict[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name; AdamW's moments are made where there are none yet."""
        found = {"rng.cpu": torch.get_rng_state(), **model_tensors(self.model)}
        optimized = {parameter for group in self.optimizer.param_groups for parameter in group["params"]}
        for name, parameter in self.model.named_parameters():
            assert parameter in optimized, f"{name} is gathered, not this rank's part of it"  # its moments would be new
            moments = self.optimizer.state[parameter]
            if not moments:
                moments["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                moments["exp_avg"] = torch.zeros_like(parameter, requires_grad=False)
                moments["exp_avg_sq"] = torch.zeros_like(parameter, requires_grad=False)
            for key in _MOMENTS:
                found[f"optimizer.{key}.{name}"] = moments[key]
        return found


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters under the names that they have in a checkpoint."""
    return {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}


class Checkpointer:
    """Writes checkpoints of one run under `directory`, keeps the newest `keep`.

    asynchronous: `save` returns once the tensors are copied; `wait`, called by the next save and at the end, raises
    what went wrong. All ranks call every method at the same step, and none goes on before a checkpoint is committed.
    """

    def __init__(self, directory: Path, world: World, keep: int, asynchronous: bool):
        self._directory, self._world, self._keep = directory, world, keep
        self._asynchronous = asynchronous
        self._pending: _Background | None = None
        self._group: Any = None
        if asynchronous and world.size > 1:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=world.timeout_s))

    def save(self, step: int, state: TrainingState, committed: Callable[[], None] = lambda: None) -> Path:
        """Saves `state` as the checkpoint of `step` finished steps; raises CheckpointError, older ones stay.

        committed: called on every rank once the checkpoint counts, by the thread that saved it.
        """
        self.wait()
        directory = commit.directory_of(self._directory, step)
        on_main(self._world, self._begin, directory, state.facts)
        tensors = _copied_to_host(state.tensors()) if self._asynchronous else state.tensors()

        def finish() -> None:
            self._finish(directory, tensors, committed)

        if self._asynchronous:
            self._pending = _Background(directory, self._world, finish)
        else:
            finish()
        return directory

    def wait(self) -> None:
        """Returns when nothing is being saved. Raises CheckpointError of a save in the background."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.join()

    def _begin(self, directory: Path, facts: dict[str, Any]) -> None:
        try:
            commit.make_fresh(directory)
            write_durably(directory / STATE_FILE, json.dumps(facts))
        except OSError as error:
            raise _not_saved(directory, error) from error

    def _finish(self, directory: Path, tensors: dict[str, Tensor], committed: Callable[[], None]) -> None:
        """Writes until every rank's files are there; then rank 0 commits while the others wait for it."""
        writer = HuggingFaceStorageWriter(str(directory), save_distributed=True)
        _silence_the_warning_of_one_process()
        try:
            dcp.save(tensors, storage_writer=writer, process_group=self._group, no_dist=self._world.size == 1)
            on_main(self._world, self._commit, directory, group=self._group)
        except (CheckpointException, OSError) as error:  # the first is a BaseException
            if self._world.is_main:
                shutil.rmtree(directory, ignore_errors=True)  # torn anyway; its room may be what is missing
            raise _not_saved(directory, error) from error
        committed()

    def _commit(self, directory: Path) -> None:
        commit.commit(directory)
        try:
            commit.prune(self._directory, self._keep)
        except OSError as error:
            raise CheckpointError(
                f"{directory} is saved, but an older checkpoint cannot be removed: {_reason(error)}."
            ) from error


def load_facts(directory: Path) -> dict[str, Any]:
    """The JSON-able facts of a checkpoint. Raises CheckpointError when it is torn or not one."""
    fault = commit.fault_of(directory)
    if fault is not None:
        raise CheckpointError(f"{directory}: {fault}. Resume from another checkpoint, or with --resume auto.")
    return read_facts(directory)


def read_facts(directory: Path) -> dict[str, Any]:
    """The JSON-able facts of a checkpoint that is known to be sound."""
    facts = json.loads((directory / STATE_FILE).read_text())
    assert isinstance(facts, dict)
    return facts


def load_training(directory: Path, world: World, state: TrainingState) -> None:
    """Fills `state`'s tensors from a checkpoint of any world, on all ranks together. Raises CheckpointError."""
    tensors = state.tensors()
    _load(directory, tensors, alone=world.size == 1)
    torch.set_rng_state(tensors["rng.cpu"])


def load_model(directory: Path, model: nn.Module) -> None:
    """Fills a whole model's parameters, on this process alone. Raises CheckpointError."""
    _load(directory, model_tensors(model), alone=True)


def _load(directory: Path, tensors: dict[str, Tensor], alone: bool) -> None:
    _silence_the_warning_of_one_process()
    try:
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(directory)), no_dist=alone)
    except CheckpointException as error:
        raise CheckpointError(f"{directory}: {_reason(error)}") from error


class _Background:
    """A save in a thread; `join` raises its exception, and CheckpointError when it does not end."""

    def __init__(self, directory: Path, world: World, call: Callable[[], None]):
        self._error: BaseException | None = None
        self._directory, self._world, self._call = directory, world, call
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            if self._world.device.type == "cuda":
                torch.cuda.set_device(self._world.device)  # a thread begins on device 0, which is another rank's
            self._call()
        except BaseException as error:  # raised again by join
            self._error = error

    def join(self) -> None:
        timeout_s = self._world.timeout_s
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise CheckpointError(f"{self._directory}: still not saved after {timeout_s:.0f} s of waiting for it.")
        if self._error is not None:
            raise self._error


def _copied_to_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy that training does not change; shards stay shards of the same whole."""
    stager = DefaultStager(StagingOptions(False, False, False, False))  # plain memory, copied before it returns
    copied = stager.stage(tensors)
    stager.close()
    assert isinstance(copied, dict)
    return copied


def _silence_the_warning_of_one_process() -> None:
    """DCP warns that it takes a process without a group for a single one, which is what it is."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)


def _not_saved(directory: Path, error: BaseException) -> CheckpointError:
    return CheckpointError(f"{directory}: not saved: {_reason(error)}\n  Older checkpoints are untouched.")


def _reason(error: BaseException) -> str:
    """The first cause in one line."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (cause, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''}"
    return f"{type(error).__name__}: {error}"
