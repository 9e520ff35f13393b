"""How fast do zstd shards come from S3 into the cache, verified, and what does verification cost?

Against MosaicML Streaming's downloader, unverified, on the same shards and the same endpoint (moto's server in its own
process). Every run is a fresh process with an empty cache; runs take turns. Prints MB/s of raw shards made available,
microseconds of a cache hit and GB/s of checking files found on disk. Bar: at least Streaming's rate.
(Batches from object storage, end to end: bench_stream_remote.py.)
"""

import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.common import bar, rounds_in_turn, size, write_result
from benchmarks.stream_data import object_store, write_domains

SAMPLES, SHARD_BYTES = size((5_000, 1 << 22), (8, 1 << 10))
ROUNDS, THREADS = 3, 4
RATE = "fetch_raw_MB_per_s"


def ours(_: float, remote: str, names: list[str]) -> dict[str, float]:
    """Every shard through NodeCache: from the store, then found on disk by a next run, then as hits."""
    from ado_stream.storage.node_cache import NodeCache
    from ado_stream.stream.domain import Domain
    from ado_stream.stream.open_indexes import open_indexes

    with tempfile.TemporaryDirectory() as cache:
        domains = [Domain(name, remote=f"{remote}/{name}", local=f"{cache}/{name}") for name in names]
        specs = [index.spec(s) for index in open_indexes(domains, "tokens", None) for s in range(index.samples_S.size)]
        raw_bytes = sum(spec.raw_bytes or 0 for spec in specs)
        node_cache = NodeCache()
        with ThreadPoolExecutor(THREADS) as pool:
            fetched_s = _seconds(lambda: list(pool.map(node_cache.fetch, specs)))
        checked_s = _seconds(lambda: [NodeCache().fetch(spec) for spec in specs])
        hits_s = _seconds(lambda: [node_cache.fetch(spec) for spec in specs * 100])
    return {
        RATE: raw_bytes / fetched_s / 1e6,
        "check_found_GB_per_s": raw_bytes / checked_s / 1e9,
        "hit_us": hits_s / (100 * len(specs)) * 1e6,
    }


def theirs(_: float, remote: str, names: list[str]) -> dict[str, float]:
    """Every shard through Streaming's downloader (one a thread) and decompressor, unverified, with as many threads."""
    from streaming.base.compression import decompress
    from streaming.base.storage.download import CloudDownloader

    mine = threading.local()
    one_at_a_time = threading.Lock()  # boto3 sessions cannot be made by several threads at once

    def make(file: tuple[str, Path]) -> int:
        if not hasattr(mine, "downloader"):
            mine.downloader = CloudDownloader.get(file[0])
            with one_at_a_time:
                mine.downloader._create_s3_client()
        mine.downloader.download(*map(str, file))
        raw = decompress("zstd", file[1].read_bytes())
        file[1].with_suffix(".tmp").write_bytes(raw)
        file[1].with_suffix(".tmp").rename(file[1].with_suffix(""))
        file[1].unlink()
        return len(raw)

    with tempfile.TemporaryDirectory() as cache, ThreadPoolExecutor(THREADS) as pool:
        files = []
        for name in names:
            folder = Path(cache) / name
            CloudDownloader.direct_download(f"{remote}/{name}/index.json", str(folder / "index.json"))
            shards = [s["zip_data"]["basename"] for s in json.loads((folder / "index.json").read_text())["shards"]]
            files += [(f"{remote}/{name}/{shard}", folder / shard) for shard in shards]
        sizes: list[int] = []
        seconds = _seconds(lambda: sizes.extend(pool.map(make, files)))
    return {RATE: sum(sizes) / seconds / 1e6}


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        names = write_domains(Path(folder), SAMPLES, "zstd:3", SHARD_BYTES)
        with object_store(Path(folder)) as remote:
            contestants = {"ours": (ours, remote, names), "Streaming, unverified": (theirs, remote, names)}
            runs = rounds_in_turn(contestants, ROUNDS)
    medians = {name: {key: statistics.median(run[key] for run in own) for key in own[0]} for name, own in runs.items()}
    ratio = medians["ours"][RATE] / medians["Streaming, unverified"][RATE]
    payload = {"settings": {"threads": THREADS, "samples": SAMPLES, "shard_bytes": SHARD_BYTES}, "medians": medians}
    held = [bar("rate over Streaming's, unverified", ratio, 1.0, at_least=True)]
    write_result("storage", {**payload, "ratio": ratio, "runs": runs}, held)


if __name__ == "__main__":
    main()
