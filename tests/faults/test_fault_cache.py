"""docs/faults.md C1, C2, C3 and C5 at the level of the cache: small disks, damaged files, eviction under a reader.

Every protection has a sibling run with it switched off that shows the fault biting.
"""

import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

import pytest

from ado_stream.durable import DiskError
from ado_stream.errors import CacheFull, ConfigError, ShardCorrupt, StorageError
from ado_stream.storage import node_cache as cache_module
from ado_stream.storage.node_cache import NodeCache
from ado_stream.storage.object_locks import object_lock
from ado_stream.storage.retry import Deadline
from tests.faults.conftest import BUCKET, QUICK, damaged

pytestmark = pytest.mark.fault
SHARD_BYTES = 100_000


def raw_files(folder: Path) -> list[Path]:
    """What a user of the cache may see in it."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and ".ado-" not in str(path))


def test_c1_a_limit_below_one_shard_is_a_config_error_at_start(proxy, shards, tmp_path):
    with pytest.raises(ConfigError, match=rf"needs {SHARD_BYTES} bytes but the cache limit is 99999"):
        NodeCache(limit_bytes=99_999).check_fits([shards[0].spec(tmp_path)])
    assert not proxy.gets
    with pytest.raises(CacheFull, match="cache limit"):  # the sibling: unchecked, it fails only when training has begun
        NodeCache(limit_bytes=99_999).fetch(shards[0].spec(tmp_path))


def test_c1_a_disk_below_one_shard_is_a_config_error_at_start(proxy, shards, small_disk):
    with pytest.raises(ConfigError, match=r"needs 100000 bytes but .* has \d+ free"):
        NodeCache().check_fits([shards[0].spec(small_disk(65_536))])


def test_c1_a_folder_that_cannot_be_written_is_a_config_error(shards, tmp_path):
    (tmp_path / "wiki").write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match="Choose a local folder"):
        NodeCache().check_fits([shards[0].spec(tmp_path)])


def test_c2_a_disk_of_three_shards_serves_six_by_eviction(proxy, shards, small_disk):
    disk = small_disk(3 * SHARD_BYTES + 40_960)
    cache = NodeCache(retry=QUICK)
    for shard in [*shards, *shards]:
        assert cache.fetch(shard.spec(disk)).path.read_bytes() == shard.raw
    assert cache.statistics()["evictions"] > 0
    assert all(path.stat().st_size == SHARD_BYTES for path in raw_files(disk))


def test_c2_without_eviction_the_disk_is_full(proxy, shards, small_disk, monkeypatch):
    def refuse(self, spec, deadline):
        raise CacheFull("switched off")

    monkeypatch.setattr(cache_module.Evictor, "make_room", refuse)
    cache, disk = NodeCache(retry=QUICK), small_disk(3 * SHARD_BYTES + 40_960)
    for shard in shards[:3]:
        cache.fetch(shard.spec(disk))
    with pytest.raises(CacheFull, match="switched off"):
        cache.fetch(shards[3].spec(disk))


@pytest.mark.parametrize("number", [0, 1], ids=["raw", "zstd"])
def test_c2_a_disk_filled_by_a_stranger_is_cache_full_without_a_torn_file(proxy, shards, small_disk, number):
    disk = small_disk(3 * SHARD_BYTES)
    (disk / "stranger").write_bytes(bytes(250_000))
    with pytest.raises(CacheFull, match=rf"needs \d+ bytes, but {disk}/wiki has \d+ free"):
        NodeCache(retry=QUICK).fetch(shards[number].spec(disk))
    assert raw_files(disk) == [disk / "stranger"]


@pytest.mark.deadline
def test_c2_a_stranger_that_takes_all_that_eviction_frees_is_cache_full(proxy, shards, small_disk):
    disk = small_disk(3 * SHARD_BYTES + 40_960)
    cache, stop = NodeCache(retry=replace(QUICK, total_deadline_s=3.0)), threading.Event()
    for shard in shards[:2]:
        cache.fetch(shard.spec(disk))

    def take_all() -> None:
        with open(disk / "stranger", "ab", buffering=0) as file:
            while not stop.is_set():
                try:
                    file.write(bytes(4096))
                except OSError:
                    time.sleep(0.0002)

    stranger = threading.Thread(target=take_all)
    stranger.start()
    started = time.monotonic()
    try:
        with pytest.raises(CacheFull, match=r"has \d+ free and"):
            deque(map(cache.fetch, itertools.cycle(shard.spec(disk) for shard in shards)), maxlen=0)
    finally:
        stop.set()
        stranger.join()
    assert time.monotonic() - started < 3.0 + 5.0
    assert all(path.stat().st_size == SHARD_BYTES for path in raw_files(disk) if path.name != "stranger")


def test_c2_files_that_free_no_room_are_not_deleted_for_ever(shards, tmp_path):
    """With 100,000 small files, evicting one after the other would outlast any deadline."""
    cache = NodeCache()
    for number in range(3):
        path = tmp_path / "wiki" / f"shard.{number:05d}.mds"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    cache._evictor.add_folder(tmp_path / "wiki")
    spec = replace(shards[0].spec(tmp_path), raw_bytes=1)
    cache._evictor.make_room(spec, Deadline(10.0))
    assert len(raw_files(tmp_path)) == 2
    with pytest.raises(CacheFull):
        cache._evictor.make_room(spec, Deadline(0.0))


def test_c2_other_write_errors_are_not_taken_for_a_full_disk(proxy, shards, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(DiskError, match="Input/output error"):
        NodeCache(retry=QUICK).fetch(shards[0].spec(tmp_path))
    assert raw_files(tmp_path) == []


def test_c2_the_byte_limit_holds_and_the_least_recently_used_goes_first(proxy, shards, tmp_path):
    limit_bytes = 3 * SHARD_BYTES + 100  # zstd makes incompressible content a few bytes longer
    cache = NodeCache(limit_bytes=limit_bytes, retry=QUICK)
    raw_shards = shards[0::2]
    specs = [shard.spec(tmp_path) for shard in raw_shards]
    for spec in specs:
        cache.fetch(spec)
    cache.fetch(specs[0])  # now the second is the oldest
    for _ in range(2):
        cache.fetch(shards[1].spec(tmp_path))  # compressed: needs twice its size for a moment
    assert specs[0].raw.exists()
    assert not specs[1].raw.exists()
    assert sum(path.stat().st_size for path in raw_files(tmp_path)) <= limit_bytes


def test_c2_a_pinned_shard_stays_and_cache_full_says_so(proxy, shards, tmp_path):
    cache = NodeCache(limit_bytes=SHARD_BYTES, retry=QUICK)
    kept, other = shards[0].spec(tmp_path), shards[2].spec(tmp_path)
    cache.pin(kept)
    cache.fetch(kept)
    with pytest.raises(CacheFull, match="Raise the cache limit"):
        cache.fetch(other)
    cache.unpin(kept)
    cache.fetch(other)
    assert not kept.raw.exists()


def test_c2_what_a_user_keeps_in_the_folder_is_never_evicted(proxy, shards, tmp_path):
    (tmp_path / "wiki").mkdir()
    (tmp_path / "wiki" / "notes.txt").write_text("mine")
    cache = NodeCache(limit_bytes=SHARD_BYTES, retry=QUICK)
    for shard in shards[0::2]:
        cache.fetch(shard.spec(tmp_path))
    assert (tmp_path / "wiki" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("how", ["flip", "truncate", "zero"])
def test_c3_a_cached_file_damaged_between_runs_is_fetched_again(proxy, shards, tmp_path, how, monkeypatch):
    spec = shards[1].spec(tmp_path)
    NodeCache(retry=QUICK).fetch(spec)
    spec.raw.write_bytes(damaged(shards[1].raw, how))
    next_run = NodeCache(retry=QUICK)
    assert next_run.fetch(spec).path.read_bytes() == shards[1].raw
    assert proxy.gets[f"/{BUCKET}/{shards[1].key}"] == 2
    assert next_run.statistics()["refetches"] == 1
    assert [path.name for path in tmp_path.rglob(".bad-*")] == [f".bad-{spec.raw.name}"]
    spec.raw.write_bytes(damaged(shards[1].raw, how))  # the sibling: without the check the damage is served
    monkeypatch.setattr(cache_module, "check_file", lambda *_: None)
    assert NodeCache(retry=QUICK).fetch(spec).path.read_bytes() != shards[1].raw


def test_c3_a_file_replaced_during_the_run_is_checked_again(proxy, shards, tmp_path):
    cache, spec = NodeCache(retry=QUICK), shards[0].spec(tmp_path)
    cache.fetch(spec)
    spec.raw.write_bytes(damaged(shards[0].raw, "flip"))
    assert cache.fetch(spec).path.read_bytes() == shards[0].raw


@pytest.mark.parametrize("how", ["flip", "truncate", "zero"])
def test_c3_a_damaged_local_only_shard_is_named_and_left_alone(shards, tmp_path, how):
    spec = replace(shards[0].spec(tmp_path), remote=None)
    spec.raw.parent.mkdir()
    spec.raw.write_bytes(damaged(shards[0].raw, how))
    with pytest.raises(ShardCorrupt, match="no remote"):
        NodeCache(retry=QUICK).fetch(spec)
    assert spec.raw.read_bytes() == damaged(shards[0].raw, how)


def test_c5_a_map_stays_readable_when_its_shard_is_evicted(proxy, shards, tmp_path):
    cache = NodeCache(limit_bytes=SHARD_BYTES, retry=QUICK)
    view, _ = cache.map(shards[0].spec(tmp_path))
    cache.fetch(shards[2].spec(tmp_path))
    assert not shards[0].spec(tmp_path).raw.exists()
    assert bytes(view) == shards[0].raw


def test_c5_a_shard_evicted_before_it_is_mapped_is_fetched_again(proxy, shards, tmp_path, monkeypatch):
    cache, spec = NodeCache(retry=QUICK), shards[0].spec(tmp_path)
    fetch = cache.fetch
    evicted = []

    def fetch_and_lose_once(spec, stop=None):
        fetched = fetch(spec, stop)
        if not evicted:
            evicted.append(fetched.path.unlink())
        return fetched

    monkeypatch.setattr(cache, "fetch", fetch_and_lose_once)
    view, _ = cache.map(spec)
    assert bytes(view) == shards[0].raw
    assert proxy.gets[f"/{BUCKET}/{shards[0].key}"] == 2


def test_c5_eviction_by_truncation_would_kill_the_reader(tmp_path):
    """The sibling of the two above: why eviction is unlink. SIGBUS ends the process that reads past the new end."""
    shard = tmp_path / "shard.00000.mds"
    shard.write_bytes(bytes(SHARD_BYTES))
    code = (
        "import mmap, os, sys; path = sys.argv[1]; file = open(path, 'rb')\n"
        "view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ); os.truncate(path, 0); print(view[50000])"
    )
    run = subprocess.run([sys.executable, "-c", code, str(shard)], capture_output=True, check=False)
    assert run.returncode < 0


def test_a_whole_cache_removed_during_the_run_is_made_again(proxy, shards, tmp_path):
    cache, spec = NodeCache(retry=QUICK), shards[0].spec(tmp_path / "cache")
    cache.fetch(spec)
    shutil.rmtree(tmp_path / "cache")
    assert cache.fetch(spec).path.read_bytes() == shards[0].raw


def test_a_local_shard_that_is_missing_is_named(tmp_path, shards):
    with pytest.raises(StorageError, match="is not there and has no remote"):
        NodeCache(retry=QUICK).fetch(replace(shards[0].spec(tmp_path), remote=None))


def test_c2_what_a_killed_downloader_left_makes_room_and_what_a_live_one_writes_does_not(proxy, shards, tmp_path):
    limit_bytes, spec = 2 * SHARD_BYTES, shards[0].spec(tmp_path)
    impatient = NodeCache(limit_bytes, replace(QUICK, total_deadline_s=0.5))
    unfinished_file = tmp_path / "wiki" / ".ado-tmp" / "shard.00002.mds.7-8"
    unfinished_file.parent.mkdir(parents=True)
    unfinished_file.write_bytes(bytes(2 * SHARD_BYTES))
    with (
        object_lock(tmp_path / "wiki" / "shard.00002.mds", Deadline(1.0)),
        pytest.raises(CacheFull),  # its maker lives: nothing may go, and waiting has an end
    ):
        impatient.fetch(spec)
    assert NodeCache(limit_bytes, QUICK).fetch(spec).path.read_bytes() == shards[0].raw
    assert not unfinished_file.exists()


def test_an_empty_shard_is_typed(proxy, upload, shards, tmp_path):
    empty = replace(shards[0], key="wiki/shard.00009.mds", raw=b"", stored=b"")
    upload(empty.key, b"")
    with pytest.raises(ShardCorrupt, match="empty"):
        NodeCache(retry=QUICK).map(empty.spec(tmp_path))
