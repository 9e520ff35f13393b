"""How training on a CPU uses its machine: as many threads as asked for, which sleep when idle, and memory kept.

All three are about small models, whose steps are many short operations; benchmarks/bench_train.py measures the last
two. Nothing here imports torch before it is called.
"""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
BLOCK_BYTES = 1 << 30
TRIM_BYTES = (1 << 31) - 1
SPIN_COUNT = 20_000  # of GNU's OpenMP, which torch brings


def let_idle_threads_sleep() -> None:
    """OpenMP threads spin for tens of microseconds and then sleep, unless the user said otherwise; call before torch
    is imported.

    By default they spin for milliseconds and take a core from the Numba kernels, from the loader's threads, and from
    everyone else on the machine; without any spinning, small steps wait for threads to wake up.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))


def keep_torchs_threads() -> None:
    """Starts Numba's threads and gives torch back the number that it had, OMP_NUM_THREADS or one a core.

    Both sit on one OpenMP, whose number Numba sets to the machine's cores when its first kernel runs: ranks to whom
    torchrun gave one thread each would then have all cores each.
    """
    import numba
    import torch
    from numba.core import config

    num_threads = torch.get_num_threads()
    numba.set_num_threads(min(num_threads, config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    torch.set_num_threads(num_threads)


def keep_freed_memory() -> bool:
    """Blocks up to 1 GiB come from the heap, and the heap is not trimmed below 2 GiB; False where glibc is not used.

    glibc maps each large block anew and unmaps it when freed; every step then pays a page fault for every 4 KiB of
    its activations. On GPUs torch's caching allocator does this.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, BLOCK_BYTES)) and bool(mallopt(M_TRIM_THRESHOLD, TRIM_BYTES))
