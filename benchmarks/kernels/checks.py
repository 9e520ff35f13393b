"""Right before fast: equal bits in three runs, CUDA graphs replayed on new inputs, domains and narrow dtypes.

They are tests/kernels/test_gpu*.py, where all operations are compared with float64 in every shape and dtype; a few of
them run here, in a process of their own. What is timed is examined as well, at its own size, by each script.
"""

import re
import subprocess
import sys
from pathlib import Path

from benchmarks.kernels.harness import Bench

ROOT = Path(__file__).parents[2]
FILES = ("tests/kernels/test_gpu.py", "tests/kernels/test_gpu_loss.py")
SELECTED = "three_runs or cuda_graph or domain_loss or float16_and_float32"
BUDGET_S = 120.0


def run_checks(bench: Bench) -> None:
    """Records how many passed; a failure fails the run, and so does a test that did not end in time."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *FILES, "-k", SELECTED]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=BUDGET_S, check=False)
        failed, output = done.returncode != 0, done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        failed, output = True, f"not done after {BUDGET_S:g} s"
    passed = re.search(r"(\d+) passed", output)
    bench.emit(
        "correctness", SELECTED, passed=int(passed[1]) if passed else 0, wrong=failed, output=output[-1500:] * failed
    )
    if failed:
        bench.failed.append(f"correctness: {output.strip().splitlines()[-1]}")
