"""MDS data sets for the stream's benchmarks, an S3 endpoint for them, and the two readers under comparison."""

import itertools
import multiprocessing
import os
import socket
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import ado_stream as ado
from benchmarks.common import size

ROW_TOKENS = size(1025, 65)
SAMPLE_BYTES = 2 * ROW_TOKENS + 10  # in a shard
NUM_DOMAINS = size(8, 2)
BATCH = 64
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


def write_domains(
    root: Path, samples: int, compression: str | None, shard_bytes: int = 1 << 24, num_domains: int = NUM_DOMAINS
) -> list[str]:
    """Folders of `samples` samples of 1025 uint16 tokens each; returns their names."""
    from streaming import MDSWriter

    names = [f"domain{number}" for number in range(num_domains)]
    columns = {"tokens": f"ndarray:uint16:{ROW_TOKENS}"}
    for number, name in enumerate(names):
        rng = np.random.default_rng(number)
        out = str(root / name)
        with MDSWriter(
            out=out, columns=columns, size_limit=shard_bytes, hashes=["xxh64"], compression=compression
        ) as writer:
            for sample in range(samples):
                # Zipf-like, so that zstd has as much to do as on text
                tokens = np.minimum(rng.zipf(1.3, ROW_TOKENS), 50303).astype(np.uint16)
                tokens[:3] = number, sample % 65536, sample // 65536
                writer.write({"tokens": tokens})
    return names


@contextmanager
def object_store(folder: Path) -> Iterator[str]:
    """An S3 endpoint, moto's server in a process of its own, that holds `folder` in the bucket 'corpus'; its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    os.environ.update(CREDENTIALS, S3_ENDPOINT_URL=endpoint)
    context: Any = multiprocessing.get_context(size("spawn", "fork"))
    server = context.Process(target=_serve, args=(port,), daemon=True)
    server.start()
    try:
        upload(str(folder), endpoint)
        yield "s3://corpus"
    finally:
        server.terminate()
        server.join()


def _serve(port: int) -> None:
    from moto.server import main

    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    main(["-p", str(port)])


def upload(folder: str, endpoint: str) -> None:
    """Puts the files below `folder` into the bucket 'corpus', once the endpoint answers (for 60 s)."""
    import boto3

    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(endpoint, timeout=1).close()
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket="corpus")
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        client.upload_file(str(path), "corpus", str(path.relative_to(folder)))


def our_domains(local: Path, names: list[str], remote: str | None = None) -> list[ado.Domain]:
    """Domains in folders of `local`, from `remote` if given."""
    return [ado.Domain(n, remote=f"{remote}/{n}" if remote else None, local=str(local / n)) for n in names]


def their_dataset(local: Path, names: list[str], remote: str | None = None) -> Any:
    """StreamingDataset of the same folders; natural mixture."""
    from streaming import Stream, StreamingDataset

    streams = [Stream(remote=f"{remote}/{n}" if remote else None, local=str(local / n)) for n in names]
    return StreamingDataset(streams=streams, batch_size=BATCH, shuffle=True, num_canonical_nodes=1)


def time_ours(
    asked_at: float,
    local: Path,
    names: list[str],
    remote: str | None,
    prefetch: int,
    warmup: int,
    count: int,
    batch_size: int = BATCH,
) -> tuple[float, float]:
    """Ours with `prefetch` batches made ahead, as `timed`; natural mixture."""
    domains = our_domains(local, names, remote)
    dataset = ado.AdaptiveStreamingDataset(domains, global_batch_size=batch_size, mixture_lag=None)
    dataset.start(prefetch, io_threads=4)
    try:
        return timed(asked_at, iter(dataset), warmup, count)
    finally:
        dataset.close()


def time_theirs(
    asked_at: float, local: Path, names: list[str], remote: str | None, workers: int, warmup: int, count: int
) -> tuple[float, float]:
    """StreamingDataset in a DataLoader with `workers`, as `timed`."""
    from torch.utils.data import DataLoader

    loader = DataLoader(their_dataset(local, names, remote), batch_size=BATCH, num_workers=workers)
    return timed(asked_at, itertools.chain.from_iterable(itertools.repeat(loader)), warmup, count)


def in_empty_cache(
    asked_at: float, time_reader: Callable[..., tuple[float, float]], *arguments: Any
) -> tuple[float, float]:
    """`time_reader` with a folder of its own for what it downloads."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:  # a last download may be on its way
        return time_reader(asked_at, Path(cache), *arguments)


def timed(asked_at: float, batches: Iterator[Any], warmup: int, count: int) -> tuple[float, float]:
    """(seconds from `asked_at`, a monotonic time, to the first batch; samples a second after `warmup` batches)."""
    next(batches)
    first_s = time.monotonic() - asked_at
    for _ in itertools.islice(batches, warmup):
        pass
    started = time.perf_counter()
    samples = sum(len(batch["tokens"]) for batch in itertools.islice(batches, count))
    return first_s, samples / (time.perf_counter() - started)
