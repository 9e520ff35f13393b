"""Where reading goes on: after a pass of a DataLoader, a damaged state, a failure, another process."""

import contextlib
import copy
import functools
import gc
import itertools
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st

import ado_stream as ado
from ado_stream.storage.node_cache import NodeCache
from ado_stream.stream import batch_pipeline, shard_table
from ado_stream.stream.lookahead import Lookahead
from tests.faults.conftest import unfinished
from tests.stream.helpers import ledger, passing, run, write_domain
from tests.waiting import wait_until


def make(corpus, **changes):
    return ado.AdaptiveStreamingDataset(corpus, **{"global_batch_size": 24, "seed": 5, "mixture_lag": None, **changes})


def loader_of(dataset, **options):
    return torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1, **options)


@pytest.mark.parametrize("persistent", [False, True])
def test_a_second_pass_of_a_data_loader_with_a_worker_is_refused(corpus, persistent):
    loader = loader_of(make(corpus), persistent_workers=persistent)
    with passing(loader) as first:
        next(first)
        with pytest.raises(ado.ConfigError, match="num_workers=0"), passing(loader) as second:
            next(second)


def test_reading_here_after_a_worker_has_read_is_refused(corpus):
    dataset = make(corpus)
    with passing(loader_of(dataset)) as iterator:
        next(iterator)
    with pytest.raises(ado.ConfigError, match="another pass would repeat steps"):
        next(iter(dataset))


def test_passes_in_this_process_go_on_where_the_last_one_stood(corpus):
    dataset = make(corpus)
    loader = torch.utils.data.DataLoader(dataset, batch_size=None)
    steps = [batch["step"] for _ in range(3) for batch in itertools.islice(loader, 4)]
    assert steps == list(range(12))
    with passing(loader_of(dataset)) as iterator:
        assert next(iterator)["step"] == 12  # a worker starts where this process stood


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata 0.11 calls it
def test_a_stateful_data_loader_resumes_exactly(corpus):
    from torchdata.stateful_dataloader import StatefulDataLoader

    expected = ledger(run(make(corpus), 12, mixture=None))
    loader = StatefulDataLoader(make(corpus), batch_size=None, num_workers=1)
    with passing(loader) as iterator:
        batches = list(itertools.islice(iterator, 5))
        state = loader.state_dict()
        with pytest.raises(ado.ConfigError, match="StatefulDataLoader"), passing(loader) as second:
            next(second)  # without it, another pass would begin anew
    resumed = StatefulDataLoader(make(corpus), batch_size=None, num_workers=1)
    resumed.load_state_dict(state)
    with passing(resumed) as iterator:
        batches += itertools.islice(iterator, 7)
    assert ledger(batches) == expected


def test_a_fork_of_a_running_stream_is_refused_and_disturbs_nothing(corpus):
    """It has no thread that would make a batch, and its exit stops none of those of this process."""
    expected = ledger(run(make(corpus), 6, mixture=None))
    dataset = make(corpus)
    batches = [next(iter(dataset))]
    child = os.fork()
    if child == 0:
        refused = 0
        for _ in range(2):  # the first refusal leaves nothing that the second would wait for
            try:
                next(iter(dataset))
            except ado.ConfigError as error:
                refused += "Make the data set in the new process" in str(error)
        dataset.close()
        batch_pipeline._stop_at_exit()
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert ledger(batches + list(itertools.islice(dataset, 5))) == expected


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_what_cannot_be_pickled_says_what_to_use(corpus, method):
    dataset = make(corpus)
    for attempt in (pickle.dumps, copy.deepcopy):
        with pytest.raises(ado.ConfigError, match="multiprocessing_context='fork'"):
            attempt(dataset)
    with pytest.raises(ado.ConfigError, match="num_workers=0"):
        next(iter(loader_of(dataset, multiprocessing_context=method)))


