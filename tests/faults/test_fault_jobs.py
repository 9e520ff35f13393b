"""docs/faults.md C4 and C5 with real processes: killed downloaders, several jobs on one cache.

Every protection has a sibling run with it switched off that shows the fault biting.
"""

import functools
import multiprocessing
import random
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from ado_stream.errors import StorageError
from ado_stream.storage import node_cache as cache_module
from ado_stream.storage.node_cache import NodeCache
from ado_stream.storage.object_locks import lock_if_free, lock_path
from ado_stream.stream.domain import Domain
from ado_stream.stream.open_indexes import open_indexes
from benchmarks.bench_stream_open import index_text
from tests.faults.conftest import BUCKET, QUICK, Shard, s3_environment, unfinished
from tests.faults.fetch_worker import map_shards
from tests.faults.proxy import Rule
from tests.train.child_processes import finish
from tests.waiting import wait_until

pytestmark = pytest.mark.fault
SHARD_BYTES = 100_000


@dataclass(frozen=True)
class Job:
    """A process that runs fetch_worker.map_shards."""

    process: Any
    connection: Connection

    def kill(self) -> None:
        """kill -9, and waits until the process is gone."""
        self.process.kill()
        self.process.join()

    def ledger(self) -> list[tuple[str, int]]:
        """(name, crc32) of every shard the job mapped, once it has ended well."""
        mapped = []
        with suppress(EOFError):
            while True:
                mapped.append(self.connection.recv())
        finish(self.process)
        return mapped


@pytest.fixture
def start_jobs(proxy, children) -> Iterator[Callable[..., list[Job]]]:
    """Starts a job per list of shards, on one cache folder, all at the same moment."""
    jobs: list[Job] = []

    def start(folder: Path, *shard_lists: list[Shard], **options: object) -> list[Job]:
        started = []
        for shards in shard_lists:
            ours, theirs = multiprocessing.Pipe()
            specs = [shard.spec(folder) for shard in shards]
            job = functools.partial(map_shards, specs=specs, **options)
            started.append(Job(children.start(job, theirs, **s3_environment()), ours))
            theirs.close()
        jobs.extend(started)
        for job in started:
            assert job.connection.recv() == "ready"
        for job in started:
            job.connection.send("go")
        return started

    yield start
    for job in jobs:
        job.kill()


def reference(shards: list[Shard], rounds: int = 1) -> list[tuple[str, int]]:
    """What a job's ledger must be."""
    return [(Path(shard.key).name, zlib.crc32(shard.raw)) for shard in shards] * rounds


def test_c4_a_downloader_killed_at_random_points_leaves_a_good_cache(proxy, shards, tmp_path, start_jobs):
    generator = random.Random(4)
    for number in range(6):
        proxy.rules = [Rule("delay", seconds=0.03)]
        folder = tmp_path / str(number)
        (job,) = start_jobs(folder, shards)
        time.sleep(generator.uniform(0.0, 0.3))
        job.kill()
        proxy.rules = []
        cache = NodeCache(retry=QUICK)
        for shard in shards:
            assert cache.fetch(shard.spec(folder)).path.read_bytes() == shard.raw
        assert unfinished(folder) == []


@pytest.mark.deadline
def test_c4_a_peer_that_waits_goes_on_when_the_downloader_is_killed(proxy, shards, tmp_path, start_jobs):
    proxy.rules = [Rule("stall", times=1)]
    (job,) = start_jobs(tmp_path, shards[:1])
    spec = shards[0].spec(tmp_path)
    wait_until(lambda: proxy.gets)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(NodeCache(retry=QUICK).fetch, spec)
        time.sleep(0.3)
        assert not waiting.done()
        assert len(unfinished(tmp_path)) == 1
        job.kill()
        wait_until(lambda: proxy.gets.total() == 2, timeout_s=2.0)
        assert waiting.result().path.read_bytes() == shards[0].raw


def test_c4_a_peer_of_a_holder_that_hangs_gives_up_in_time_and_names_the_lock(shards, tmp_path):
    """The sibling: a lock whose holder lives (a plain lock file would stay like this for ever after a kill)."""
    spec = shards[0].spec(tmp_path)
    spec.raw.parent.mkdir()
    impatient = replace(QUICK, total_deadline_s=0.2, read_timeout_s=0.1, max_downloads=1)
    with lock_if_free(lock_path(spec.raw)) as held:
        assert held
        with pytest.raises(StorageError, match=r"another process held .*shard\.00000\.mds\.lock"):
            NodeCache(retry=impatient).fetch(spec)


