"""How fast are batches read from local raw shards? Against StreamingDataset and against one memcpy of the same bytes.

8 domains, 1025 uint16 tokens a sample, batch 64; bars: 10 times the better of StreamingDataset with 0 and 2 workers, a
third of the rate of a memcpy of the samples' stored bytes (2,050 a sample), all in one run on the same shards.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import write_result
from benchmarks.stream_data import BATCH, ROW_TOKENS, our_batches, their_batches, timed, write_domains

ROUNDS = 3


def memcpy_rate(local: Path, batches: int = 2000) -> float:
    """Samples a second when whole batches' bytes are copied, as one slice each, from a mapped file to one buffer."""
    path = max(local.glob("*/shard.*.mds"), key=lambda file: file.stat().st_size)
    source = np.memmap(path, np.uint8, "r")
    size = BATCH * ROW_TOKENS * 2
    target = np.empty(size, np.uint8)
    starts = np.random.default_rng(0).integers(0, source.size - size, batches)
    for start in starts:  # once through, so that pages are mapped as they are for the others
        target[:] = source[start : start + size]
    started = time.perf_counter()
    for start in starts:
        target[:] = source[start : start + size]
    return batches * BATCH / (time.perf_counter() - started)


def main() -> None:
    """Prints and writes the rates, medians of rounds in which all contestants take turns."""
    rates: dict[str, list[float]] = {"ours": [], "streaming, 0 workers": [], "streaming, 2 workers": [], "memcpy": []}
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder)
        names = write_domains(local, samples=6000, compression=None)
        for _ in range(ROUNDS):
            rates["ours"].append(timed(our_batches(local, names), 200, 3000)[1])
            for workers in (0, 2):
                rates[f"streaming, {workers} workers"].append(timed(their_batches(local, names, workers), 20, 150)[1])
            rates["memcpy"].append(memcpy_rate(local))
    median = {name: statistics.median(values) for name, values in rates.items()}
    better = max(median["streaming, 0 workers"], median["streaming, 2 workers"])
    write_result(
        "stream_local",
        {
            "samples_per_s": median,
            "rounds": rates,
            "ours_over_streaming": median["ours"] / better,
            "ours_over_memcpy": median["ours"] / median["memcpy"],
            "bars": {"ours_over_streaming": 10, "ours_over_memcpy": 1 / 3},
        },
    )


if __name__ == "__main__":
    main()
