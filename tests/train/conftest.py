"""Fixtures of the training tests: child processes, ranks, network namespaces, a corpus, a config, a fake clock."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.train.network import network
from tests.train.tiny_model import TINY_MODEL


@pytest.fixture
def nodes() -> Iterator[None]:
    """Two network namespaces on one switch."""
    with network():
        yield


def _settings(corpus: Path, run_dir: Path) -> dict:
    return {
        "corpus": str(corpus),
        "run_dir": str(run_dir),
        "model": {"preset": "tiny"},
        "data": {"global_batch_size": 8, "prefetch": 2, "mixture_lag": 2, "io_threads": 1},
        "policy": {"name": "ado", "options": {"start_step": 2, "ignore_steps": 0, "interval": 2}},
        "train": {"steps": 12, "device": "cpu"},
        "checkpoint": {"every_steps": 4},
        "evaluate": {"every_steps": 4, "max_samples_per_domain": 8},
        "log": {"every_steps": 100},
    }


@pytest.fixture
def settings(tiny_corpus: Path, tmp_path: Path, monkeypatch) -> dict:
    """A config of twelve quick steps of the preset "tiny", in which ADO changes the mixture from the second step on."""
    from ado_model import PRESETS

    monkeypatch.setitem(PRESETS, "tiny", TINY_MODEL)
    return _settings(tiny_corpus, tmp_path / "run")


@pytest.fixture(scope="session")
def finished_once(tiny_corpus: Path, tmp_path_factory) -> Path:
    """The directory of a finished run of `settings`; not to be changed."""
    from ado_model import PRESETS
    from ado_stream.train.run_config import load_config
    from ado_stream.train.trainer import run_training

    run_dir = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", TINY_MODEL)
        run_training(load_config(_settings(tiny_corpus, run_dir)))
    return run_dir


@pytest.fixture
def finished(finished_once: Path, settings: dict) -> Path:
    """The run directory of `settings`, in which the run is finished: a copy."""
    return shutil.copytree(finished_once, settings["run_dir"])


class FakeClock:
    """Replaces the module `time`; a test sets `now`."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def fake_clock(monkeypatch) -> FakeClock:
    """The clock of StepTimer and StepLog."""
    from ado_stream.train import step_log, step_timer

    clock = FakeClock()
    monkeypatch.setattr(step_timer, "time", clock)
    monkeypatch.setattr(step_log, "time", clock)
    return clock
