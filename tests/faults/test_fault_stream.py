"""docs/faults.md S1 to S7 and C1 to C5 for the whole stream: through a fault, the batches are the reference's.

The ledger holds step, domain and every token of every sample; the reference reads the same shards from a local folder
without any fault. A mixture that changes at every step is in force throughout.
"""

import multiprocessing
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

import ado_stream as ado
from ado_stream.errors import AccessDenied, ConfigError, NotFound, ShardCorrupt, StorageError, Throttled
from tests.faults.conftest import BUCKET, QUICK, damaged, s3_environment, unfinished
from tests.faults.proxy import Rule
from tests.stream.helpers import changing_mixture, ledger, run, write_domain

pytestmark = pytest.mark.fault
SAMPLES = {"d0": 400, "d1": 200, "d2": 90}
SHARD_BYTES = 1500
STEPS, BATCH = 40, 16
IMPATIENT = replace(QUICK, read_timeout_s=0.5)
SHARDS = ".mds"


@pytest.fixture(scope="session")
def origin(tmp_path_factory) -> Path:
    """The data sets on the local disk: 21 shards, domain d1 in zstd."""
    root = tmp_path_factory.mktemp("origin")
    for number, (name, samples) in enumerate(SAMPLES.items()):
        write_domain(root / name, number, samples, compression="zstd" if number == 1 else None, shard_bytes=SHARD_BYTES)
    return root


@pytest.fixture
def bucket(origin, upload, proxy) -> None:
    """The same data sets in the bucket, behind the proxy."""
    for path in sorted(origin.rglob("*")):
        if path.is_file():
            upload(f"corpus/{path.relative_to(origin)}", path.read_bytes())


@pytest.fixture(scope="session")
def reference(origin, tmp_path_factory):
    """The ledger of the run without faults."""
    copy = shutil.copytree(origin, tmp_path_factory.mktemp("reference") / "origin")
    domains = [ado.Domain(name, local=str(copy / name)) for name in SAMPLES]
    return ledger(run(ado.AdaptiveStreamingDataset(domains, BATCH, seed=3), STEPS))


def remote_dataset(folder, retry=QUICK, **options):
    """The data sets in the bucket, cached under `folder`."""
    domains = [ado.Domain(name, remote=f"s3://{BUCKET}/corpus/{name}", local=str(folder / name)) for name in SAMPLES]
    return ado.AdaptiveStreamingDataset(domains, BATCH, seed=3, retry=retry, **options)


def served_until(dataset, error):
    """The ledger up to `error`, which must come; the iterator must never end."""
    batches = []
    try:
        for batch in dataset:
            batches.append(batch)
            step = batch["step"]
            dataset.publish(step + 1 + dataset.mixture_lag, changing_mixture(step, len(SAMPLES)))
            assert len(batches) < 2000
    except error as caught:
        return ledger(batches), caught
    finally:
        dataset.close()
    raise AssertionError("the iterator ended")


