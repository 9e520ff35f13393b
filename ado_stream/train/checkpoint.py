"""Saves and loads a training run: tensors by torch.distributed.checkpoint (DCP), metadata as JSON beside them.

Each rank writes its shards as safetensors (DCP's storage for that format), so a checkpoint loads under any number of
ranks and either strategy, and no file of it can hold a pickle. Invariant: a checkpoint is valid only once committed
(checkpoint_commit.py), and older ones are kept until then.

Order of a save, the same on all ranks: rank 0 creates the directory and writes the metadata; all copy their tensors to
the host (asynchronous saves only); all write their shards; rank 0 commits and prunes while the others wait for it.
"""

import json
import shutil
import threading
import warnings
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from ado_stream.durable import write_durably
from ado_stream.errors import CheckpointError, ResumeError
from ado_stream.json_files import decode_json
from ado_stream.reduction import new_host_group
from ado_stream.regular_files import read_regular
from ado_stream.storage.parallel_reads import settle
from ado_stream.train import checkpoint_commit
from ado_stream.train.distributed import DistributedContext, call_on_main
from ado_stream.value_types import JsonObject

STATE_FILE = "state.json"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class ModelSizes(TypedDict):
    """ModelConfig's fields."""

    num_layers: int
    width: int
    num_heads: int
    vocab_size: int
    context_length: int
    rope_theta: float
    norm_eps: float


class Schedule(TypedDict):
    """LearningRateSchedule's fields."""

    peak: float
    warmup_steps: int
    steps: int
    min_frac: float
    stage_ends: NotRequired[list[list[float]]]  # absent in older checkpoints


class Found(TypedDict):
    """What decides about training and is no key of the config."""

    ranks: int
    device: str
    end_token: int
    packing: str
    prior: dict[str, float]  # by domain
    data: NotRequired[dict[str, str]]  # fingerprints by domain, of all splits; absent in older checkpoints


class Settings(TypedDict):
    """changed_settings.saved_settings()."""

    config: JsonObject
    schedule: Schedule
    found: NotRequired[Found]  # absent in older checkpoints


class CheckpointMetadata(TypedDict):
    """The content of state.json: all that is not a tensor."""

    finished_steps: int
    run_id: str
    drawn: dict[str, int]  # samples by domain
    skipped: NotRequired[int]  # steps that were not finite; absent in older checkpoints, as settings
    model: ModelSizes
    tokenizer: str  # its fingerprint
    settings: NotRequired[Settings]
    loader: JsonObject  # AdaptiveLoader.state_dict()


