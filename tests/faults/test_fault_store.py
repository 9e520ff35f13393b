"""docs/faults.md S1 to S7 for one object: the store misbehaves, the cache serves the right bytes or says why not.

Every protection has a sibling run with it switched off that shows the fault biting.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from ado_stream.errors import AccessDenied, NotFound, ShardCorrupt, StorageError, Throttled
from ado_stream.storage import s3
from ado_stream.storage.node_cache import NodeCache
from tests.faults.conftest import BUCKET, QUICK, make_shard
from tests.faults.proxy import FaultProxy, Rule

pytestmark = pytest.mark.fault
IMPATIENT = replace(QUICK, read_timeout_s=0.5)
ONCE = replace(QUICK, attempts=1)


def fetch_all(cache, shards, folder):
    """Fetches every shard and checks its bytes: the ledger of an object."""
    for shard in shards:
        assert cache.fetch(shard.spec(folder)).path.read_bytes() == shard.raw


def test_s1_three_503_of_each_key_are_survived(proxy, shards, tmp_path):
    proxy.rules = [Rule("status", times=3)]
    cache = NodeCache(retry=QUICK)
    fetch_all(cache, shards, tmp_path)
    assert set(proxy.gets.values()) == {4}
    assert cache.statistics()["retries"] == 3 * len(shards)


def test_s1_a_third_of_all_gets_failing_is_survived(proxy, shards, tmp_path):
    proxy.rules = [Rule("status", probability=0.3)]
    fetch_all(NodeCache(retry=QUICK), shards, tmp_path)
    assert max(proxy.gets.values()) <= QUICK.attempts


def test_s1_without_retries_one_503_ends_it(proxy, shards, tmp_path):
    proxy.rules = [Rule("status", times=1)]
    with pytest.raises(Throttled):
        NodeCache(retry=ONCE).fetch(shards[0].spec(tmp_path))


def test_s2_503_for_a_while_is_survived(proxy, shards, tmp_path):
    proxy.rules = [Rule("status", until=time.monotonic() + 1.5)]
    patient = replace(QUICK, attempts=40, max_delay_s=0.3, base_delay_s=0.1)
    fetch_all(NodeCache(retry=patient), shards[:1], tmp_path)


@pytest.mark.deadline
@pytest.mark.parametrize("bound", [{"attempts": 5}, {"attempts": 10_000, "total_deadline_s": 1.0}])
def test_s2_503_for_ever_is_throttled_within_the_bounds(proxy, shards, tmp_path, bound):
    NodeCache(retry=QUICK).fetch(shards[1].spec(tmp_path))  # pays for the client's imports
    proxy.rules = [Rule("status")]
    started = time.monotonic()
    with pytest.raises(Throttled, match=rf"s3://{BUCKET}/{shards[0].key}: HTTP 503 SlowDown \(\d+ attempts? in \d"):
        NodeCache(retry=replace(QUICK, **bound)).fetch(shards[0].spec(tmp_path))
    assert time.monotonic() - started < 10.0  # the deadline of 1 s, and one slow attempt on a busy machine


@pytest.mark.deadline
@pytest.mark.parametrize("kind", ["cut", "reset", "stall", "trickle"])
def test_s3_a_spoilt_body_is_fetched_anew(proxy, shards, tmp_path, kind):
    proxy.rules = [Rule(kind, times=1)]
    started = time.monotonic()
    fetch_all(NodeCache(retry=IMPATIENT), shards[:2], tmp_path)
    # Each of two objects loses a read timeout (0.5 s), the trickle's last recv another; the rest: a busy machine.
    assert time.monotonic() - started < 4 * IMPATIENT.read_timeout_s + 3.0
    assert min(proxy.gets.values()) >= 2


@pytest.mark.deadline
def test_s3_a_trickle_for_ever_meets_the_deadline(proxy, shards, tmp_path):
    proxy.rules = [Rule("trickle")]
    started = time.monotonic()
    with pytest.raises(StorageError, match="deadline|bytes/s"):
        NodeCache(retry=replace(IMPATIENT, total_deadline_s=2.0)).fetch(shards[0].spec(tmp_path))
    assert time.monotonic() - started < 2.0 + IMPATIENT.read_timeout_s + 2.0


def test_s3_without_a_least_rate_a_trickle_eats_the_whole_deadline(proxy, shards, tmp_path):
    proxy.rules = [Rule("trickle", times=1)]
    credulous = replace(IMPATIENT, min_bytes_per_s=0.0, total_deadline_s=2.0)
    with pytest.raises(StorageError, match="deadline"):
        NodeCache(retry=credulous).fetch(shards[0].spec(tmp_path))


@pytest.mark.parametrize("number", [0, 1])
def test_s4_a_bit_flipped_in_transit_costs_one_refetch(proxy, shards, tmp_path, number):
    proxy.rules = [Rule("flip", times=1)]
    cache = NodeCache(retry=QUICK)
    fetch_all(cache, shards[number : number + 1], tmp_path)
    assert proxy.gets[f"/{BUCKET}/{shards[number].key}"] == 2
    assert cache.statistics()["refetches"] == 1


def test_s4_without_hashes_the_flipped_bit_is_served(proxy, shards, tmp_path):
    proxy.rules = [Rule("flip", times=1)]
    with pytest.warns(UserWarning, match="no hashes"):
        fetched = NodeCache(retry=QUICK).fetch(shards[0].spec(tmp_path, hashes=False))
    assert fetched.path.read_bytes() != shards[0].raw


@pytest.mark.parametrize("damage", ["flip", "shorter", "longer"])
@pytest.mark.parametrize("number", [0, 1], ids=["raw", "zstd"])
def test_s5_damage_at_rest_is_shard_corrupt_after_three_downloads(proxy, upload, tmp_path, damage, number):
    shard = make_shard(number, compression="zstd" if number else None, folder="damaged")
    half = len(shard.stored) // 2
    flipped = shard.stored[:half] + bytes([shard.stored[half] ^ 1]) + shard.stored[half + 1 :]
    upload(shard.key, {"flip": flipped, "shorter": shard.stored[:half], "longer": shard.stored + b"x"}[damage])
    spec = shard.spec(tmp_path)
    with pytest.raises(ShardCorrupt, match=rf"s3://{BUCKET}/{shard.key}.* after 3 downloads"):
        NodeCache(retry=QUICK).fetch(spec)
    assert proxy.gets[f"/{BUCKET}/{shard.key}"] == 3
    assert not spec.raw.exists()
    assert not spec.stored.exists()


def test_s5_a_flip_inside_the_frame_is_seen_by_the_raw_hash_alone(proxy, upload, tmp_path):
    honest, other = make_shard(1, folder="stale"), make_shard(2, folder="stale")
    spec = replace(honest.spec(tmp_path), stored_hashes={}, stored_bytes=None)
    upload(honest.key, other.stored)  # a whole frame of the right raw size with other content
    with pytest.raises(ShardCorrupt, match=r"xxh64 .* after 3 downloads"):
        NodeCache(retry=QUICK).fetch(spec)
    assert [path.name for path in spec.raw.parent.glob(".bad-*")] == [f".bad-{spec.stored.name}"]
    with pytest.warns(UserWarning, match="no hashes"):  # the sibling: without the hash the stale shard is served
        assert NodeCache(retry=QUICK).fetch(replace(spec, raw_hashes={})).path.read_bytes() == other.raw


def test_s6_deleted_key_is_not_found_at_once(proxy, upload, shards, tmp_path):
    upload(shards[0].key, None)
    with pytest.raises(NotFound, match=rf"{shards[0].key}: HTTP 404 NoSuchKey \(1 attempt"):
        NodeCache(retry=QUICK).fetch(shards[0].spec(tmp_path))


@pytest.mark.parametrize(
    ("status", "code"), [(403, "AccessDenied"), (400, "ExpiredToken"), (403, "SignatureDoesNotMatch")]
)
def test_s6_refused_credentials_are_access_denied_with_the_code(proxy, shards, tmp_path, status, code):
    proxy.rules = [Rule("status", status=status, code=code)]
    with pytest.raises(AccessDenied, match=f"HTTP {status} {code}"):
        NodeCache(retry=QUICK).fetch(shards[0].spec(tmp_path))
    assert sum(proxy.gets.values()) == 1


@pytest.mark.parametrize(("status", "code"), [(400, "ExpiredToken"), (403, "InvalidAccessKeyId")])
def test_s6_credentials_that_were_renewed_in_their_file_are_used_from_then_on(
    proxy, shards, tmp_path, monkeypatch, status, code
):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))

    def renew(key):
        file.write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key=word\n")

    renew(old := f"OLD{status}")
    cache = NodeCache(retry=QUICK)
    fetch_all(cache, shards[:1], tmp_path)
    proxy.rules = [Rule("status", status=status, code=code, signer=old)]
    with pytest.raises(AccessDenied):
        fetch_all(cache, shards[1:2], tmp_path)
    assert proxy.gets[f"/{BUCKET}/{shards[1].key}"] == 1  # nothing else to ask with
    renew(f"NEW{status}")
    with ThreadPoolExecutor(4) as pool:  # all of them are refused at once
        list(pool.map(lambda shard: fetch_all(cache, [shard], tmp_path), shards[1:]))
    assert cache.statistics()["retries"] == 0


def test_s6_credentials_that_were_missing_at_first_are_used_once_they_are_there(proxy, shards, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with monkeypatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name)
        proxy.rules = [Rule("status", status=403, code="AccessDenied", signer="")]
        with pytest.raises(AccessDenied):
            fetch_all(NodeCache(retry=QUICK), shards[:1], tmp_path)
    fetch_all(NodeCache(retry=QUICK), shards[:1], tmp_path)


def test_s2_a_store_is_not_asked_again_before_the_time_that_it_names(proxy, shards, tmp_path):
    proxy.rules = [Rule("status", times=2, retry_after="1")]
    started = time.monotonic()
    fetch_all(NodeCache(retry=QUICK), shards[:1], tmp_path)
    assert time.monotonic() - started >= 2.0
    assert proxy.gets[f"/{BUCKET}/{shards[0].key}"] == 3


@pytest.mark.parametrize("key", ["a?b", "a#b", "a [1]", "a%20b", "ä+b&c=d", "a//b", "a;b:c@d"])
def test_any_key_is_asked_for_as_it_is_spelled(proxy, s3_client, upload, tmp_path, key):
    upload(f"{key}/shard.00000.mds", b"1234")
    spec = replace(make_shard(0).spec(tmp_path), remote=f"s3://{BUCKET}/{key}/shard.00000.mds", compression=None)
    spec = replace(spec, raw_hashes={}, stored_hashes={}, stored=spec.raw, raw_bytes=4, stored_bytes=4)
    with pytest.warns(UserWarning, match="no hashes"):
        assert NodeCache(retry=QUICK).fetch(spec).path.read_bytes() == b"1234"


@pytest.mark.parametrize("bucket", ["[b", "b\u2100", "b\nc", ""])
def test_what_can_be_no_bucket_is_a_storage_error_at_once(proxy, shards, tmp_path, bucket):
    spec = replace(shards[0].spec(tmp_path), remote=f"s3://{bucket}/{shards[0].key}")
    with pytest.raises(StorageError, match=r"Invalid bucket name.*\(1 attempt"):
        NodeCache(retry=QUICK).fetch(spec)


def test_the_requester_pays_where_the_environment_says_so(proxy, shards, tmp_path, monkeypatch):
    asked = []
    client, _ = s3._client(QUICK.read_timeout_s)
    client.meta.events.register(
        "before-send.s3.GetObject", lambda request, **_: asked.append(request.headers.get("x-amz-request-payer"))
    )
    for number, buckets in enumerate(["", f"other, {BUCKET}"]):
        monkeypatch.setenv("MOSAICML_STREAMING_AWS_REQUESTER_PAYS", buckets)
        fetch_all(NodeCache(retry=QUICK), shards[:1], tmp_path / str(number))
    assert asked == [None, b"requester"]


def test_s7_a_restart_of_the_server_is_survived(proxy: FaultProxy, shards, tmp_path: Path):
    import threading

    cache = NodeCache(retry=replace(QUICK, attempts=200))
    fetch_all(cache, shards[:1], tmp_path)  # leaves an open connection in the pool
    proxy.stop()
    restart = threading.Timer(1.0, proxy.start)
    restart.start()
    fetch_all(cache, shards, tmp_path)
    restart.join()
    assert cache.statistics()["retries"] > 0


def test_s7_without_retries_the_restart_ends_it(proxy, shards, tmp_path):
    proxy.stop()
    try:
        with pytest.raises(StorageError, match="1 attempt"):
            NodeCache(retry=ONCE).fetch(shards[0].spec(tmp_path))
    finally:
        proxy.start()
