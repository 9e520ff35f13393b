"""The rows of docs/faults.md for files of tokens in an object store, which are read by ranges and have no hashes.

The reference reads the same files in place, without any fault. Stores other than S3 are an HTTP server: the bucket,
asked without S3's client.
"""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ado_stream as ado
from ado_stream.errors import AccessDenied, ConfigError, DataError, NotFound, Throttled
from ado_stream.storage import s3
from ado_stream.stream import flat_index
from tests.faults.conftest import BUCKET, QUICK, damaged, unfinished
from tests.faults.proxy import Rule
from tests.stream.flat_data import make_documents, write_megatron, write_raw
from tests.stream.helpers import ledger, run

pytestmark = pytest.mark.fault
T, STEPS, BATCH, SHARD_BYTES = 15, 40, 16, 1500
IMPATIENT = replace(QUICK, read_timeout_s=0.5)
BIN = "web.bin"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(flat_index, "SHARD_BYTES", SHARD_BYTES)


@pytest.fixture
def origin(tmp_path) -> Path:
    """web.bin and .idx, and a folder of two .npy files; some 40 shards."""
    write_megatron(tmp_path / "origin" / "web", make_documents(0, 600))
    for number in (1, 2):
        tokens = np.concatenate(make_documents(number, 400, 60_000))
        write_raw(tmp_path / "origin" / "code" / f"part-{number}.npy", tokens, "uint32")
    return tmp_path / "origin"


@pytest.fixture
def bucket(origin, upload, proxy) -> None:
    """The same files in the bucket, behind the proxy."""
    for path in sorted(origin.rglob("*.*")):
        upload(f"flat/{path.relative_to(origin)}", path.read_bytes())


def domains(place: str, cache: Path | None = None) -> list[ado.Domain]:
    remote, local = (lambda name: f"{place}/{name}", lambda name: str(cache / name)) if cache else (None, None)
    given = [("web", "megatron", None), ("code", "npy", "uint32")]
    return [
        ado.Domain(
            name,
            remote(name) if remote else None,
            local(name) if local else f"{place}/{name}",
            format=kind,
            token_dtype=dtype,
        )
        for name, kind, dtype in given
    ]


@pytest.fixture
def reference(origin):
    """The ledger of the run without faults."""
    return ledger(run(ado.AdaptiveStreamingDataset(domains(str(origin)), BATCH, seed=3, seq_len=T), STEPS))


def remote_dataset(cache: Path, retry=QUICK, **options) -> ado.AdaptiveStreamingDataset:
    """The files in the bucket, cached under `cache`."""
    return ado.AdaptiveStreamingDataset(
        domains(f"s3://{BUCKET}/flat", cache), BATCH, seed=3, retry=retry, seq_len=T, **options
    )


EXACT = {
    "S1 three 503 of each key": ([Rule("status", times=3)], QUICK),
    "S1 a third of all GETs": ([Rule("status", "flat/", probability=0.3)], QUICK),
    "S3 cut": ([Rule("cut", "flat/", times=2)], QUICK),
    "S3 reset": ([Rule("reset", "flat/", times=2)], QUICK),
    "S3 stall": ([Rule("stall", BIN, times=2)], IMPATIENT),
    "S3 trickle": ([Rule("trickle", BIN, times=2)], IMPATIENT),
}


@pytest.mark.parametrize("name", EXACT)
def test_through_the_fault_the_batches_are_those_read_in_place(name, bucket, proxy, reference, tmp_path):
    rules, retry = EXACT[name]
    proxy.rules = [replace(rule, hits=rule.hits.copy()) for rule in rules]
    assert ledger(run(remote_dataset(tmp_path / "cache", retry), STEPS)) == reference
    assert sum(rule.hits.total() for rule in proxy.rules) > 0
    assert unfinished(tmp_path / "cache") == []


