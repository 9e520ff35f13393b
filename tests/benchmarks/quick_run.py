"""Runs a benchmark as `python -m MODULE OPTIONS` does, in a child of the tests' fork server, which imports for all."""

import os
import runpy
import sys
from pathlib import Path

import numba

ROOT = Path(__file__).parents[2]


def run_benchmark(module: str, options: list[str], results: str) -> None:
    """Records go to the folder `results`; the process ends with the benchmark's exit code."""
    numba.config.reload_config()  # it was imported before
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])  # of what it starts
    os.chdir(results)
    import benchmarks.common

    benchmarks.common.RESULTS = Path(results)
    sys.argv = [module, *options]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
