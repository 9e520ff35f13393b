"""What the tests of training share: a way to run a function's file on several ranks."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def ranks(tmp_path_factory) -> Callable[..., list]:
    """Runs `script ARGS... OUT` on `num_ranks` CPU ranks (torchrun if several), returns OUT's JSON."""

    def run(num_ranks: int, script: Path, *arguments: object) -> list:
        out = tmp_path_factory.mktemp(f"ranks-{num_ranks}") / "out.json"
        paths = [str(ROOT / part) for part in (".", "kernels", "model")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
        launcher = torchrun if num_ranks > 1 else []
        command = [sys.executable, *launcher, str(script), *map(str, arguments), str(out)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(out.read_text())

    return run


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory) -> Path:
    """Three domains of different size and difficulty, as bytes, sequences of 32; each with validation text."""
    from ado_stream.prepare.config import PrepareConfig
    from ado_stream.prepare.run import prepare

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
    from ado_model import PRESETS, ModelConfig

    monkeypatch.setitem(PRESETS, "micro", ModelConfig(num_layers=1, width=16, num_heads=1))
    return {
        "corpus": str(tiny_corpus),
        "run_dir": str(tmp_path / "run"),
        "model": {"preset": "micro"},
        "data": {"global_batch_size": 8, "prefetch": 2, "mixture_lag": 2, "io_threads": 1},
        "policy": {"name": "ado", "options": {"start_step": 2, "ignore_steps": 0, "interval": 2}},
        "train": {"steps": 12, "device": "cpu"},
        "checkpoint": {"every_steps": 4},
        "evaluate": {"every_steps": 4, "max_samples_per_domain": 8},
        "log": {"every_steps": 100},
    }