def check_same_model(directory: Path, saved: ModelSizes, wanted: JsonObject) -> None:
    """Raises ResumeError unless the parameters of the model in `directory` fit: ModelSizes, as saved and as wanted now.

    A longer context has more rows in the rotary tables, and no parameter depends on it.
    """
    grown = wanted["context_length"] > saved["context_length"]
    differing = [
        f"{key} {saved.get(key)} saved, {wanted[key]} now"
        for key in wanted
        if saved.get(key) != wanted[key] and not (grown and key == "context_length")
    ]
    if differing:
        raise ResumeError(f"{directory} is of another model: {'; '.join(differing)}.")


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint holds of a model and its optimizer: their tensors, saved from and loaded into them in place."""

    model: nn.Module
    optimizer: torch.optim.AdamW

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name; AdamW's moments are created where there are none yet."""
        tensors = {"rng.cpu": torch.get_rng_state(), **model_tensors(self.model)}
        optimized = {parameter for group in self.optimizer.param_groups for parameter in group["params"]}
        for name, parameter in self.model.named_parameters():
            # FSDP swaps gathered parameters in for its shards; moments created for those would be new ones.
            assert parameter in optimized, f"{name} is gathered, not this rank's shard"
            moments = self.optimizer.state[parameter]
            if not moments:
                moments["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                moments["exp_avg"] = torch.zeros_like(parameter, requires_grad=False)
                moments["exp_avg_sq"] = torch.zeros_like(parameter, requires_grad=False)
            for key in _MOMENTS:
                tensors[f"optimizer.{key}.{name}"] = moments[key]
        return tensors


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters by their names in a checkpoint."""
    return {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}


class Checkpointer:
    """Writes checkpoints of one run under `directory` and keeps the newest `keep`.

    asynchronous: `save` returns once the tensors are copied; `wait`, called by the next save and at the end of a run,
    raises the error of the save in the background. All ranks call every method at the same step; none returns from a
    synchronous `save`, or from `wait`, before the checkpoint is committed.
    """

    def __init__(self, directory: Path, context: DistributedContext, keep: int, asynchronous: bool):
        self._directory, self._context, self._keep = directory, context, keep
        self._asynchronous = asynchronous
        self._pending: tuple[Path, Future[None]] | None = None
        # Of its own: the saving thread's collectives run beside the training's.
        self._group = new_host_group(context.timeout_s) if asynchronous and context.size > 1 else None

    def save(
        self, state: TrainingState, metadata: CheckpointMetadata, on_commit: Callable[[], None] = lambda: None
    ) -> Path:
        """Saves a checkpoint and returns its directory. Raises CheckpointError; older checkpoints are then unchanged.

        on_commit: called on every rank once the checkpoint is committed, in the thread that saved it.
        """
        self.wait()
        directory = checkpoint_commit.checkpoint_dir(self._directory, metadata["finished_steps"])
        call_on_main(self._context, lambda: self._begin(directory, metadata))
        tensors = _copied_to_host(state.tensors()) if self._asynchronous else state.tensors()

        def finish() -> None:
            if self._context.device.type == "cuda":
                torch.cuda.set_device(self._context.device)  # a new thread's device is 0, another rank's
            self._finish(directory, tensors, on_commit)

        if self._asynchronous:
            self._pending = directory, Future()
            # A daemon: the end of the process does not wait for a disk that hangs.
            threading.Thread(target=settle, args=(finish, self._pending[1]), name="checkpoint", daemon=True).start()
        else:
            finish()
        return directory

    def wait(self) -> None:
        """Waits for the save in the background, if any, and raises its CheckpointError."""
        pending, self._pending = self._pending, None
        if pending is not None:
            directory, saved = pending
            if not futures.wait([saved], self._context.timeout_s).done:
                raise CheckpointError(
                    f"{directory}: the save in the background did not end within {self._context.timeout_s:.0f} s."
                )
            saved.result()

    def _begin(self, directory: Path, metadata: CheckpointMetadata) -> None:
        try:
            checkpoint_commit.create_empty(directory)
            write_durably(directory / STATE_FILE, json.dumps(metadata))
        except OSError as error:
            raise _not_saved(directory, error) from error

    def _finish(self, directory: Path, tensors: dict[str, Tensor], on_commit: Callable[[], None]) -> None:
        """Writes every rank's shards; then rank 0 commits while the others wait for it."""
        writer = HuggingFaceStorageWriter(str(directory), save_distributed=True)
        _ignore_single_process_warning()
        try:
            dcp.save(tensors, storage_writer=writer, process_group=self._group, no_dist=self._context.size == 1)
            call_on_main(self._context, lambda: self._commit(directory), self._group)
        except (CheckpointException, OSError) as error:  # the first is a BaseException
            if self._context.is_main:
                shutil.rmtree(directory, ignore_errors=True)  # not valid, and the disk may be full
            raise _not_saved(directory, error) from error
        on_commit()

    def _commit(self, directory: Path) -> None:
        checkpoint_commit.commit(directory)
        try:
            checkpoint_commit.prune(self._directory, self._keep)
        except OSError as error:
            raise CheckpointError(
                f"{directory} is saved, but an older checkpoint could not be removed: {_reason(error)}."
            ) from error


def verify_checkpoint(directory: Path) -> None:
    """Raises CheckpointError when `directory` is not a valid checkpoint; reads and hashes every file."""
    fault = checkpoint_commit.find_fault(directory)
    if fault is not None:
        raise CheckpointError(f"{directory}: {fault}. Resume from another checkpoint, or with --resume auto.")


def read_metadata(directory: Path) -> CheckpointMetadata:
    """The metadata of a checkpoint that was verified. Raises CheckpointError where they are no such metadata."""
    path = directory / STATE_FILE
    try:
        data = read_regular(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}. Resume from another checkpoint.") from error
    return decode_json(data, CheckpointMetadata, str(path), CheckpointError)


def load_training_state(directory: Path, context: DistributedContext, state: TrainingState) -> None:
    """Loads a checkpoint into `state` on all ranks, saved by any number of ranks. Raises CheckpointError."""
    tensors = state.tensors()
    _load(directory, tensors, single_process=context.size == 1)
    try:
        torch.set_rng_state(tensors["rng.cpu"])
    except RuntimeError as error:
        raise CheckpointError(f"{directory}: 'rng.cpu' is no state of a generator: {error}.") from error


def load_model(directory: Path, model: nn.Module) -> None:
    """Loads the parameters of a whole model in this process only. Raises CheckpointError."""
    _load(directory, model_tensors(model), single_process=True)


def _load(directory: Path, tensors: dict[str, Tensor], single_process: bool) -> None:
    _ignore_single_process_warning()
    try:
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(directory)), no_dist=single_process)
    except CheckpointException as error:
        raise CheckpointError(f"{directory}: {_reason(error)}") from error


def _copied_to_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy in host memory that training does not change; DTensors stay DTensors."""
    stager = DefaultStager(StagingOptions(False, False, False, False))  # not pinned, copied before `stage` returns
    copied = stager.stage(tensors)
    stager.close()
    assert isinstance(copied, dict)
    return copied


def _ignore_single_process_warning() -> None:
    """DCP warns that without a process group it assumes a single process; here that is what is meant."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)


def _not_saved(directory: Path, error: BaseException) -> CheckpointError:
    return CheckpointError(f"{directory}: not saved: {_reason(error)}\n  Older checkpoints are unchanged.")


def _reason(error: BaseException) -> str:
    """The first rank's error, or the error itself, in one line."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (cause, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''}"
    return f"{type(error).__name__}: {error}"
