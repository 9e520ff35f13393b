"""What do indexes cost: of 100,000 shards, and of 22 domains of 2,000 shards in S3, until the first batch?

Prints processor seconds to parse an index of 100,000 zstd shards with two hashes a file, beside those of json.loads,
and the bytes a shard that stay (tracemalloc, which counts NumPy's arrays). Then, from moto's server in a process of its
own, each in a fresh process with an empty cache: seconds to the first batch, from the constructor on, beside the least
that any reader has to do: boto3's GET of the indexes and of a shard of each domain in 32 threads, with json.loads of
the one and zstd of the other; and seconds until one rank of a node, and the last of eight that begin at once, have
opened all indexes, with GETs sent and processor seconds of all ranks together. Bars: twice json.loads (2 s, at 1 s)
and 200 bytes for the 100,000 shards; the first batch after 3 times the least; eight ranks no later than 1.2 times one
and with no more GETs.
"""

import gc
import json
import multiprocessing
import statistics
import tempfile
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import zstandard

from ado_stream.storage import s3
from ado_stream.storage.retry import RetryPolicy
from ado_stream.stream.domain import Domain
from ado_stream.stream.index_content import parse_index
from ado_stream.stream.mds_index import make_index
from ado_stream.stream.open_indexes import open_indexes
from benchmarks.common import bar, rounds_in_turn, seconds_in_turn, size, write_result
from benchmarks.stream_data import BATCH, SAMPLE_BYTES, object_store, our_domains, timed, write_domains

MANY_SHARDS = size(100_000, 100)
DOMAINS, SHARDS, STORED_SHARDS, SHARD_SAMPLES = *size((22, 2_000), (2, 3)), 2, 16
RANKS, ROUNDS = size((8, 2), (2, 1))


def index_text(num_shards: int) -> bytes:
    """An index.json as MDSWriter writes it, with sha1 and xxh64 of raw and compressed files."""

    def file(name: str, num_bytes: int, number: int) -> dict[str, Any]:
        return {"basename": name, "bytes": num_bytes, "hashes": {"sha1": f"{number:040x}", "xxh64": f"{number:016x}"}}

    shards = [
        {
            "column_encodings": ["ndarray:uint16:1025"],
            "column_names": ["tokens"],
            "column_sizes": [2050],
            "compression": "zstd:3",
            "format": "mds",
            "hashes": ["sha1", "xxh64"],
            "raw_data": file(f"shard.{n:05d}.mds", 67_100_000 + n % 7, n),
            "samples": 32_000 + n % 3,
            "size_limit": 1 << 26,
            "version": 2,
            "zip_data": file(f"shard.{n:05d}.mds.zstd", 40_000_000 + n % 11, n + 1),
        }
        for n in range(num_shards)
    ]
    return json.dumps({"shards": shards, "version": 2}).encode()


def index_cost(_: float, num_shards: int) -> dict[str, float]:
    """Processor seconds to parse, beside json.loads alone, then bytes a shard that stay."""
    text = index_text(num_shards)

    def parsed() -> Any:
        return make_index(parse_index(text, "web", "index.json"), "web", "s3://bucket/web", Path("/cache"))

    (json_s,), (parse_s,) = seconds_in_turn([lambda: json.loads(text), parsed], 1, 0, time.process_time)
    gc.collect()
    tracemalloc.start()
    index = parsed()
    gc.collect()
    kept = tracemalloc.get_traced_memory()[0] / num_shards
    assert index.num_samples > num_shards
    return {"parse_cpu_s": parse_s, "json_cpu_s": json_s, "kept_bytes_a_shard": kept}


def write_corpus(root: Path) -> list[str]:
    """DOMAINS folders whose indexes list SHARDS shards: STORED_SHARDS files over and over, as many in each."""
    names = write_domains(root, STORED_SHARDS * SHARD_SAMPLES, "zstd", SHARD_SAMPLES * SAMPLE_BYTES, DOMAINS)
    for name in names:
        path = root / name / "index.json"
        index = json.loads(path.read_text())
        index["shards"] = [index["shards"][n % len(index["shards"])] for n in range(SHARDS)]
        path.write_text(json.dumps(index))
    return names


