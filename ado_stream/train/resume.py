"""Finds the checkpoint that a run resumes from, locks its run directory and prepares it.

Invariant: nothing that an earlier run wrote is deleted. Checkpoints and records after the resume point are renamed; a
run that resumes from its own checkpoint keeps its id, its record and its operator's orders, any other starts new ones.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ado_stream.errors import CheckpointError
from ado_stream.record import FILE_NAME, read_lines, rewind
from ado_stream.train import checkpoint_commit
from ado_stream.train.checkpoint import CheckpointMetadata, read_metadata, verify_checkpoint
from ado_stream.train.components import build_components
from ado_stream.train.distributed import DistributedContext, call_on_main
from ado_stream.train.run_config import CONFIG_FILE, TrainConfig, save_config
from ado_stream.train.run_control import FOLDER
from ado_stream.train.run_lock import WAIT_S, run_dir_errors, run_lock
from ado_stream.train.stages import run_stages, stage_at
from ado_stream.visible import show

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint to resume from, or None in `directory` and `metadata` to start from step 0.

    skipped: "NAME: REASON" of each newer checkpoint that is not valid. continues_run: the run keeps its id and record.
    already_saved: the checkpoint is where this run would save it.
    """

    directory: Path | None = None
    metadata: CheckpointMetadata | None = None
    skipped: tuple[str, ...] = ()
    continues_run: bool = False
    already_saved: bool = False

    @property
    def step(self) -> int:
        """Finished steps."""
        return 0 if self.metadata is None else self.metadata["finished_steps"]


def begin_run(config: TrainConfig, resume: str, context: DistributedContext, held: ExitStack) -> ResumePoint | None:
    """Where the run begins, with its directory locked until `held` ends; None where all is done. Call on every rank.

    Settings that cannot work fail here, not after weeks, and before anything is written. Raises as run_training.
    """
    run_dir, steps = Path(config.run_dir), config.train.steps
    lock = run_lock(run_dir, min(WAIT_S, config.train.collective_timeout_s / 2))  # other ranks wait for rank 0
    seen: list[Path] | None = None
    for locked in (False, True):
        there = call_on_main(context, lambda: checkpoint_commit.list_checkpoints(run_dir / CHECKPOINTS))
        if seen != there:  # the second time: another run had the lock, and saved
            seen, resume_point = there, call_on_main(context, lambda: find_resume_point(run_dir, resume))
            if call_on_main(context, partial(is_finished, run_dir, steps, resume_point)):
                if context.is_main:
                    show(f"all {steps} steps are done; raise train.steps to continue, or start again: --resume none")
                return None
            for stage in run_stages(config)[stage_at(config, resume_point.step).number :]:
                build_components(stage.config, context)
        if not locked:
            call_on_main(context, lambda: held.enter_context(lock))
    return resume_point


def find_resume_point(run_dir: Path, resume: str) -> ResumePoint:
    """What `resume` ("auto", "none" or a checkpoint's path) means for the run in `run_dir`; verifies every file.

    Raises CheckpointError: the named checkpoint is not valid, or there are committed ones and none is valid.
    """
    if resume == "none":
        return ResumePoint()
    checkpoints = run_dir / CHECKPOINTS
    if resume != "auto":
        directory = _named_checkpoint(resume)
        verify_checkpoint(directory)
        metadata = read_metadata(directory)
        own = directory.resolve().is_relative_to(run_dir.resolve())
        place = checkpoint_commit.checkpoint_dir(checkpoints, metadata["finished_steps"])
        already_saved = directory.resolve() == place.resolve()
        return ResumePoint(directory, metadata, continues_run=own, already_saved=already_saved)
    newest, skipped = checkpoint_commit.newest_valid(checkpoints)
    if newest is not None:
        return ResumePoint(newest, read_metadata(newest), tuple(skipped), continues_run=True, already_saved=True)
    if any((each / checkpoint_commit.MARKER).exists() for each in checkpoint_commit.list_checkpoints(checkpoints)):
        raise CheckpointError(
            f"{checkpoints}: no valid checkpoint: {'; '.join(skipped)}.\n  Start from step 0 with --resume none."
        )
    return ResumePoint(skipped=tuple(skipped), continues_run=True)


def is_finished(run_dir: Path, steps: int, resume_point: ResumePoint) -> bool:
    """Whether the run in `run_dir` has done its `steps` steps and its last validation, and kept the checkpoint."""
    if resume_point.step != steps or not resume_point.already_saved or resume_point.skipped:
        return False
    path = run_dir / FILE_NAME
    last = read_lines(path)[-1] if path.exists() else {}
    return (last.get("kind"), last.get("name"), last.get("step")) == ("event", "done", steps)


def _named_checkpoint(resume: str) -> Path:
    """The checkpoint directory at the path `resume`. Raises CheckpointError for a path that cannot be one."""
    directory = Path(resume)
    if not directory.is_dir():
        raise CheckpointError(
            f"{directory}: no such directory. Name a checkpoint, such as RUN/{CHECKPOINTS}/step_00000300, or auto."
        )
    inside = checkpoint_commit.list_checkpoints(directory / CHECKPOINTS)
    inside = inside or checkpoint_commit.list_checkpoints(directory)
    if inside:
        raise CheckpointError(f"{directory}: contains checkpoints, is not one. Name one of them, such as {inside[0]}.")
    if not (directory / checkpoint_commit.MARKER).exists():
        checkpoint_commit.checkpoint_step(directory)  # raises for a name that no save gives
    return directory


def prepare_run_dir(config: TrainConfig, resume_point: ResumePoint) -> None:
    """Ends the run directory's checkpoints and record at the resume point by renaming what comes after; saves `config`.

    Raises StorageError where it cannot be written.
    """
    run_dir = Path(config.run_dir)
    with run_dir_errors(run_dir):
        _set_aside(run_dir, resume_point)
        save_config(config, run_dir / CONFIG_FILE)


def _set_aside(run_dir: Path, resume_point: ResumePoint) -> None:
    # Checkpoints before the record: after a kill in between, the next resume finds the same checkpoint and drops the
    # same lines. In the other order it would find a checkpoint beyond the record's end: lines would be missing.
    if resume_point.continues_run:
        checkpoint_commit.set_aside_newer(run_dir / CHECKPOINTS, resume_point.step)
        rewind(run_dir, resume_point.step)
    else:
        checkpoint_commit.set_aside_newer(run_dir / CHECKPOINTS, 0)
        checkpoint_commit.set_aside(run_dir / FILE_NAME)
        checkpoint_commit.set_aside(run_dir / FOLDER)
