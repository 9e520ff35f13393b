"""What the tests of training share: ways to run a function elsewhere and on several ranks, a corpus, a config."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.train.forked import Forked
from tests.train.micro import MICRO
from tests.train.network import network


@pytest.fixture(scope="session")
def forked(tmp_path_factory) -> Iterator[Forked]:
    """Starts children in milliseconds (tests/train/forked.py)."""
    children = Forked(tmp_path_factory.mktemp("forked"))
    yield children
    children.close()


@pytest.fixture(scope="session")
def ranks(forked: Forked, tmp_path_factory) -> Callable[..., Any]:
    """Runs `function(*arguments, OUT)` on `num_ranks` CPU ranks and returns the JSON that OUT then holds."""

    def run(num_ranks: int, function: Callable[..., None], *arguments: Any) -> Any:
        out = tmp_path_factory.mktemp("ranks") / "out.json"
        forked.run(function, *arguments, str(out), num_ranks=num_ranks)
        return json.loads(out.read_text())

    return run


@pytest.fixture
def nodes() -> Iterator[None]:
    """Two network namespaces on one switch."""
    with network():
        yield


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory) -> Path:
    """Three domains of different size and difficulty, as bytes, sequences of 32; each with validation text."""
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


@pytest.fixture
def settings(tiny_corpus: Path, tmp_path: Path, monkeypatch) -> dict:
    """A config of twelve quick steps of a model called micro, in which ADO acts from the second step on."""
    from ado_model import PRESETS

    monkeypatch.setitem(PRESETS, "micro", MICRO)
    return _settings(tiny_corpus, tmp_path)


def _settings(corpus: Path, folder: Path) -> dict:
    return {
        "corpus": str(corpus),
        "run_dir": str(folder / "run"),
        "model": {"preset": "micro"},
        "data": {"global_batch_size": 8, "prefetch": 2, "mixture_lag": 2, "io_threads": 1},
        "policy": {"name": "ado", "options": {"start_step": 2, "ignore_steps": 0, "interval": 2}},
        "train": {"steps": 12, "device": "cpu"},
        "checkpoint": {"every_steps": 4},
        "evaluate": {"every_steps": 4, "max_samples_per_domain": 8},
        "log": {"every_steps": 100},
    }