def first_batch_s(_: float, remote: str, names: list[str]) -> float:
    """Seconds from the constructor to the first batch, cache empty, after imports and the loading of compiled code.

    These are in the first data set of a process, which is made but not timed (stream_start measures it).
    """
    import ado_stream as ado

    for _ in range(2):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
            started = time.monotonic()
            dataset = ado.AdaptiveStreamingDataset(our_domains(Path(cache), names, remote), BATCH, mixture_lag=None)
            seconds, _ = timed(started, iter(dataset), 0, 1)
            dataset.close()
    return seconds


def least_s(_: float, remote: str, names: list[str]) -> float:
    """Seconds that boto3 takes for all indexes and a shard of each domain, parsed and decompressed."""
    client, _ = s3._client(RetryPolicy().read_timeout_s)  # imports boto3

    def read(name: str) -> int:
        def content(file: str) -> bytes:
            return client.get_object(Bucket=remote.removeprefix("s3://"), Key=f"{name}/{file}")["Body"].read()

        shards = json.loads(content("index.json"))["shards"]
        return len(zstandard.decompress(content(shards[0]["zip_data"]["basename"])))

    started = time.monotonic()
    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(read, names))
    return time.monotonic() - started


def open_on(ranks: int, remote: str, names: list[str]) -> dict[str, float]:
    """Seconds until the last of `ranks` processes that begin at once has opened all; GETs and processor seconds."""
    context: Any = multiprocessing.get_context(size("spawn", "fork"))
    with tempfile.TemporaryDirectory() as cache:
        barrier, results = context.Barrier(ranks), context.Queue()
        arguments = (barrier, results, remote, names, cache)
        processes = [context.Process(target=_open_rank, args=arguments) for _ in range(ranks)]
        for process in processes:
            process.start()
        starts, ends, gets, cpu = zip(*(results.get(timeout=300) for _ in processes), strict=True)
        for process in processes:
            process.join()
    return {"seconds": max(ends) - min(starts), "gets": sum(gets), "cpu_s": sum(cpu)}


def _open_rank(barrier: Any, results: Any, remote: str, names: list[str], cache: str) -> None:
    domains = [Domain(name, remote=f"{remote}/{name}", local=f"{cache}/{name}") for name in names]
    client, _ = s3._client(RetryPolicy().read_timeout_s)
    gets: list[str] = []
    client.meta.events.register("before-send.s3.GetObject", lambda request, **_: gets.append(request.url))
    barrier.wait()
    started, cpu = time.monotonic(), time.process_time()
    open_indexes(domains, "tokens", None)
    results.put((started, time.monotonic(), len(gets), time.process_time() - cpu))


def main() -> None:
    (large,) = rounds_in_turn({"index": (index_cost, MANY_SHARDS)}, 1)["index"]
    with tempfile.TemporaryDirectory() as folder:
        names = write_corpus(Path(folder))
        with object_store(Path(folder)) as remote:
            first = rounds_in_turn({"ours": (first_batch_s, remote, names), "least": (least_s, remote, names)}, ROUNDS)
            rounds = [[open_on(ranks, remote, names) for ranks in (1, RANKS)] for _ in range(ROUNDS)]
    one, many = ({key: statistics.median(r[n][key] for r in rounds) for key in rounds[0][n]} for n in (0, 1))
    ratio = statistics.median(after["seconds"] / before["seconds"] for before, after in rounds)
    first_over_least = statistics.median(ours / least for ours, least in zip(*first.values(), strict=True))
    payload = {"index_of_100000": large, "first_batch_s": first, "one_rank": one, "eight_ranks": many}
    bars = [
        bar("parsing an index of 100,000 shards over json.loads", large["parse_cpu_s"] / large["json_cpu_s"], 2),
        bar("bytes a shard that stay", large["kept_bytes_a_shard"], 200),
        bar("the first batch of 22 domains of 2,000 shards over the least", first_over_least, 3),
        bar("eight ranks' seconds to open all indexes over one's", ratio, 1.2),
        bar("eight ranks' GETs over one's", many["gets"] / one["gets"], 1),
    ]
    write_result("stream_open", payload, bars)


if __name__ == "__main__":
    main()
