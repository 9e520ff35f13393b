"""Finds the checkpoint that a run resumes from and prepares its run directory.

Invariant: nothing that an earlier run wrote is lost. Checkpoints and records after the resume point are renamed; a run
that resumes from its own checkpoint keeps its id, its record and its operator's orders, any other starts new ones.
"""

from dataclasses import dataclass
from pathlib import Path

from ado_stream.errors import CheckpointError
from ado_stream.record import FILE_NAME, read_lines, rewind
from ado_stream.train import checkpoint_commit
from ado_stream.train.checkpoint import CheckpointMetadata, read_metadata, verify_checkpoint
from ado_stream.train.run_control import FOLDER

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


def has_ended(run_dir: Path, steps: int, resume_point: ResumePoint) -> bool:
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


def prepare_run_dir(run_dir: Path, resume_point: ResumePoint) -> None:
    """Creates `run_dir`, or ends its checkpoints and its record at the resume point by renaming what comes after."""
    run_dir.mkdir(parents=True, exist_ok=True)
    if resume_point.continues_run:
        checkpoint_commit.set_aside_newer(run_dir / CHECKPOINTS, resume_point.step)
        rewind(run_dir, resume_point.step)
    else:
        checkpoint_commit.set_aside_newer(run_dir / CHECKPOINTS, 0)
        checkpoint_commit.set_aside(run_dir / FILE_NAME)
        checkpoint_commit.set_aside(run_dir / FOLDER)
