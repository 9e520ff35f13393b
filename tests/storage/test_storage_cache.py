"""NodeCache on local remotes: what is fetched, kept, counted, left alone. Faults of stores are in tests/faults."""

import errno
import itertools
import os
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import xxhash
import zstandard

from ado_stream.errors import ConfigError, NotFound, ShardCorrupt, StorageError
from ado_stream.storage import complete_file, node_cache
from ado_stream.storage.node_cache import NodeCache
from ado_stream.storage.object_locks import object_lock
from ado_stream.storage.object_spec import ObjectSpec
from ado_stream.storage.retry import AttemptError, Deadline, DownloadMonitor, RetryPolicy, with_retries
from ado_stream.train.step_timer import StepTimer

RAW = bytes(range(256)) * 400
STORED = zstandard.compress(RAW)


@pytest.fixture
def compressed(tmp_path) -> ObjectSpec:
    """A zstd shard in a local remote folder."""
    return make_spec(tmp_path, "shard.00000.mds", "zstd")


@pytest.fixture
def plain(tmp_path) -> ObjectSpec:
    """An uncompressed shard in a local remote folder."""
    return make_spec(tmp_path, "shard.00001.mds", None)


def make_spec(folder: Path, name: str, compression: str | None) -> ObjectSpec:
    """Writes RAW into the folder "remote" and describes it as cached in the folder "cache"."""
    stored_name = f"{name}.zstd" if compression else name
    content = STORED if compression else RAW
    remote = folder / "remote" / stored_name
    remote.parent.mkdir(exist_ok=True)
    remote.write_bytes(content)
    return ObjectSpec(
        label=f"domain 'wiki' {name}",
        remote=str(remote),
        stored=folder / "cache" / stored_name,
        raw=folder / "cache" / name,
        stored_bytes=len(content),
        raw_bytes=len(RAW),
        stored_hashes={"xxh64": xxhash.xxh64_hexdigest(content)},
        raw_hashes={"xxh64": xxhash.xxh64_hexdigest(RAW)},
        compression=compression,
    )


