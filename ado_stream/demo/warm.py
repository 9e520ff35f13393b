"""Compiles the scaling-law fit in a process of its own while the demo's first stages run.

Numba compiles it once per machine and keeps it on disk, which takes about as long as a quick demo's training. Stopped
or failed, it costs nothing: the training run then compiles what is missing.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def compiling_the_fit() -> Iterator[None]:
    """Runs this module in another process until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ado_stream.demo.warm"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """One fit of two short histories, laid out in memory as the policy's are."""
    from ado_kernels import scaling_law_fit

    count_M = np.arange(1.0, 400.0)
    loss_MK = np.stack([2 + 3 * count_M**-0.3, 1 + 2 * count_M**-0.2], axis=1)
    scaling_law_fit(count_M, loss_MK.T)


if __name__ == "__main__":
    main()
