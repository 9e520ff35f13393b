"""What training does to its process: the number of threads stays what the user gave."""

import os
import subprocess
import sys

SCRIPT = """
import torch
from ado_kernels import rms_norm
from ado_stream.train.host import keep_torchs_threads
keep_torchs_threads()
rms_norm(torch.randn(4, 16))
print(torch.get_num_threads())
"""


def test_numbas_threads_do_not_become_torchs():
    """Three stand for the cores of a machine, all of which Numba would give to each rank."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "3"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