def test_c4_a_torn_file_under_its_final_name_is_what_the_temporary_name_prevents(
    proxy, shards, tmp_path, start_jobs, monkeypatch
):
    """The sibling of the kills: what a killed writer leaves, when it is served unchecked, is wrong data."""
    proxy.rules = [Rule("stall", times=1)]
    (job,) = start_jobs(tmp_path, shards[:1])
    wait_until(lambda: unfinished(tmp_path) and proxy.gets)
    job.kill()
    spec = shards[0].spec(tmp_path)
    assert not spec.raw.exists()
    (torn,) = unfinished(tmp_path)
    torn.rename(spec.raw)
    monkeypatch.setattr(cache_module, "check_file", lambda *_: None)
    assert NodeCache(retry=QUICK).fetch(spec).path.read_bytes() != shards[0].raw


def test_c4_two_jobs_download_each_shard_once(proxy, shards, tmp_path, start_jobs):
    proxy.rules = [Rule("delay", seconds=0.05)]
    jobs = start_jobs(tmp_path, shards, shards)
    assert [job.ledger() for job in jobs] == [reference(shards)] * 2
    assert dict(proxy.gets) == {f"/{BUCKET}/{shard.key}": 1 for shard in shards}


def test_c4_without_the_lock_two_jobs_download_shards_twice(proxy, shards, tmp_path, start_jobs):
    proxy.rules = [Rule("delay", seconds=0.3)]
    for job in start_jobs(tmp_path, shards, shards, lock=False):
        job.process.join(60)
    assert max(proxy.gets.values()) > 1


def test_c4_threads_of_one_job_download_each_shard_once(proxy, shards, tmp_path):
    proxy.rules = [Rule("delay", seconds=0.05)]
    cache = NodeCache(retry=QUICK)
    specs = [shard.spec(tmp_path) for shard in shards] * 6
    random.Random(0).shuffle(specs)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(cache.fetch, specs))
    assert set(proxy.gets.values()) == {1}
    assert cache.statistics()["misses"] == len(shards)


def test_c5_two_jobs_that_evict_each_other_read_the_right_bytes(proxy, shards, tmp_path, start_jobs):
    backwards = list(reversed(shards))
    jobs = start_jobs(tmp_path, shards, backwards, limit_bytes=3 * SHARD_BYTES, rounds=5)
    assert jobs[0].ledger() == reference(shards, rounds=5)
    assert jobs[1].ledger() == reference(backwards, rounds=5)


@pytest.mark.deadline
def test_closing_ends_a_download_and_a_wait_at_once(proxy, shards, tmp_path):
    proxy.rules = [Rule("trickle")]
    stop = threading.Event()
    spec = shards[0].spec(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(NodeCache(retry=QUICK).fetch, spec, stop) for _ in range(2)]
        wait_until(lambda: proxy.gets)
        stop.set()
        started = time.monotonic()
        for future in futures:
            with pytest.raises(StorageError, match="closing"):
                future.result()
    assert time.monotonic() - started < 1.0


def test_an_index_is_sent_once_a_node_and_again_when_it_has_changed(proxy, upload, tmp_path):
    """Eight readers at once, as ranks; then a reader of a later run, whom the store answers "not modified"."""
    path = f"/{BUCKET}/indexed/index.json"
    domain = Domain("d", f"s3://{BUCKET}/indexed", str(tmp_path / "cache"))
    upload("indexed/index.json", index_text(50))
    proxy.rules = [Rule("delay", times=1, seconds=2.0)]  # so that all of them ask before the first has it
    with ThreadPoolExecutor(8) as ranks:
        opened = list(ranks.map(lambda _: open_indexes([domain], "tokens", None, QUICK)[0], range(8)))
    assert len({str(index.spec(49)) for index in opened}) == 1
    assert (proxy.gets[path], proxy.served[path]) == (1, 1)
    assert str(open_indexes([domain], "tokens", None, QUICK)[0].spec(49)) == str(opened[0].spec(49))
    assert (proxy.gets[path], proxy.served[path]) == (2, 1)
    upload("indexed/index.json", index_text(51))
    assert open_indexes([domain], "tokens", None, QUICK)[0].samples_S.size == 51
    assert (proxy.gets[path], proxy.served[path]) == (3, 2)
    assert open_indexes([domain], "tokens", None, QUICK)[0].samples_S.size == 51
    assert proxy.served[path] == 2
