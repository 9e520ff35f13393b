"""How training on a CPU uses its machine: idle threads sleep, and freed memory is kept.

Both are about small models, whose steps are many short operations; benchmarks/bench_host.py measures them. Nothing
here imports torch.
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