def damaged(state, path, value):
    state = json.loads(json.dumps(state))
    *parents, last = path
    node = functools.reduce(lambda node, key: node[key], parents, state)
    if value is None:
        del node[last]
    else:
        node[last] = value
    return state


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (("step",), -1, "'step' is -1"),
        (("step",), 2.5, "'step' is 2.5"),
        (("step",), True, "'step' is True"),
        (("step",), 10**30, "'step' is 1"),
        (("step",), None, "'step' is None"),
        (("domains",), [1], "'domains' is not an object"),
        (("domains", "d0"), 3, "'d0' is not an object"),
        (("domains", "d0", "cursors"), [-1], "domain 'd0' does not have 1 positions"),
        (("domains", "d0", "cursors"), [1, 2], "domain 'd0' does not have 1 positions"),
        (("domains", "d0", "cursors"), "12", "domain 'd0'"),
        (("domains", "d0", "cursors"), [float("nan")], "domain 'd0'"),
        (("domains", "d0", "fingerprint"), None, "domain 'd0': its shards"),
        (("mixtures",), None, "'mixtures' is missing"),
        (("mixtures", "3"), [0.5], "for step '3'"),
        (("mixtures", "x"), [0.2] * 5, "for step 'x'"),
        (("mixtures", "3"), [2.0, -1.0, 0, 0, 0], "for step '3'"),
        (("mixtures", "3"), ["a"] * 5, "for step '3'"),
        (("mixture_steps",), [7], "the mixture of step 7 is missing"),
        (("mixture_steps",), 7, "'mixture_steps' is no list"),
        (("identity",), "seed", "'identity' is not an object"),
        (("identity", "global_batch_size"), None, "'global_batch_size' is None"),
    ],
)
def test_a_damaged_state_is_a_resume_error(corpus, path, value, text):
    dataset = make(corpus)
    before = dataset.state_dict()
    with pytest.raises(ado.ResumeError, match=text):
        dataset.load_state_dict(damaged(before, path, value))
    assert dataset.state_dict() == before


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # in one process
def test_a_state_of_which_dcp_left_out_mixtures_is_refused(corpus, tmp_path):
    """It fills in the keys that the state of a new data set has, and leaves out the others without a word."""
    first, second = (make(corpus) for _ in range(2))
    first.publish(9, np.eye(len(first.names))[0])
    dcp.save({"stream": first.state_dict()}, checkpoint_id=tmp_path)
    loaded = {"stream": second.state_dict()}
    dcp.load(loaded, checkpoint_id=tmp_path)
    with pytest.raises(ado.ResumeError, match=r"the mixture of step 9 is missing.*\n.* save json.dumps\(state\) there"):
        second.load_state_dict(loaded["stream"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(data=st.data())
@settings(max_examples=150)
def test_any_value_anywhere_in_a_state_is_typed_or_harmless(data):
    dataset, state = _shared_dataset()
    state = json.loads(json.dumps(state))
    node, key = state, None
    while isinstance(node, (dict, list)) and node:
        parent, key = node, data.draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
        node = parent[key]
        if data.draw(st.booleans()):
            break
    parent[key] = data.draw(JSON)
    with contextlib.suppress(ado.ResumeError):
        dataset.load_state_dict(state)


@functools.cache
def _shared_dataset():
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="ado-test-"))
    write_domain(folder, 0, 50)
    dataset = ado.AdaptiveStreamingDataset([ado.Domain("d0", local=str(folder))], 8, mixture_lag=2)
    return dataset, dataset.state_dict()


def test_nothing_published_without_a_policy_is_known_at_once(corpus):
    dataset = make(corpus, mixture_lag=2)
    iterator = iter(dataset)
    assert [next(iterator)["step"] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ado.PolicyError, match=r"mixture of step 3 is missing: .* dataset.publish\(3, mixture\)"):
        next(iterator)  # and not after timeout_s, which is 900 s
    dataset.publish(3, np.full(5, 0.2))
    assert next(iter(dataset))["step"] == 3


