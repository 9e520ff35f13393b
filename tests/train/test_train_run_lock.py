"""One run at a time in a run directory; its successor waits for it, and goes on from what it saved."""

import errno
import fcntl
import shutil
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from ado_stream.errors import ConfigError, StorageError
from ado_stream.train import resume, run_lock
from ado_stream.train.run_config import load_config
from ado_stream.train.train_step import TrainStep
from ado_stream.train.trainer import run_training
from tests.train.run_helpers import changed, untimed_lines


def _hold(run_dir: Path) -> ExitStack:
    """Another run's lock, until it is closed."""
    held = ExitStack()
    held.enter_context(run_lock.run_lock(run_dir, 0.0))
    return held


@pytest.mark.parametrize("how", ["auto", "none"])
def test_a_second_run_is_refused_and_changes_nothing(settings: dict, monkeypatch, how, capsys):
    monkeypatch.setattr(resume, "WAIT_S", 0.3)
    run_dir = Path(settings["run_dir"])
    run_training(load_config(changed(settings, train={"steps": 8})))
    files = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    with _hold(run_dir), pytest.raises(StorageError, match=rf"'run_dir' is {run_dir}: another run has been writing"):
        run_training(load_config(settings), how)
    assert f"waiting for the run in {run_dir} to end" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("steps", [12, 14])
def test_a_run_goes_on_from_what_the_one_that_it_waited_for_saved(finished, settings, tmp_path, capsys, steps):
    config = load_config(changed(settings, run_dir=str(tmp_path / "other"), train={"steps": steps}))
    lock = _hold(Path(config.run_dir))

    def end_the_other() -> None:
        shutil.copytree(finished, config.run_dir, dirs_exist_ok=True)
        lock.close()

    timer = threading.Timer(1.0, end_the_other)
    timer.start()
    assert run_training(config).step == steps
    timer.join()
    printed = capsys.readouterr().out
    assert "waiting for the run" in printed
    assert ("all 12 steps are done" if steps == 12 else "resuming from step 12") in printed
    assert untimed_lines(config.run_dir)[:12] == untimed_lines(settings["run_dir"])
    assert [line["step"] for line in untimed_lines(config.run_dir)] == list(range(steps))


def test_the_lock_is_free_after_a_run_that_failed(settings: dict, monkeypatch):
    monkeypatch.setattr(resume, "WAIT_S", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "update", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_training(load_config(settings))
    assert run_training(load_config(settings)).step == 12


def test_a_file_system_without_locks_is_said_and_trains(settings: dict, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with run_lock.run_lock(Path(settings["run_dir"]), 0.0):
        pass
    assert "No locks available: nothing keeps a second run out of it" in caplog.text


def test_settings_that_cannot_work_leave_no_run_directory(settings: dict):
    with pytest.raises(ConfigError, match="warmup"):
        run_training(load_config(changed(settings, train={"warmup_steps": 99})))
    assert not Path(settings["run_dir"]).exists()
