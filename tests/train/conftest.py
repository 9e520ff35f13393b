"""What the tests of training share: a way to run a function's file on several ranks."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

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
