"""What `resume` may name: a valid checkpoint, and not a folder that contains some."""

from pathlib import Path

import pytest

from ado_stream.errors import CheckpointError
from ado_stream.train.resume import find_resume_point


def test_an_explicit_checkpoint_must_be_valid(tmp_path: Path):
    incomplete = tmp_path / "step_00000003"
    incomplete.mkdir()
    with pytest.raises(CheckpointError, match="COMMIT.json is missing; the save did not finish"):
        find_resume_point(tmp_path / "new", str(incomplete))


def test_what_resume_names_must_be_a_checkpoint(tmp_path: Path):
    """A folder of checkpoints is refused: the user must say which one is meant."""
    folders = {
        "absent": "no such directory. Name a checkpoint, such as RUN/checkpoints/step_00000300, or auto.",
        "run": f"contains checkpoints, is not one. Name one of them, such as {tmp_path}/run/checkpoints/step_00000008.",
        "run/checkpoints": f"contains checkpoints, is not one. Name one of them, such as {tmp_path}/run/checkpoints/",
        "empty": "not a checkpoint directory; expected a name such as step_00000300.",
    }
    for name in ("run/checkpoints/step_00000004", "run/checkpoints/step_00000008", "empty"):
        (tmp_path / name).mkdir(parents=True)
    for name, message in folders.items():
        with pytest.raises(CheckpointError) as caught:
            find_resume_point(tmp_path / "new", str(tmp_path / name))
        assert str(caught.value).startswith(f"{tmp_path / name}: {message}")
