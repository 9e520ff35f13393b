"""The Triton kernels give the right numbers under Triton's interpreter, which needs no GPU.

The interpreter is chosen when triton is imported, hence processes of their own for the files interpreted_*.py.
What it cannot show (races, layouts, registers, rounding to bf16) is left to test_ahead_of_time.py and to a GPU.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

FILES = sorted(Path(__file__).parent.glob("interpreted_*.py"))


def test_there_is_one_file_per_operation():
    assert {file.stem.removeprefix("interpreted_") for file in FILES} == {
        "domain_loss",
        "fit",
        "linear_cross_entropy",
        "rms_norm",
        "rms_norm_rope",
        "swiglu",
    }


@pytest.mark.slow
def test_kernels_under_the_interpreter():
    def run(files: list[Path]) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", *map(str, files)]
        environment = os.environ | {"TRITON_INTERPRET": "1", "TRITON_DEFAULT_FP_FUSION": "1"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    is_fit = [file.stem == "interpreted_fit" for file in FILES]  # takes longer than all others
    parts = [[file for file, is_one in zip(FILES, is_fit, strict=True) if is_one is fit] for fit in (True, False)]
    with ThreadPoolExecutor(2) as threads:  # as many as CI has cores
        for done in threads.map(run, parts):
            assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