def visible(folder: Path) -> set[str]:
    """Names of a cache folder's files, the hidden bookkeeping aside."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(".ado-")}


def test_a_miss_then_a_hit_and_the_counts(compressed):
    cache = NodeCache()
    first, second = cache.fetch(compressed), cache.fetch(compressed)
    assert (first.path, first.downloaded_bytes, first.hit) == (compressed.raw, len(STORED), False)
    assert (second.downloaded_bytes, second.hit) == (0, True)
    assert compressed.raw.read_bytes() == RAW
    assert cache.statistics() == {
        "hits": 1,
        "misses": 1,
        "downloaded_bytes": len(STORED),
        "retries": 0,
        "refetches": 0,
        "evictions": 0,
    }


def test_the_stored_file_goes_after_decompression(compressed, plain):
    cache = NodeCache()
    cache.fetch(compressed)
    cache.fetch(plain)
    assert visible(compressed.raw.parent) == {compressed.raw.name, plain.raw.name}


def test_a_good_stored_file_on_disk_is_unpacked_without_a_download(compressed):
    compressed.stored.parent.mkdir()
    compressed.stored.write_bytes(STORED)
    assert NodeCache().fetch(compressed).hit
    assert compressed.raw.read_bytes() == RAW


def test_a_bad_stored_file_on_disk_is_set_aside(compressed):
    compressed.stored.parent.mkdir()
    compressed.stored.write_bytes(STORED[:-1] + b"?")
    assert not NodeCache().fetch(compressed).hit
    assert visible(compressed.raw.parent) == {compressed.raw.name, f".bad-{compressed.stored.name}"}


def test_another_process_takes_the_file_after_checking_it(compressed):
    NodeCache().fetch(compressed)
    Path(compressed.remote).unlink()
    assert NodeCache().fetch(compressed).hit


def test_local_only_data_are_used_as_they_lie(plain):
    spec = replace(plain, remote=None, stored=Path(plain.remote), raw=Path(plain.remote))
    assert NodeCache().fetch(spec).hit
    assert visible(spec.raw.parent) == set(os.listdir(spec.raw.parent)) == {spec.raw.name}  # not even bookkeeping


def test_local_only_compressed_data_are_unpacked_beside_and_kept(compressed):
    folder = Path(compressed.remote).parent
    spec = replace(compressed, remote=None, stored=folder / compressed.stored.name, raw=folder / compressed.raw.name)
    NodeCache(limit_bytes=1).fetch(spec)  # no limit evicts what has no remote
    assert spec.raw.read_bytes() == RAW
    assert spec.stored.read_bytes() == STORED


def test_local_only_compressed_data_that_are_bad_are_left_alone(compressed):
    folder = Path(compressed.remote).parent
    spec = replace(compressed, remote=None, stored=folder / compressed.stored.name, raw=folder / compressed.raw.name)
    spec.stored.write_bytes(STORED[:-1])
    with pytest.raises(ShardCorrupt, match="no remote"):
        NodeCache().fetch(spec)
    assert visible(folder) == {spec.stored.name}


def test_a_remote_that_is_the_file_itself_counts_as_local_only(plain, tmp_path):
    folder = Path(plain.remote).parent
    (tmp_path / "link").symlink_to(folder)
    spec = replace(plain, stored=tmp_path / "link" / plain.raw.name, raw=tmp_path / "link" / plain.raw.name)
    cache = NodeCache(limit_bytes=len(RAW))
    cache.fetch(spec)
    cache.fetch(make_spec(tmp_path, "shard.00002.mds", None))
    cache.fetch(make_spec(tmp_path, "shard.00003.mds", None))
    assert Path(plain.remote).read_bytes() == RAW  # not evicted
    Path(plain.remote).write_bytes(b"damaged")
    with pytest.raises(ShardCorrupt):
        NodeCache().fetch(spec)
    assert Path(plain.remote).read_bytes() == b"damaged"  # not renamed either


@pytest.mark.privileged
def test_a_read_only_folder_serves_local_only_data_and_refuses_a_cache(plain, compressed, tmp_path):
    folder = tmp_path / "readonly"
    folder.mkdir()
    (folder / plain.raw.name).write_bytes(RAW)
    subprocess.run(["mount", "--bind", "-r", str(folder), str(folder)], check=True)
    try:
        spec = replace(plain, remote=None, stored=folder / plain.raw.name, raw=folder / plain.raw.name)
        cache = NodeCache()
        cache.check_fits([spec])
        assert cache.fetch(spec).hit
        assert cache.fetch(spec).hit
        with pytest.raises(ConfigError, match="not writable"):
            cache.check_fits([replace(compressed, raw=folder / "x.mds", stored=folder / "x.mds.zstd")])
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.privileged
def test_a_cache_whose_disk_became_read_only_serves_what_it_has_and_names_what_it_cannot_write(compressed, tmp_path):
    folder, other = compressed.raw.parent, make_spec(tmp_path, "shard.00002.mds", "zstd")
    cache = NodeCache()
    cache.fetch(compressed)
    subprocess.run(["mount", "--bind", "-r", str(folder), str(folder)], check=True)
    try:
        for each in (cache, NodeCache()):
            assert each.fetch(compressed).hit
            assert bytes(each.map(compressed)[0]) == RAW
            with pytest.raises(StorageError, match="Read-only file system"):
                each.fetch(other)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("call", ["stat", "open"])
def test_an_error_of_the_local_disk_is_a_storage_error_that_names_the_file(compressed, monkeypatch, call):
    """A network mount that was lost, a bad block: what the system says, on whichever call it says it."""
    cache = NodeCache()
    cache.fetch(compressed)
    system = getattr(os, call)

    def fails(path, *_, **__):
        if str(path) == str(compressed.raw):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return system(path, *_, **__)

    monkeypatch.setattr(os, call, fails)
    for read in (cache.map, NodeCache().fetch):
        with pytest.raises(StorageError, match=f"{compressed.raw}: .*Stale file handle"):
            read(compressed)


@pytest.mark.parametrize("removals", [1, 2, 99])
@pytest.mark.parametrize("name", ["plain", "compressed"])
def test_files_that_others_remove_while_they_are_written_are_made_again_or_the_file_is_named(
    name, removals, request, monkeypatch
):
    """By a cleaner of temporary files, or a host whose locks are its own: it takes them for those of a dead process."""
    spec, removed = request.getfixturevalue(name), itertools.count()
    rename = complete_file.rename_durably

    def rename_after_a_removal(file, temporary, path):
        if next(removed) < removals:
            temporary.unlink()
        rename(file, temporary, path)

    monkeypatch.setattr(complete_file, "rename_durably", rename_after_a_removal)
    cache = NodeCache()
    if removals == 99:
        with pytest.raises(
            StorageError, match=rf"{spec.raw.name}\S*: .*\n.*removed while it was written.*\n.*local disk"
        ):
            cache.fetch(spec)
    else:
        assert cache.fetch(spec).path.read_bytes() == RAW
        assert cache.statistics()["refetches"] == removals
    assert list((spec.raw.parent / ".ado-tmp").iterdir()) == []


@pytest.mark.parametrize("hashes", [True, False])
def test_two_hosts_that_make_one_object_without_common_locks_serve_it_whole(compressed, tmp_path, monkeypatch, hashes):
    """Each takes the other's unfinished files for leftovers. Processes here stand for hosts; nobody holds a lock."""
    spec = compressed if hashes else replace(compressed, stored_hashes={}, raw_hashes={})
    monkeypatch.setattr(node_cache, "object_lock", lambda *_, **__: nullcontext())
    monkeypatch.setattr(NodeCache, "_warn_without_hashes", lambda *_: None)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(threading, "get_native_id", lambda: 1)
    patient = RetryPolicy(max_downloads=1000)
    for _ in range(15):
        with ThreadPoolExecutor(4) as pool:
            for served in pool.map(lambda _: bytes(NodeCache(retry=patient).map(spec)[0]), range(4)):
                assert served == RAW
        shutil.rmtree(spec.raw.parent)