def test_a_domains_folder_that_is_back_is_read_again(corpus, tmp_path):
    write_domain(tmp_path / "a", 0, 60, shard_bytes=400)
    dataset = ado.AdaptiveStreamingDataset([ado.Domain("a", local=str(tmp_path / "a"))], 4, mixture_lag=None)
    expected = ledger(run(make([ado.Domain("a", local=str(tmp_path / "a"))], global_batch_size=4, seed=17), 12, None))
    batches = run(dataset, 2, mixture=None)
    (tmp_path / "a").rename(tmp_path / "gone")
    with pytest.raises(ado.NotFound):
        batches += itertools.islice(dataset, 10)
    (tmp_path / "gone").rename(tmp_path / "a")
    batches = batches[:2] + run(dataset, 12 - dataset.step, mixture=None) if dataset.step == 2 else None
    assert batches is not None
    assert ledger(batches) == expected


@pytest.mark.filterwarnings("ignore:.*the index holds no hashes:UserWarning")
@pytest.mark.parametrize("field", ["local", "remote"])
def test_a_data_set_reads_on_in_another_working_directory(corpus, tmp_path, monkeypatch, field):
    """As under Hydra, or in a notebook; another data set of the same relative path lies there."""
    for number, folder in enumerate((tmp_path / "first", tmp_path / "second")):
        write_domain(folder / "data", number, 60, shard_bytes=600, hashes=())
    monkeypatch.chdir(tmp_path / "first")
    places = {"local": "data"} if field == "local" else {"remote": "./data", "local": "cache"}
    dataset = make([ado.Domain("d", **places)], global_batch_size=4)
    monkeypatch.chdir(tmp_path / "second")
    assert {int(row[0]) for batch in run(dataset, 20, mixture=None) for row in batch["tokens"]} == {0}
    assert sorted(path.name for path in (tmp_path / "second").iterdir()) == ["data"]


def test_one_source_under_two_names_is_refused(corpus, tmp_path):
    pairs = [
        ("s3://b/x", "S3://b/x/"),
        (str(tmp_path), f"file://{tmp_path}"),
        (str(tmp_path), f"{tmp_path}/../{tmp_path.name}"),
    ]
    for first, second in pairs:
        domains = [ado.Domain("a", first, str(tmp_path / "1")), ado.Domain("b", second, str(tmp_path / "2"))]
        with pytest.raises(ado.ConfigError, match="domains 'a' and 'b' have the same data"):
            ado.AdaptiveStreamingDataset(domains, 4)


@pytest.mark.parametrize("limit", ["10kb", 0, -1, 2.5])
def test_a_cache_limit_that_is_no_number_of_bytes_is_refused(corpus, limit):
    with pytest.raises(ado.ConfigError, match="cache_limit is"):
        make(corpus, cache_limit=limit)


def test_priors_whose_sum_overflows_are_refused(corpus):
    huge = [ado.Domain(domain.name, local=domain.local, prior=1e308) for domain in corpus]
    with pytest.raises(ado.ConfigError, match="add up to inf"):
        make(huge)


def test_the_least_cache_limit_is_enough_for_any_length_of_run(tmp_path):
    write_domain(tmp_path / "a", 0, 120, shard_bytes=600)
    sizes = [path.stat().st_size for path in (tmp_path / "a").glob("*.mds")]
    domain = ado.Domain("a", str(tmp_path / "a"), str(tmp_path / "cache"))
    with pytest.raises(ado.ConfigError, match=f"at least {2 * max(sizes)}"):
        ado.AdaptiveStreamingDataset([domain], 8, mixture_lag=None, cache_limit=2 * max(sizes) - 1)
    dataset = ado.AdaptiveStreamingDataset([domain], 8, mixture_lag=None, cache_limit=2 * max(sizes))
    assert [batch["step"] for batch in run(dataset, 60, mixture=None)] == list(range(60))
    assert dataset.statistics()["cache"]["evictions"] > len(sizes)


