"""Process settings for training on a CPU: OpenMP threads sleep when idle, and malloc keeps freed memory.

Both matter for small models, whose steps are many short operations. Nothing here imports torch.
"""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
BLOCK_BYTES = 1 << 30
TRIM_BYTES = (1 << 31) - 1
SPIN_COUNT = 20_000  # of GNU's OpenMP, which torch brings


def let_idle_threads_sleep() -> None:
    """OpenMP threads spin for tens of microseconds, then sleep, unless OMP_WAIT_POLICY is set.

    Call before torch is imported: OpenMP reads the setting once. By default threads spin for milliseconds and take
    cores from Numba, from the loader's threads and from other processes; without spinning, small steps wait for threads
    to wake up.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))


def keep_freed_memory() -> bool:
    """Allocates blocks up to 1 GiB from the heap and does not trim it below 2 GiB. False: the C library is not glibc.

    By default glibc maps each large block and unmaps it when freed, so every step pays a page fault for every 4 KiB of
    its activations. On GPUs torch's caching allocator prevents this.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, BLOCK_BYTES)) and bool(mallopt(M_TRIM_THRESHOLD, TRIM_BYTES))
