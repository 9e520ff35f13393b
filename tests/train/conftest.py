"""Fixtures of the training tests: child processes, ranks, network namespaces, a corpus, a config, a fake clock."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.train.child_processes import ChildProcesses
from tests.train.network import network
from tests.train.tiny_model import TINY_MODEL


@pytest.fixture(scope="session")
def ranks(children: ChildProcesses, tmp_path_factory) -> Callable[..., Any]:
    """Runs `function(*arguments, OUT)` on `num_ranks` CPU ranks and returns the JSON that it wrote to OUT."""

    def run(num_ranks: int, function: Callable[..., None], *arguments: Any) -> Any:
        out = tmp_path_factory.mktemp("ranks") / "out.json"
        children.run(function, *arguments, str(out), num_ranks=num_ranks)
        return json.loads(out.read_text())

    return run


@pytest.fixture
def nodes() -> Iterator[None]:
    """Two network namespaces on one switch."""
    with network():
        yield


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory) -> Path:
    """Three domains of different size and difficulty, tokenised as bytes, sequences of 32; each has validation text."""
    from ado_stream.prepare.config import PrepareConfig
    from ado_stream.prepare.coordinator import prepare

    folder = tmp_path_factory.mktemp("tiny")
    for domain, num_documents, vocabulary in (("easy", 60, 4), ("medium", 120, 40), ("hard", 30, 400)):
        generator = np.random.default_rng(vocabulary)
        for part, num in (("train", num_documents), ("val", 10)):
            lines = [
                json.dumps({"text": " ".join(f"w{word}" for word in generator.integers(vocabulary, size=60))})
                for _ in range(num)
            ]
            place = folder / part / domain
            place.mkdir(parents=True)
            (place / "text.jsonl").write_text("\n".join(lines) + "\n")
    config = PrepareConfig(
        inputs=(str(folder / "train"),), val=(str(folder / "val"),), out=str(folder / "corpus"), seq_len=32, workers=1
    )
    return Path(prepare(config))


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
    from ado_stream.train.config import load_config
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
