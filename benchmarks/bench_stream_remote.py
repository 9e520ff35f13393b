"""How fast are batches read from zstd shards in object storage, from an empty cache? Against StreamingDataset.

moto's server on the loopback is the S3 endpoint; it and every reader have a process of their own. Prints samples/s and
the seconds to the first batch, from the start of the reader's process, imports included. Bars: at least
StreamingDataset's rate, and the first batch no later.
"""

import statistics
import tempfile
from pathlib import Path

from benchmarks.common import bar, rounds_in_turn, size, write_result
from benchmarks.stream_data import in_empty_cache, object_store, time_ours, time_theirs, write_domains

ROUNDS, SAMPLES, SHARD_BYTES, BATCHES = size((3, 4000, 1 << 21, 400), (1, 16, 1 << 11, 2))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        names = write_domains(Path(folder) / "data", SAMPLES, compression="zstd", shard_bytes=SHARD_BYTES)
        with object_store(Path(folder) / "data") as remote:
            # 25,600 of 32,000 samples: most shards are downloaded
            contestants = {
                "ours": (in_empty_cache, time_ours, names, remote, 4, 0, BATCHES),
                "streaming, 0 workers": (in_empty_cache, time_theirs, names, remote, 0, 0, BATCHES),
                "streaming, 2 workers": (in_empty_cache, time_theirs, names, remote, 2, 0, BATCHES),
            }
            found = rounds_in_turn(contestants, ROUNDS)
    first_s = {name: statistics.median(first for first, _ in rounds) for name, rounds in found.items()}
    rates = {name: statistics.median(rate for _, rate in rounds) for name, rounds in found.items()}
    theirs = [name for name in found if name != "ours"]
    ratio = rates["ours"] / max(rates[name] for name in theirs)
    first = first_s["ours"] / min(first_s[name] for name in theirs)
    ratios = {"ours_over_streaming": ratio, "first_batch_over_streaming": first}
    held = [bar("rate over StreamingDataset's", ratio, 1.0, at_least=True)]
    held.append(bar("first batch over StreamingDataset's", first, 1.0))
    write_result("stream_remote", {"first_batch_s": first_s, "samples_per_s": rates, **ratios}, held)


if __name__ == "__main__":
    main()
