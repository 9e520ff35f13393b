"""How fast are batches read from local raw shards? Against StreamingDataset and against one memcpy of the same bytes.

8 domains, 1025 uint16 tokens a sample, batch 64; bars: 10 times the better of StreamingDataset with 0 and 2 workers, a
third of the rate of one memcpy. A batch is handed out as int64, four times the bytes that lie on disk, so there are two
such copies: of the bytes as handed out; and of the bytes as stored, from consecutive samples, which a reader that casts
and gathers cannot come near: it writes four times as much, and its rows lie far apart. All in one run, on the same
shards, each reader in a process of its own.
"""

import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from benchmarks.common import in_own_process, write_result
from benchmarks.stream_data import BATCH, ROW_TOKENS, time_ours, time_theirs, write_domains

ROUNDS = 5


def memcpy_rate(local: Path, token_bytes: int, batches: int = 2000) -> float:
    """Samples a second when each batch is one slice of memory that holds all samples at `token_bytes` a token.

    Slices lie anywhere, as batches do, so that they come from memory and not from a cache.
    """
    stored = [np.fromfile(path, np.uint16, offset=path.stat().st_size % 2) for path in sorted(local.glob("*/*.mds"))]
    source = np.concatenate(stored).astype(np.dtype(f"u{token_bytes}"))
    size = BATCH * ROW_TOKENS
    target = np.empty(size, source.dtype)
    starts = np.random.default_rng(0).integers(0, source.size - size, batches)
    started = time.perf_counter()
    for start in starts:
        target[:] = source[start : start + size]
    return batches * BATCH / (time.perf_counter() - started)


def main() -> None:
    """Prints and writes the rates, medians of rounds in which all contestants take turns."""
    rates: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder)
        names = write_domains(local, samples=6000, compression=None)
        for _ in range(ROUNDS):
            for prefetch in (0, 4):
                ours = in_own_process(time_ours, 0.0, local, names, None, prefetch, 200, 6000)
                rates[f"ours, prefetch {prefetch}"].append(ours[1])
            large = in_own_process(time_ours, 0.0, local, names, None, 0, 50, 1500, 4 * BATCH)
            rates["ours, prefetch 0, batch 256"].append(large[1])
            for workers in (0, 2):
                theirs = in_own_process(time_theirs, 0.0, local, names, None, workers, 20, 150)
                rates[f"streaming, {workers} workers"].append(theirs[1])
            rates["memcpy of the bytes handed out"].append(memcpy_rate(local, 8))
            rates["memcpy of the bytes stored"].append(memcpy_rate(local, 2))
    median = {name: statistics.median(values) for name, values in rates.items()}
    ours = max(median["ours, prefetch 0"], median["ours, prefetch 4"])
    theirs = max(median["streaming, 0 workers"], median["streaming, 2 workers"])
    write_result(
        "stream_local",
        {
            "samples_per_s": median,
            "rounds": rates,
            "ours_over_streaming": ours / theirs,
            "ours_over_memcpy": ours / median["memcpy of the bytes handed out"],
            "ours_over_memcpy_at_batch_256": median["ours, prefetch 0, batch 256"]
            / median["memcpy of the bytes handed out"],
            "ours_over_memcpy_of_stored": ours / median["memcpy of the bytes stored"],
            "bars": {"ours_over_streaming": 10, "ours_over_memcpy": 1 / 3},
        },
    )


if __name__ == "__main__":
    main()