def test_without_hashes_one_warning_a_folder_and_sizes_are_checked(plain, tmp_path):
    bare = replace(plain, stored_hashes={}, raw_hashes={})
    cache = NodeCache()
    with pytest.warns(UserWarning, match="no hashes"):
        cache.fetch(bare)
    bare.raw.write_bytes(RAW[:-1])
    assert cache.fetch(bare).path.read_bytes() == RAW  # a second warning would be an error here
    own = replace(bare, remote=None, stored=Path(plain.remote), raw=Path(plain.remote))
    with pytest.warns(UserWarning, match="no hashes"):
        cache.fetch(own)


def test_missing_everywhere_is_not_found(plain, compressed):
    Path(plain.remote).unlink()
    with pytest.raises(NotFound, match="Check the path or URL"):
        NodeCache().fetch(plain)
    for spec in (plain, compressed):
        with pytest.raises(NotFound, match=r"domain 'wiki' .* has no remote"):
            NodeCache().fetch(replace(spec, remote=None))


def test_a_limit_must_be_positive():
    with pytest.raises(ConfigError, match="positive"):
        NodeCache(limit_bytes=0)


def test_a_folder_in_place_of_a_shard_is_a_typed_error(plain):
    plain.raw.mkdir(parents=True)
    with pytest.raises(Exception, match=plain.raw.name) as caught:
        NodeCache().fetch(plain)
    assert type(caught.value).__module__.startswith("ado_stream")