@pytest.fixture
def http_dataset(bucket, proxy, s3_client, tmp_path):
    """A function: the files over http://, which has no folders, cached."""
    anyone = {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": f"arn:aws:s3:::{BUCKET}/*"}
    s3_client.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": [anyone]}))

    def make(cache="cache", retry=QUICK, **options) -> ado.AdaptiveStreamingDataset:
        given = [(f"{proxy.url}/{BUCKET}/flat", tmp_path / cache)]
        return ado.AdaptiveStreamingDataset(files(*given[0]), BATCH, seed=3, retry=retry, seq_len=T, **options)

    return make


def files(place: str, cache: Path | None = None) -> list[ado.Domain]:
    """The domains, of "code" the first file alone."""
    return [
        replace(each, **{"remote" if cache else "local": f"{place}/{name}"})
        for each, name in zip(domains(place, cache), ("web", "code/part-1.npy"), strict=True)
    ]


@pytest.fixture
def files_reference(origin):
    return ledger(run(ado.AdaptiveStreamingDataset(files(str(origin)), BATCH, seed=3, seq_len=T), STEPS))


@pytest.mark.parametrize("name", EXACT)
def test_through_the_fault_another_store_gives_the_batches_read_in_place(
    name, http_dataset, proxy, files_reference, tmp_path
):
    rules, retry = EXACT[name]
    proxy.rules = [replace(rule, hits=rule.hits.copy()) for rule in rules]
    assert ledger(run(http_dataset(retry=retry), STEPS)) == files_reference
    assert sum(rule.hits.total() for rule in proxy.rules) > 0
    assert unfinished(tmp_path / "cache") == []


def test_another_store_is_read_by_ranges_and_a_damaged_cache_again(
    http_dataset, proxy, origin, files_reference, tmp_path
):
    data = http_dataset(predownload=1)
    data.start(0, 0)
    data.next_batch()
    data.close()
    blocks = list((tmp_path / "cache" / "web").rglob("*.tokens"))
    assert proxy.gets[f"/{BUCKET}/flat/{BIN}"] == len(blocks) < (origin / BIN).stat().st_size // SHARD_BYTES
    run(http_dataset(), STEPS)
    for path in (tmp_path / "cache").rglob("*.tokens"):
        path.write_bytes(damaged(path.read_bytes(), "flip"))
    assert ledger(run(http_dataset(cache_limit=12 * SHARD_BYTES), STEPS)) == files_reference


def test_a_file_replaced_in_another_store_is_noticed(http_dataset, upload, origin):
    data = http_dataset(predownload=BATCH)
    data.start(0, 0)
    data.next_batch()
    state = data.state_dict()
    upload(f"flat/{BIN}", bytes((origin / BIN).stat().st_size))
    with pytest.raises(DataError, match=f"flat/{BIN}: the file was replaced or changed since it was opened"):
        run(data, 200, mixture=None)
    with pytest.raises(ado.ResumeError, match="domain 'web'.*other times or tags"):
        http_dataset().load_state_dict(state)


@pytest.mark.parametrize("tags", ["weak", "none"])
def test_a_store_without_strong_tags_is_read_and_a_replaced_file_noticed(http_dataset, upload, origin, proxy, tags):
    """Without any, by the bytes at both ends of the file."""
    proxy.tags = tags
    data = http_dataset(predownload=BATCH)
    data.start(0, 0)
    data.next_batch()
    state = data.state_dict()
    http_dataset().load_state_dict(state)
    upload(f"flat/{BIN}", bytes((origin / BIN).stat().st_size))
    with pytest.raises(DataError, match=f"flat/{BIN}: the file was replaced or changed since it was opened"):
        run(data, 200, mixture=None)
    with pytest.raises(ado.ResumeError, match="domain 'web'.*other times or tags"):
        http_dataset().load_state_dict(state)


def test_s3_with_weak_tags_is_read_and_a_replaced_file_noticed(bucket, upload, origin, proxy, reference, tmp_path):
    """If-Match, which a weak tag never fits, is not sent."""
    proxy.tags = "weak"
    assert ledger(run(remote_dataset(tmp_path / "cache"), STEPS)) == reference
    data = remote_dataset(tmp_path / "other", predownload=BATCH)
    data.start(0, 0)
    upload(f"flat/{BIN}", bytes((origin / BIN).stat().st_size))
    with pytest.raises(DataError, match=f"flat/{BIN}: the file was replaced or changed since it was opened"):
        run(data, 200, mixture=None)


def test_another_store_that_fails_or_lacks_a_file_says_so(http_dataset, upload, proxy):
    proxy.rules = [Rule("status", "flat/")]
    with pytest.raises(Throttled, match="3 attempts"):
        run(http_dataset(retry=replace(QUICK, attempts=3)), STEPS)
    proxy.rules = [Rule("status", "flat/", status=403, code="AccessDenied")]
    with pytest.raises(AccessDenied, match="http://"):
        run(http_dataset("denied"), STEPS)
    proxy.rules = []
    upload(f"flat/{BIN}", None)
    with pytest.raises(NotFound, match=f"flat/{BIN}"):
        http_dataset()
    proxy.stop()
    with pytest.raises(ado.StorageError, match=r"\(2 attempts"):
        http_dataset("down", replace(QUICK, attempts=2))


def test_a_file_is_read_by_ranges_and_never_whole(bucket, proxy, origin, tmp_path):
    """Two steps of a domain fetch some of its blocks: as many GETs and bytes, and none of the whole file."""
    data = remote_dataset(tmp_path / "cache", predownload=1)
    data.start(0, 0)
    for _ in range(2):
        data.next_batch()
    data.close()
    blocks = list((tmp_path / "cache" / "web").rglob("*.tokens"))
    assert proxy.gets[f"/{BUCKET}/flat/{BIN}"] == len(blocks) < (origin / BIN).stat().st_size // SHARD_BYTES
    assert max(block.stat().st_size for block in blocks) <= SHARD_BYTES + 2 + 8


def test_s2_503_for_ever_is_throttled(bucket, proxy, tmp_path):
    data = remote_dataset(tmp_path / "cache", replace(QUICK, attempts=3))
    proxy.rules = [Rule("status", "flat/")]
    with pytest.raises(Throttled, match="3 attempts"):
        run(data, STEPS)


def test_s7_a_restart_of_the_server_then_exact(bucket, proxy, reference, tmp_path):
    data = remote_dataset(tmp_path / "cache", replace(QUICK, attempts=200))
    restarts = [threading.Timer(0.05, proxy.stop), threading.Timer(0.5, proxy.start)]
    proxy.rules = [Rule("delay", "flat/", seconds=0.02)]
    for timer in restarts:
        timer.start()
    assert ledger(run(data, STEPS)) == reference
    for timer in restarts:
        timer.join()


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        (None, NotFound),
        (Rule("status", "flat/", status=403, code="AccessDenied"), AccessDenied),
        (Rule("status", "flat/", status=400, code="ExpiredToken"), AccessDenied),
    ],
    ids=["deleted", "403", "expired"],
)
def test_s6_a_store_that_refuses_is_an_error_and_never_a_short_epoch(
    bucket, origin, upload, proxy, reference, tmp_path, rule, error
):
    data = remote_dataset(tmp_path / "cache", predownload=BATCH)
    data.start(0, 0)
    batches = [data.next_batch()]
    if rule is None:
        for path in origin.rglob("*.*"):
            upload(f"flat/{path.relative_to(origin)}", None)
    else:
        proxy.rules = [replace(rule)]
    with pytest.raises(error, match="s3://"):
        run(data, 200, mixture=None)
    assert ledger(batches) == reference[:BATCH]


def test_a_file_replaced_at_the_remote_is_noticed_in_the_run_and_by_its_state(
    bucket, upload, origin, tmp_path, monkeypatch
):
    """Same size, another ETag. The blocks of the old one are not served to who opens the new one."""
    data = remote_dataset(tmp_path / "cache", predownload=BATCH)
    data.start(0, 0)
    data.next_batch()
    state = data.state_dict()
    content = bytearray((origin / BIN).read_bytes())
    content[0::2] = content[0::2][::-1]
    upload(f"flat/{BIN}", bytes(content))
    with pytest.raises(DataError, match=f"flat/{BIN}: the file was replaced or changed since it was opened"):
        run(data, 200, mixture=None)
    new = remote_dataset(tmp_path / "cache")
    with pytest.raises(ado.ResumeError, match="domain 'web'.*other times or tags"):
        new.load_state_dict(state)
    (origin / BIN).write_bytes(bytes(content))
    local = ado.AdaptiveStreamingDataset(domains(str(origin)), BATCH, seed=3, seq_len=T)
    expected = ledger(run(local, STEPS))
    assert ledger(run(new, STEPS)) == expected
    # The sibling: without the condition on the ETag, a reader of what was replaced meanwhile goes on with a mixture.
    get_object = s3.get_object
    monkeypatch.setattr(s3, "get_object", lambda *given, version=None, **options: get_object(*given, **options))
    blind = remote_dataset(tmp_path / "blind", predownload=BATCH)
    upload(f"flat/{BIN}", bytes(len(content)))
    assert ledger(run(blind, STEPS)) != expected


def test_a_file_cut_at_the_remote_is_refused_when_it_is_opened(bucket, upload, origin, tmp_path):
    upload(f"flat/{BIN}", (origin / BIN).read_bytes()[:-6])
    with pytest.raises(ado.IndexInvalid, match=f"(?s)s3://{BUCKET}/flat/web.idx: .*The .bin is cut"):
        remote_dataset(tmp_path / "cache")


def test_c1_a_limit_below_one_block_is_refused_at_start(bucket, tmp_path):
    with pytest.raises(ConfigError, match="cache limit"):
        remote_dataset(tmp_path / "cache", cache_limit=1000)


def test_c2_c5_a_cache_of_a_few_blocks_is_exact_by_eviction(bucket, reference, tmp_path):
    data = remote_dataset(tmp_path / "cache", cache_limit=12 * SHARD_BYTES)
    assert ledger(run(data, STEPS)) == reference
    assert data.statistics()["cache"]["evictions"] > 0


@pytest.mark.parametrize("damage", ["flip", "truncate", "zero"])
def test_c3_a_cache_damaged_between_runs_is_exact(bucket, reference, tmp_path, damage):
    run(remote_dataset(tmp_path / "cache"), STEPS)
    for path in (tmp_path / "cache").rglob("*.tokens"):
        path.write_bytes(damaged(path.read_bytes(), damage))
    assert ledger(run(remote_dataset(tmp_path / "cache"), STEPS)) == reference


def test_c4_four_ranks_on_one_cache_read_each_block_once(bucket, proxy, reference, tmp_path):
    ranks = [remote_dataset(tmp_path / "cache", rank=rank, world_size=4) for rank in range(4)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda rank: run(rank, STEPS, close=False), ranks))
    for rank in ranks:
        rank.close()
    for step in range(STEPS):
        union = [entry for batches in results for entry in ledger([batches[step]])]
        assert union == reference[step * BATCH : (step + 1) * BATCH]
    blocks = list((tmp_path / "cache").rglob("*.tokens"))
    counted = [rank.statistics()["cache"] for rank in ranks]
    assert sum(each["misses"] for each in counted) <= len(blocks), counted