EXIT = """
import sys
import ado_stream as ado
dataset = ado.AdaptiveStreamingDataset([ado.Domain("a", *sys.argv[1:])], 4, mixture_lag=None)
next(iter(dataset))
"""


@pytest.mark.slow
def test_a_program_that_ends_while_shards_are_fetched_ends_without_a_word(tmp_path):
    write_domain(tmp_path / "a", 0, 3000, shard_bytes=300)
    command = [sys.executable, "-c", EXIT, str(tmp_path / "a"), str(tmp_path / "cache")]
    for _ in range(2):
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (ended.returncode, ended.stderr) == (0, "")


EXIT_WITH_A_DEAD_STORE = """
import contextlib, shutil, sys, threading
import ado_stream as ado
from ado_stream.storage import download
place, cache, prefetch = sys.argv[1:]
asked = threading.Semaphore(0)

class Store:  # sends the index, and of shards one byte
    def download(self, remote, local, timeout):
        if remote.endswith("index.json"):
            shutil.copy(f"{place}/index.json", local)
            return
        with open(local, "wb") as file:
            file.write(b"0")
        asked.release()
        threading.Event().wait()

download._streaming_downloader = lambda _: Store()
dataset = ado.AdaptiveStreamingDataset([ado.Domain("a", "gs://bucket/a", cache)], 4, mixture_lag=None)
dataset.start(int(prefetch), io_threads=2)

def read():
    with contextlib.suppress(ado.StorageError):
        dataset.next_batch()

threading.Thread(target=read, daemon=True).start()
for _ in range(2):
    asked.acquire()
"""


@pytest.mark.parametrize("prefetch", [pytest.param("0", marks=pytest.mark.slow), "2"])
def test_a_program_that_ends_while_a_store_does_not_answer_ends(tmp_path, prefetch):
    """Without close(), as after an exception; the store's deadlines are five minutes."""
    write_domain(tmp_path / "a", 0, 800, shard_bytes=300)
    command = [sys.executable, "-c", EXIT_WITH_A_DEAD_STORE, *map(str, (tmp_path / "a", tmp_path / "cache")), prefetch]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert unfinished(tmp_path / "cache") == []


def test_a_finalizer_in_a_thread_of_the_stream_may_close_it(tmp_path, monkeypatch):
    """The collector of garbage, and with it a user's __del__, runs in any thread."""
    write_domain(tmp_path / "a", 0, 800, shard_bytes=300)
    before, closed_in = set(threading.enumerate()), []
    may_start = Lookahead._may_start

    class User:
        def __init__(self, dataset):
            self.dataset, self.itself = dataset, self

        def __del__(self):
            self.dataset.close()
            closed_in.append(threading.current_thread().name)

    def collecting(self, due, size):
        if threading.current_thread().name.startswith("ado-"):
            gc.collect()
        return may_start(self, due, size)

    domain = ado.Domain("a", str(tmp_path / "a"), str(tmp_path / "cache"))
    dataset = ado.AdaptiveStreamingDataset([domain], 4, mixture_lag=None)
    gc.disable()
    try:
        User(dataset)
        monkeypatch.setattr(Lookahead, "_may_start", collecting)
        dataset.start(prefetch=2, io_threads=2)
        wait_until(lambda: closed_in)
    finally:
        gc.enable()
    assert closed_in[0].startswith("ado-")
    wait_until(lambda: set(threading.enumerate()) <= before)


