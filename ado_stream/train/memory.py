"""Keeps the C library from giving freed memory back to the kernel between two steps.

glibc maps each large block anew and unmaps it when freed; every step then pays a page fault for every 4 KiB of its
activations. On virtual machines, where faults are slow, that was most of a step of a small model on a CPU
(benchmarks/bench_train.py measures both ways). GPU memory has torch's caching allocator for this.
"""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
BLOCK_BYTES = 1 << 30
TRIM_BYTES = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Blocks up to 1 GiB come from the heap, and the heap is not trimmed below 2 GiB; False where glibc is not used."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, BLOCK_BYTES)) and bool(mallopt(M_TRIM_THRESHOLD, TRIM_BYTES))
