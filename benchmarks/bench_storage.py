"""How fast do zstd shards come from S3, verified, and what does verification cost? `python -m benchmarks.bench_storage`

Against MosaicML Streaming on the same shards and the same endpoint (moto's server in a process of its own). Every run
is a fresh process with an empty cache; runs take turns. Figures: seconds to the first batch, from the start of the
process and from the constructor (imports done); samples/s of one pass from the constructor on; MB/s of raw shards made
available; microseconds of a cache hit; GB/s of checking files found on disk.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import write_result

BUCKET = "bench"
DOMAINS = 4
SAMPLE_TOKENS = 1025
BATCH = 64
THREADS = 4


def write_corpus(root: Path, samples_per_domain: int, shard_bytes: int) -> int:
    """Writes DOMAINS data sets of Zipf-distributed tokens, about as compressible as text; returns the raw bytes."""
    from streaming import MDSWriter

    columns = {"tokens": f"ndarray:uint16:{SAMPLE_TOKENS}"}
    options: dict[str, Any] = {"compression": "zstd:3", "hashes": ["xxh64"], "size_limit": shard_bytes}
    for number in range(DOMAINS):
        rng = np.random.default_rng(number)
        tokens_NT = (rng.zipf(1.2, (samples_per_domain, SAMPLE_TOKENS)) % 50_000).astype(np.uint16)
        with MDSWriter(out=str(root / f"d{number}"), columns=columns, **options) as writer:
            for row_T in tokens_NT:
                writer.write({"tokens": row_T})
    return DOMAINS * samples_per_domain * SAMPLE_TOKENS * 2


@contextmanager
def s3_endpoint(root: Path) -> Iterator[str]:
    """A moto server in its own process that holds everything under `root`; yields its URL."""
    import boto3

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for(port)
            client = boto3.client("s3", endpoint_url=url)
            client.create_bucket(Bucket=BUCKET)
            for path in sorted(path for path in root.rglob("*") if path.is_file()):
                client.upload_file(str(path), BUCKET, str(path.relative_to(root)))
            yield url
        finally:
            server.kill()


def _wait_for(port: int, timeout_s: float = 60.0) -> None:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"moto's server did not listen on port {port} within {timeout_s} s")


def run_ours(cache: Path, num_batches: int) -> dict[str, float]:
    """One pass of AdaptiveLoader."""
    import ado_stream as ado
    from ado_stream.stream import dataset as _  # noqa: F401 (imports before the clock starts)

    names = [f"d{number}" for number in range(DOMAINS)]
    start = time.perf_counter()
    domains = [ado.Domain(name, remote=f"s3://{BUCKET}/{name}", local=str(cache / name)) for name in names]
    dataset = ado.AdaptiveStreamingDataset(domains, global_batch_size=BATCH, mixture_lag=None)
    with ado.AdaptiveLoader(dataset, prefetch=4, io_threads=THREADS) as loader:
        return _timed(iter(loader), start, num_batches)


def run_streaming(cache: Path, num_batches: int, workers: int) -> dict[str, float]:
    """One pass of StreamingDataset in a DataLoader."""
    from streaming import Stream, StreamingDataset
    from torch.utils.data import DataLoader

    start = time.perf_counter()
    streams = [Stream(remote=f"s3://{BUCKET}/d{n}", local=str(cache / f"d{n}")) for n in range(DOMAINS)]
    dataset = StreamingDataset(streams=streams, batch_size=BATCH, shuffle=True, num_canonical_nodes=1)
    return _timed(iter(DataLoader(dataset, batch_size=BATCH, num_workers=workers, drop_last=True)), start, num_batches)


def _timed(batches: Iterator[Any], start: float, num_batches: int) -> dict[str, float]:
    next(batches)
    first_s = time.perf_counter() - start
    launched_s = time.time() - float(os.environ["LAUNCHED_AT"])
    for _ in range(num_batches - 1):
        next(batches)
    rate = num_batches * BATCH / (time.perf_counter() - start)
    return {"launch_to_first_batch_s": launched_s, "first_batch_s": first_s, "samples_per_s": rate}


def run_fetch(cache: Path) -> dict[str, float]:
    """Every shard through NodeCache: from the store, then found on disk by a next run, then as hits."""
    from ado_stream.storage.node_cache import NodeCache
    from ado_stream.stream.domain import Domain
    from ado_stream.stream.shard_table import open_indexes

    domains = [Domain(f"d{n}", remote=f"s3://{BUCKET}/d{n}", local=str(cache / f"d{n}")) for n in range(DOMAINS)]
    specs = [index.spec(s) for index in open_indexes(domains, "tokens", None) for s in range(index.samples_S.size)]
    raw_bytes = sum(spec.raw_bytes or 0 for spec in specs)
    node_cache = NodeCache()
    with ThreadPoolExecutor(THREADS) as pool:
        start = time.perf_counter()
        list(pool.map(node_cache.fetch, specs))
        fetched_s = time.perf_counter() - start
    start = time.perf_counter()
    for spec in specs:
        NodeCache().fetch(spec)
    checked_s = time.perf_counter() - start
    start = time.perf_counter()
    for spec in specs * 100:
        node_cache.fetch(spec)
    hits_s = time.perf_counter() - start
    return {
        "fetch_raw_MB_per_s": raw_bytes / fetched_s / 1e6,
        "check_found_GB_per_s": raw_bytes / checked_s / 1e9,
        "hit_us": hits_s / (100 * len(specs)) * 1e6,
    }


def run_streaming_fetch(cache: Path) -> dict[str, float]:
    """Every shard through Streaming's downloader (one a thread) and decompressor, unverified, with as many threads."""
    from streaming.base.compression import decompress
    from streaming.base.storage.download import CloudDownloader

    files = []
    for number in range(DOMAINS):
        remote, local = f"s3://{BUCKET}/d{number}", cache / f"d{number}"
        CloudDownloader.direct_download(f"{remote}/index.json", str(local / "index.json"))
        for shard in json.loads((local / "index.json").read_text())["shards"]:
            files.append((f"{remote}/{shard['zip_data']['basename']}", local / shard["zip_data"]["basename"]))

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

    with ThreadPoolExecutor(THREADS) as pool:
        start = time.perf_counter()
        raw_bytes = sum(pool.map(make, files))
    return {"fetch_raw_MB_per_s": raw_bytes / (time.perf_counter() - start) / 1e6}