EXACT = {
    "S1 three 503 of each key": ([Rule("status", times=3)], QUICK),
    "S1 a third of all GETs": ([Rule("status", SHARDS, probability=0.3)], QUICK),
    "S3 cut": ([Rule("cut", SHARDS, times=1)], QUICK),
    "S3 reset": ([Rule("reset", SHARDS, times=1)], QUICK),
    "S3 stall": ([Rule("stall", SHARDS, times=1, probability=0.4)], IMPATIENT),
    "S3 trickle": ([Rule("trickle", SHARDS, times=1, probability=0.4)], IMPATIENT),
    "S4 flip": ([Rule("flip", SHARDS, times=1)], QUICK),
    "all at once": (
        [Rule(kind, SHARDS, probability=0.07) for kind in ("status", "cut", "reset", "stall", "flip")],
        replace(IMPATIENT, attempts=20, max_downloads=6),
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_through_the_fault_the_batches_are_the_references(name, bucket, proxy, reference, tmp_path):
    rules, retry = EXACT[name]
    proxy.rules = [replace(rule, hits=rule.hits.copy()) for rule in rules]
    assert ledger(run(remote_dataset(tmp_path, retry), STEPS)) == reference
    assert sum(rule.hits.total() for rule in proxy.rules) > 0
    assert unfinished(tmp_path) == []


def test_s4_without_hashes_the_flip_reaches_the_batch(origin, upload, proxy, reference, tmp_path):
    """The sibling: an index without hashes; the flipped bits arrive as tokens (or as a damaged header)."""
    for number, (name, samples) in enumerate(SAMPLES.items()):
        write_domain(tmp_path / "bare" / name, number, samples, shard_bytes=SHARD_BYTES, hashes=())
        for path in (tmp_path / "bare" / name).iterdir():
            upload(f"corpus/{name}/{path.name}", path.read_bytes())
    proxy.rules = [Rule("flip", SHARDS, times=1)]
    with pytest.warns(UserWarning, match="no hashes"):
        assert ledger(run(remote_dataset(tmp_path / "cache"), STEPS)) != reference


def test_s2_503_for_a_while_then_exact(bucket, proxy, reference, tmp_path):
    dataset = remote_dataset(tmp_path, replace(QUICK, attempts=100, base_delay_s=0.1, max_delay_s=0.3))
    proxy.rules = [Rule("status", until=time.monotonic() + 2.0)]
    assert ledger(run(dataset, STEPS)) == reference


def test_s7_a_restart_of_the_server_then_exact(bucket, proxy, reference, tmp_path):
    dataset = remote_dataset(tmp_path, replace(QUICK, attempts=200))
    proxy.rules = [Rule("delay", SHARDS, seconds=0.02)]
    restarts = [threading.Timer(0.1, proxy.stop), threading.Timer(1.0, proxy.start)]
    for timer in restarts:
        timer.start()
    assert ledger(run(dataset, STEPS)) == reference
    for timer in restarts:
        timer.join()


@pytest.mark.deadline
@pytest.mark.parametrize("rank", [0, 1])
def test_s2_503_for_ever_is_throttled_on_every_rank(bucket, proxy, tmp_path, rank):
    dataset = remote_dataset(tmp_path, replace(QUICK, total_deadline_s=5.0), rank=rank, world_size=2)
    proxy.rules = [Rule("status", SHARDS)]
    started = time.monotonic()
    served, error = served_until(dataset, Throttled)
    assert served == []
    assert "attempt" in str(error)
    assert time.monotonic() - started < 10.0  # the deadline of 5 s, and one slow attempt on a busy machine


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", ["d0", "d1"], ids=["raw", "zstd"])
def test_s5_a_damaged_shard_stops_every_rank_and_serves_no_row_of_it(
    bucket, upload, origin, proxy, reference, tmp_path, rank, name
):
    path = sorted((origin / name).glob("shard*"))[2]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    upload(f"corpus/{name}/{path.name}", bytes(content))
    served, error = served_until(remote_dataset(tmp_path, rank=rank, world_size=2), ShardCorrupt)
    half = [entry for position, entry in enumerate(reference) if position % BATCH // (BATCH // 2) == rank]
    assert served == half[: len(served)]
    assert f"corpus/{name}/{path.name}" in str(error)
    assert "after 3 downloads" in str(error)
    assert proxy.gets[f"/{BUCKET}/corpus/{name}/{path.name}"] == 3


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        (None, NotFound),
        (Rule("status", SHARDS, status=403, code="AccessDenied"), AccessDenied),
        (Rule("status", SHARDS, status=400, code="ExpiredToken"), AccessDenied),
    ],
    ids=["deleted", "403", "expired"],
)
def test_s6_a_store_that_refuses_mid_run_is_an_error_and_never_a_short_epoch(
    bucket, origin, upload, proxy, reference, tmp_path, rule, error
):
    dataset = remote_dataset(tmp_path, predownload=BATCH)
    iterator = iter(dataset)
    first = [next(iterator)]
    if rule is None:
        for path in origin.rglob("shard*"):
            upload(f"corpus/{path.relative_to(origin)}", None)
    else:
        proxy.rules = [replace(rule)]
    served, caught = served_until(dataset, error)
    whole = ledger(first) + served
    assert whole == reference[: len(whole)]
    assert "s3://" in str(caught)


def test_c1_a_limit_below_one_shard_is_refused_at_start(bucket, tmp_path):
    with pytest.raises(ConfigError, match="cache limit"):
        remote_dataset(tmp_path, cache_limit=1000)


@pytest.mark.parametrize("io_threads", [0, 4])
def test_c2_c5_a_cache_of_a_few_shards_is_exact_by_eviction(bucket, reference, tmp_path, io_threads):
    dataset = remote_dataset(tmp_path, cache_limit=12 * SHARD_BYTES)
    dataset.start(prefetch=2, io_threads=io_threads)
    assert ledger(run(dataset, STEPS)) == reference
    assert dataset.statistics()["cache"]["evictions"] > 0


def test_c2_a_small_disk_is_exact_by_eviction(bucket, reference, small_disk):
    disk = small_disk(
        24 * 4096
    )  # pages of 4 KiB: three indexes and their cached copies, the folders, and fewer shards than there are
    dataset = remote_dataset(disk)
    assert ledger(run(dataset, STEPS)) == reference
    assert dataset.statistics()["cache"]["evictions"] > 0


@pytest.mark.parametrize("damage", ["flip", "truncate", "zero"])
def test_c3_a_cache_damaged_between_runs_is_exact(bucket, reference, tmp_path, damage):
    run(remote_dataset(tmp_path), STEPS)
    for path in tmp_path.rglob("*.mds"):
        path.write_bytes(damaged(path.read_bytes(), damage))
    assert ledger(run(remote_dataset(tmp_path), STEPS)) == reference


def test_c4_four_ranks_on_one_cache_download_each_shard_once(bucket, proxy, reference, tmp_path):
    ranks = [remote_dataset(tmp_path, rank=rank, world_size=4) for rank in range(4)]
    with ThreadPoolExecutor(4) as pool:  # closing would cut short a fetch ahead, which others have to repeat
        results = list(pool.map(lambda rank: run(rank, STEPS, close=False), ranks))
    for rank in ranks:
        rank.close()
    for step in range(STEPS):
        union = [entry for batches in results for entry in ledger([batches[step]])]
        assert union == reference[step * BATCH : (step + 1) * BATCH]
    gets = [count for path, count in proxy.gets.items() if SHARDS in path]
    counted = [rank.statistics()["cache"] for rank in ranks]
    # Closing a rank may cut a fetch ahead short; a rank that is closed later starts it anew: a GET, no download.
    assert sum(each["misses"] for each in counted) <= len(gets), counted


def read_for_ever(connection: Connection, folder: Path) -> None:
    """Rank 0 of 2; sends each step."""
    data = remote_dataset(folder, rank=0, world_size=2)
    for batch in data:
        connection.send(batch["step"])
        data.publish(batch["step"] + 1 + data.mixture_lag, changing_mixture(batch["step"], len(SAMPLES)))


@pytest.mark.deadline
@pytest.mark.parametrize("after_steps", [0, 2, 7])
def test_c4_a_rank_killed_while_downloading_leaves_its_peer_exact(
    bucket, proxy, reference, tmp_path, children, after_steps
):
    """Rank 0 of 2 dies by kill -9, with fetches on the way, at some step; rank 1 on the same cache goes on at once."""
    proxy.rules = [Rule("delay", SHARDS, seconds=0.05)]
    ours, theirs = multiprocessing.Pipe()
    victim = children.start(read_for_ever, theirs, tmp_path, **s3_environment())
    for step in range(after_steps + 1):
        assert ours.recv() == step
    survivor = remote_dataset(tmp_path, rank=1, world_size=2)
    batches = run(survivor, 2, close=False)
    victim.kill()
    victim.join()
    killed = time.monotonic()
    batches += run(survivor, 1, close=False)
    assert time.monotonic() - killed < 2.0
    batches += run(survivor, STEPS - 3)
    for step, batch in enumerate(batches):
        begin = step * BATCH + BATCH // 2
        assert ledger([batch]) == reference[begin : begin + BATCH // 2]
    whole = [count for path, count in proxy.served.items() if SHARDS in path]
    assert sum(whole) <= len(whole) + 4  # once each; a fetch that was cut down by the kill is started anew
    assert unfinished(tmp_path) == []


def test_an_index_that_is_gone_is_not_found(proxy, upload, tmp_path):
    with pytest.raises(StorageError, match=r"s3://bucket/nowhere/index\.json: HTTP 404"):
        ado.AdaptiveStreamingDataset([ado.Domain("x", f"s3://{BUCKET}/nowhere", str(tmp_path / "x"))], 4)
