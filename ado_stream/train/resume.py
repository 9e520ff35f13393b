"""Where a run begins: the checkpoint that it goes on from, and its directory made ready for that.

Invariant: nothing that an earlier run left is lost. What lies beyond the point of resuming is renamed; a run that goes
on from its own checkpoint keeps its id and its record, another one starts both anew.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ado_stream.errors import CheckpointError
from ado_stream.record import FILE_NAME, rewind
from ado_stream.train import commit
from ado_stream.train.checkpoint import load_facts, read_facts

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Beginning:
    """directory: the checkpoint, None to start anew; facts: what it says; passed_over: why newer ones were not taken.

    goes_on: under the run's own id, in its record. is_saved: the checkpoint is this run's newest, where it belongs.
    """

    directory: Path | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    passed_over: tuple[str, ...] = ()
    goes_on: bool = False
    is_saved: bool = False

    @property
    def step(self) -> int:
        """Finished steps."""
        return int(self.facts.get("finished_steps", 0))


def find_beginning(run_dir: Path, resume: str) -> Beginning:
    """What `resume` ("auto", "none" or a checkpoint's path) means for the run in `run_dir`; all files are checked.

    Raises CheckpointError: the checkpoint named is not sound, or there are some and none is.
    """
    if resume == "none":
        return Beginning()
    checkpoints = run_dir / CHECKPOINTS
    if resume != "auto":
        directory = _named(resume)
        facts = load_facts(directory)
        own = directory.resolve().is_relative_to(run_dir.resolve())
        place = commit.directory_of(checkpoints, int(facts["finished_steps"]))
        return Beginning(directory, facts, goes_on=own, is_saved=directory.resolve() == place.resolve())
    newest, passed_over = commit.newest_sound(checkpoints)
    if newest is not None:
        return Beginning(newest, read_facts(newest), tuple(passed_over), goes_on=True, is_saved=True)
    if any((each / commit.MARKER).exists() for each in commit.newest_first(checkpoints)):
        raise CheckpointError(
            f"{checkpoints}: no checkpoint can be trusted: {'; '.join(passed_over)}.\n  Start anew with --resume none."
        )
    return Beginning(passed_over=tuple(passed_over), goes_on=True)


def _named(resume: str) -> Path:
    """The checkpoint directory at the path `resume`. Raises CheckpointError for a path that cannot be one."""
    directory = Path(resume)
    if not directory.is_dir():
        raise CheckpointError(
            f"{directory}: no such directory. Name a checkpoint, such as RUN/{CHECKPOINTS}/step_00000300, or auto."
        )
    inside = commit.newest_first(directory / CHECKPOINTS) or commit.newest_first(directory)
    if inside:
        raise CheckpointError(f"{directory}: not a checkpoint; it holds some. Name one of them, such as {inside[0]}.")
    if not (directory / commit.MARKER).exists():
        commit.step_of(directory)  # raises for a name that no save gives
    return directory


def make_ready(run_dir: Path, beginning: Beginning) -> None:
    """A run directory whose checkpoints and record end where the run begins; the rest is set aside."""
    run_dir.mkdir(parents=True, exist_ok=True)
    if beginning.goes_on:
        commit.set_aside_newer(run_dir / CHECKPOINTS, beginning.step)
        rewind(run_dir, beginning.step)
    else:
        commit.set_aside_newer(run_dir / CHECKPOINTS, 0)
        commit.set_aside(run_dir / FILE_NAME)