def test_another_thread_may_close_at_the_same_time(corpus):
    """It does so between any two looks at what is running."""

    class ClosedBetween(ado.AdaptiveStreamingDataset):
        held = None

        @property
        def _pipeline(self):
            found, self.held = self.held, None
            return found

        @_pipeline.setter
        def _pipeline(self, value):
            self.held = value

    dataset = ClosedBetween(corpus, 24, mixture_lag=None)
    dataset.start(prefetch=2, io_threads=2)
    dataset.close()
    assert not dataset.running


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_stream_that_is_dropped_while_it_fetches_ends_its_threads(tmp_path, monkeypatch, prefetch):
    """The last reference goes in the middle of `_pump`, under its lock, in a thread of the pool or the reader's own."""
    write_domain(tmp_path / "a", 0, 800, shard_bytes=300)
    before = set(threading.enumerate())
    holder = {}
    may_start = Lookahead._may_start

    def dropping(self, due, size):
        if holder.pop("dataset", None) is not None:
            gc.collect()
        return may_start(self, due, size)

    monkeypatch.setattr(Lookahead, "_may_start", dropping)
    seen = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    domain = ado.Domain("a", str(tmp_path / "a"), str(tmp_path / "cache"))
    dataset = ado.AdaptiveStreamingDataset([domain], 4, mixture_lag=None)
    dataset.start(prefetch, io_threads=2)
    dataset.next_batch()
    holder["dataset"] = dataset
    del dataset

    def ended() -> bool:
        gc.collect()
        holder.clear()
        return set(threading.enumerate()) <= before

    wait_until(ended)
    assert seen == []


@pytest.mark.slow
def test_closing_at_any_moment_races_with_no_fetch(tmp_path, monkeypatch):
    write_domain(tmp_path / "a", 0, 800, shard_bytes=300)
    fetch, errors = NodeCache.fetch, []

    def slow(self, spec, stop=None):
        time.sleep(0.0005)
        return fetch(self, spec, stop)

    monkeypatch.setattr(NodeCache, "fetch", slow)
    domain = ado.Domain("a", str(tmp_path / "a"), str(tmp_path / "cache"))
    for prefetch in (0, 2) * 12:
        dataset = ado.AdaptiveStreamingDataset([domain], 4, mixture_lag=None)
        dataset.start(prefetch, io_threads=3)
        closer = threading.Timer(0.001 * prefetch, dataset.close)
        closer.start()
        try:
            while dataset.running:
                dataset.next_batch()
        except Exception as error:
            errors.append(error)
        closer.join()
        dataset.close()
    words = ("closed", "closing", "start() first")  # of a wait, of a fetch, between two batches
    assert [error for error in errors if not any(word in str(error) for word in words)] == []


def test_closing_waits_for_a_caller_that_reads_open_shards(tmp_path, monkeypatch):
    """Without threads of its own, the stream reads in the caller's; its shards would be unmapped under it."""
    write_domain(tmp_path / "a", 0, 800, shard_bytes=300)
    domain = ado.Domain("a", local=str(tmp_path / "a"))
    (expected,) = run(ado.AdaptiveStreamingDataset([domain], 4, mixture_lag=None), 1, mixture=None)
    dataset = ado.AdaptiveStreamingDataset([domain], 4, mixture_lag=None)
    reading, goes_on, gather = threading.Event(), threading.Event(), shard_table.gather

    def paused(*arguments):
        reading.set()
        assert goes_on.wait(30.0)
        return gather(*arguments)

    monkeypatch.setattr(shard_table, "gather", paused)
    dataset.start(prefetch=0, io_threads=1)
    shards = dataset._pipeline._maker.shards
    with ThreadPoolExecutor(2) as threads:
        batch = threads.submit(dataset.next_batch)
        assert reading.wait(30.0)
        closing = threads.submit(dataset.close)
        wait_until(lambda: dataset._pipeline is None or dataset._pipeline._maker.stop.is_set())
        time.sleep(0.05)
        assert shards._views
        goes_on.set()
        np.testing.assert_array_equal(batch.result(30.0)["tokens"], expected["tokens"])
        closing.result(30.0)
    assert not shards._views
    with pytest.raises(ado.StorageError, match=r"start\(\) first"):
        dataset.next_batch()