RUNS = {
    "fetch, ado-stream": lambda cache, batches: run_fetch(cache),
    "fetch, Streaming unverified": lambda cache, batches: run_streaming_fetch(cache),
    "stream, ado-stream": run_ours,
    "stream, StreamingDataset 0 workers": lambda cache, batches: run_streaming(cache, batches, 0),
    "stream, StreamingDataset 2 workers": lambda cache, batches: run_streaming(cache, batches, 2),
}


def in_own_process(name: str, scratch: Path, num_batches: int) -> dict[str, float]:
    """Runs `name` with an empty cache in a fresh process."""
    with tempfile.TemporaryDirectory(dir=scratch) as cache:
        command = [sys.executable, "-m", "benchmarks.bench_storage", "--run", name, cache, str(num_batches)]
        environment = {**os.environ, "LAUNCHED_AT": repr(time.time())}
        run = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=environment)
    if run.returncode:
        raise RuntimeError(f"{name} failed:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    """Measures everything in turn and writes benchmarks/results/storage.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10_000, help="per domain")
    parser.add_argument("--shard-bytes", type=int, default=1 << 22)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", nargs=3, metavar=("NAME", "CACHE", "BATCHES"), help="one measurement; used internally")
    options = parser.parse_args()
    if options.run:
        name, cache, num_batches = options.run
        print(json.dumps(RUNS[name](Path(cache), int(num_batches))))
        return
    os.environ.update(AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret", AWS_DEFAULT_REGION="us-east-1")
    num_batches = DOMAINS * options.samples // BATCH
    results: dict[str, list[dict[str, float]]] = {name: [] for name in RUNS}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        raw_bytes = write_corpus(scratch / "corpus", options.samples, options.shard_bytes)
        with s3_endpoint(scratch / "corpus") as url:
            os.environ["S3_ENDPOINT_URL"] = url
            for _ in range(options.repeats):
                for name in RUNS:
                    results[name].append(in_own_process(name, scratch, num_batches))
                    print(name, results[name][-1], file=sys.stderr)
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in results.items()
    }
    settings = {**vars(options), "threads": THREADS, "batch": BATCH, "raw_bytes": raw_bytes, "domains": DOMAINS}
    write_result("storage", {"settings": settings, "medians": medians, "ratios": ratios(medians), "runs": results})


def ratios(medians: dict[str, dict[str, float]]) -> dict[str, float]:
    """Ours against the better of Streaming's; above 1 is better for rates, below 1 for seconds."""
    ours = medians["stream, ado-stream"]
    theirs = [medians[f"stream, StreamingDataset {workers} workers"] for workers in (0, 2)]
    fetch = "fetch_raw_MB_per_s"
    return {
        "samples_per_s": ours["samples_per_s"] / max(run["samples_per_s"] for run in theirs),
        **{key: ours[key] / min(run[key] for run in theirs) for key in ("launch_to_first_batch_s", "first_batch_s")},
        fetch: medians["fetch, ado-stream"][fetch] / medians["fetch, Streaming unverified"][fetch],
    }


if __name__ == "__main__":
    main()
