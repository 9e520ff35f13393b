"""How fast are batches read from zstd shards in object storage, from an empty cache? Against StreamingDataset.

moto's server on the loopback is the S3 endpoint; it and every reader have a process of their own. The first batch is
timed from the start of the reader's process, imports included. Bars: at least StreamingDataset's rate, and the first
batch no later.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common import in_own_process, write_result
from benchmarks.stream_data import time_ours, time_theirs, write_domains

PORT = 5557
ROUNDS = 3
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def object_store(folder: Path):
    """An S3 endpoint that holds `folder` in the bucket 'corpus'; sets S3_ENDPOINT_URL."""
    endpoint = f"http://127.0.0.1:{PORT}"
    os.environ.update(CREDENTIALS, S3_ENDPOINT_URL=endpoint)
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(PORT)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        import boto3

        for _ in range(100):
            try:
                urllib.request.urlopen(endpoint, timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        client = boto3.client("s3", endpoint_url=endpoint)
        client.create_bucket(Bucket="corpus")
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                client.upload_file(str(path), "corpus", str(path.relative_to(folder)))
        yield "s3://corpus"
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    """Prints and writes first-batch times and rates, medians of rounds in turn."""
    first_s: dict[str, list[float]] = {}
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        names = write_domains(Path(folder) / "data", samples=4000, compression="zstd", shard_bytes=1 << 21)
        with object_store(Path(folder) / "data") as remote:
            for number in range(ROUNDS):
                for name, function, options in (
                    ("ours", time_ours, (4,)),
                    ("streaming, 0 workers", time_theirs, (0,)),
                    ("streaming, 2 workers", time_theirs, (2,)),
                ):
                    cache = Path(folder) / f"{name}, round {number}"
                    asked_at = time.monotonic()
                    # 25,600 of 32,000 samples: most shards are downloaded
                    first, rate = in_own_process(function, asked_at, cache, names, remote, *options, 0, 400)
                    first_s.setdefault(name, []).append(first)
                    rates.setdefault(name, []).append(rate)
    median_first = {name: statistics.median(values) for name, values in first_s.items()}
    median_rate = {name: statistics.median(values) for name, values in rates.items()}
    write_result(
        "stream_remote",
        {
            "first_batch_s": median_first,
            "samples_per_s": median_rate,
            "ours_over_streaming": median_rate["ours"] / max(v for n, v in median_rate.items() if n != "ours"),
            "first_batch_over_streaming": median_first["ours"] / min(v for n, v in median_first.items() if n != "ours"),
            "bars": {"ours_over_streaming": 1, "first_batch_over_streaming": 1},
        },
    )


if __name__ == "__main__":
    main()
