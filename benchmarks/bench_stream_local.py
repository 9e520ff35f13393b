"""How fast are batches read from local raw shards? Against StreamingDataset and against one memcpy of the same bytes.

Prints samples/s: 8 domains, 1025 uint16 tokens a sample, batch 64. Bars: 10 times the better of StreamingDataset with 0
and 2 workers, a third of the rate of one memcpy. A batch is handed out as int64, four times the bytes that lie on disk,
so there are two such copies: of the bytes as handed out; and of the bytes as stored, from consecutive samples, which a
reader that casts and gathers cannot come near: it writes four times as much, and its rows lie far apart. All in one
run, on the same shards, each reader in a process of its own.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import bar, rounds_in_turn, size, write_result
from benchmarks.stream_data import BATCH, ROW_TOKENS, time_ours, time_theirs, write_domains

ROUNDS, SAMPLES, COPIES = size((5, 6000, 2000), (1, 40, 5))
OURS, LARGE, THEIRS = size(((200, 6000), (50, 1500), (20, 150)), ((1, 2),) * 3)  # batches before the clock, and in it


def memcpy(_: float, local: Path, token_bytes: int, batches: int = COPIES) -> tuple[float, float]:
    """(0, samples a second) when each batch is one slice of memory that holds all samples at `token_bytes` a token.

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
    return 0.0, batches * BATCH / (time.perf_counter() - started)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder)
        names = write_domains(local, SAMPLES, compression=None)
        contestants = {
            **{f"ours, prefetch {n}": (time_ours, local, names, None, n, *OURS) for n in (0, 4)},
            "ours, prefetch 0, batch 256": (time_ours, local, names, None, 0, *LARGE, 4 * BATCH),
            **{f"streaming, {n} workers": (time_theirs, local, names, None, n, *THEIRS) for n in (0, 2)},
            "memcpy of the bytes handed out": (memcpy, local, 8),
            "memcpy of the bytes stored": (memcpy, local, 2),
        }
        rates = {name: [rate for _, rate in found] for name, found in rounds_in_turn(contestants, ROUNDS).items()}
    median = {name: statistics.median(values) for name, values in rates.items()}
    ours = max(median["ours, prefetch 0"], median["ours, prefetch 4"])
    handed_out = median["memcpy of the bytes handed out"]
    ratios = {
        "ours_over_streaming": ours / max(median["streaming, 0 workers"], median["streaming, 2 workers"]),
        "ours_over_memcpy": ours / handed_out,
        "ours_over_memcpy_at_batch_256": median["ours, prefetch 0, batch 256"] / handed_out,
        "ours_over_memcpy_of_stored": ours / median["memcpy of the bytes stored"],
    }
    limits = {"ours_over_streaming": 10, "ours_over_memcpy": 1 / 3}
    bars = [bar(name, ratios[name], limit, at_least=True) for name, limit in limits.items()]
    write_result("stream_local", {"samples_per_s": median, "rounds": rates, **ratios}, bars)


if __name__ == "__main__":
    main()