def test_a_limit_costs_one_scan_whatever_is_downloaded(tmp_path, monkeypatch):
    """Counted: before, every download listed every folder."""
    specs = [make_spec(tmp_path, f"shard.{number:05d}.mds", None) for number in range(30)]
    cache = NodeCache(limit_bytes=3 * len(RAW))
    scandir, scanned = os.scandir, []

    def counted(path="."):
        scanned.append(str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    for spec in specs:
        cache.fetch(spec)
    assert cache.statistics()["evictions"] == 27
    assert sum(path.endswith("cache") for path in scanned) == 1
    assert visible(specs[0].raw.parent) == {spec.raw.name for spec in specs[-3:]}


def test_the_limit_holds_for_processes_that_began_before_the_others_files(tmp_path):
    """Two caches of one folder take turns: each sees in the account what the other made since its own scan."""
    specs = [make_spec(tmp_path, f"shard.{number:05d}.mds", None) for number in range(12)]
    caches = [NodeCache(limit_bytes=4 * len(RAW)) for _ in range(2)]
    for number, spec in enumerate(specs):
        caches[number % 2].fetch(spec)
        assert len(visible(spec.raw.parent)) <= 4
    assert sum(cache.statistics()["evictions"] for cache in caches) == 8


def test_the_account_of_a_killed_process_is_corrected_by_the_next_scan(tmp_path):
    first, second, third = (make_spec(tmp_path, f"shard.{number:05d}.mds", None) for number in range(3))
    cache = NodeCache(limit_bytes=2 * len(RAW))
    cache.fetch(first)
    account = first.raw.parent / ".ado-locks" / "account"
    with open(account, "ab") as file:
        file.write((10 * len(RAW)).to_bytes(8, "little"))  # reserved, and never made
    cache.fetch(second)
    cache.fetch(third)
    assert visible(first.raw.parent) == {second.raw.name, third.raw.name}


@pytest.mark.parametrize("jump_s", [-18_000, 18_000], ids=["back", "there and back"])
def test_the_least_recently_used_goes_first_though_the_clock_jumps(tmp_path, monkeypatch, jump_s):
    """Five hours back, or forward for one use: what was used since is still newer."""
    a, b, c, d = (make_spec(tmp_path, f"shard.{number:05d}.mds", None) for number in range(4))
    cache, offset_s, clock = NodeCache(limit_bytes=3 * len(RAW)), [0], time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: clock() + offset_s[0] * 10**9)
    for spec in (a, b, c):
        cache.fetch(spec)
    offset_s[0] = jump_s
    cache.fetch(a)
    if jump_s > 0:
        offset_s[0] = 0
    cache.fetch(b)
    cache.fetch(d)
    assert visible(a.raw.parent) == {spec.raw.name for spec in (a, b, d)}
    cache.fetch(c)
    assert visible(a.raw.parent) == {spec.raw.name for spec in (b, c, d)}


def test_a_later_process_after_a_jump_back_knows_what_was_used_before(tmp_path, monkeypatch):
    specs = [make_spec(tmp_path, f"shard.{number:05d}.mds", None) for number in range(4)]
    for spec in specs[:3]:
        NodeCache(limit_bytes=3 * len(RAW)).fetch(spec)
    clock = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: clock() - 18_000 * 10**9)
    later = NodeCache(limit_bytes=3 * len(RAW))
    later.fetch(specs[3])  # in place of the first, and newest of all
    later.fetch(specs[0])
    assert visible(specs[0].raw.parent) == {specs[number].raw.name for number in (0, 2, 3)}


def test_no_deadline_follows_the_clock(tmp_path, monkeypatch):
    """Every look at the clock is ten hours from the last, to and fro: retries, locks and step times are as without."""
    clock, looks = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: clock() + (-1) ** next(looks) * 36_000)
    monkeypatch.setattr(time, "time_ns", lambda: int(time.time() * 1e9))
    started = time.monotonic()
    spec, calls = make_spec(tmp_path, "shard.00000.mds", None), []

    def failing():
        calls.append(None)
        raise AttemptError(StorageError, "reset", transient=True)

    policy = RetryPolicy(attempts=5, base_delay_s=0.001)
    with pytest.raises(StorageError, match=r"5 attempts in \d{1,3}\.\d s"):
        with_retries(failing, DownloadMonitor(policy, "s3://b/k"))
    assert len(calls) == 5
    with (
        object_lock(spec.raw, Deadline(1)),
        pytest.raises(StorageError, match="over 0 s"),
        object_lock(spec.raw, Deadline(0.1)),
    ):
        pass
    assert NodeCache(limit_bytes=2 * len(RAW)).fetch(spec).path.read_bytes() == RAW
    timer = StepTimer(torch.device("cpu"))
    with timer.host("policy"):
        pass
    assert all(0 <= seconds < 1000 for seconds in timer.seconds(time.perf_counter()).values())
    assert time.monotonic() - started < 1000
