"""The stream's promises, each against the run of one undisturbed process."""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import ado_stream as ado
from ado_stream.stream import lookahead
from ado_stream.stream.document_positions import document_positions
from ado_stream.stream.sample_order import DomainOrder
from ado_stream.stream.shared_mixtures import SharedMixtures
from tests.stream.helpers import SAMPLES, changing_mixture, ledger, passing, run, share_of, write_domain
from tests.waiting import wait_until

BATCH = 24
STEPS = 60


def make(corpus, **changes):
    return ado.AdaptiveStreamingDataset(
        corpus, **{"global_batch_size": BATCH, "seed": 5, "canonical_nodes": 2, **changes}
    )


@pytest.fixture(scope="module")
def reference(corpus):
    return ledger(run(make(corpus), STEPS))


def rows(batches, step):
    return torch.cat([batch["tokens"] for batch in batches if batch["step"] == step])


def test_batches_hold_what_their_ids_say(corpus):
    dataset = make(corpus)
    offset = np.cumsum(dataset.num_samples) - dataset.num_samples
    for batch in run(dataset, STEPS):
        tokens, domain = batch["tokens"].numpy(), batch["domain"].numpy()
        assert tokens.dtype == np.int64
        assert tokens.shape == (BATCH, 16)
        assert np.array_equal(tokens[:, 0], domain)
        assert np.array_equal(offset[domain] + tokens[:, 1], dataset.sample_ids(batch["step"]))
        assert np.array_equal(dataset.sample_counts(batch["step"]), np.bincount(domain, minlength=5))
        assert (np.abs(dataset.sample_counts(batch["step"]) - BATCH * dataset.mixture(batch["step"])) < 1 + 1e-9).all()
    assert dataset.seq_len == 15
    assert dataset.num_samples.tolist() == list(SAMPLES)


def test_batches_carry_the_places_of_tokens_in_their_documents(corpus):
    batches = run(make(corpus, positions=True, end_token=3), 12)
    assert ledger(batches) == ledger(run(make(corpus), 12))
    for batch in batches:
        assert torch.equal(batch["positions"], document_positions(batch["tokens"][:, :-1], 3))
    with pytest.raises(ado.ConfigError, match="end_token"):
        make(corpus, positions=True)


@pytest.mark.parametrize(("ranks", "replication"), [(2, 1), (3, 1), (4, 2), (8, 1), (24, 1)])
def test_any_number_of_ranks_reads_the_same_global_batches(corpus, reference, ranks, replication):
    parts = [run(make(corpus, rank=r, world_size=ranks, replication=replication), 12) for r in range(ranks)]
    for first in range(0, ranks, replication):  # ranks of one group read the same
        for other in parts[first + 1 : first + replication]:
            assert ledger(other) == ledger(parts[first])
    readers = parts[::replication]
    together = [entry for step in range(12) for part in readers for entry in ledger(part[step : step + 1])]
    assert together == reference[: 12 * BATCH]


@pytest.mark.parametrize(("prefetch", "io_threads"), [(0, 0), (0, 2), (1, 0), (4, 1), (8, 8)])
def test_threads_and_prefetch_change_nothing(corpus, reference, prefetch, io_threads):
    dataset = make(corpus)
    dataset.start(prefetch, io_threads)
    assert ledger(run(dataset, 20)) == reference[: 20 * BATCH]


@pytest.mark.parametrize("predownload", [1, 10**6, 1 << 53])
def test_any_number_of_samples_may_be_fetched_ahead(corpus, reference, predownload, monkeypatch):
    """As Streaming's users ask for all of the data; in parts, so that an epoch's ids are never one array."""
    counts, ids = [], DomainOrder.ids
    monkeypatch.setattr(DomainOrder, "ids", lambda order, *of: counts.append(of[2]) or ids(order, *of))
    monkeypatch.setattr(lookahead, "_IDS_AT_ONCE", 97)
    monkeypatch.setattr(lookahead, "_LEAST_CAP", 1 << 11)
    assert ledger(run(make(corpus, predownload=predownload), 12)) == reference[: 12 * 24]
    assert (max(counts) < 24) if predownload == 1 else (set(counts[:3]) == {97})
    assert sum(counts) < 5 * 12 * (1 << 12)


def test_stopping_at_every_step_and_resuming_in_any_world_is_exact(corpus, reference):
    worlds = itertools.cycle([1, 2, 3, 4])
    dataset = make(corpus)
    for step in range(1, 41):
        run(dataset, 1)
        state = json.loads(json.dumps(dataset.state_dict()))
        ranks = next(worlds)
        parts = []
        for rank in range(ranks):
            resumed = make(corpus, rank=rank, world_size=ranks)
            resumed.load_state_dict(state)
            parts.append(run(resumed, 1))
        assert [entry for part in parts for entry in ledger(part)] == reference[step * BATCH : (step + 1) * BATCH]


def test_the_state_stands_for_the_step_handed_out_whatever_was_prefetched(corpus, reference):
    dataset = make(corpus)
    dataset.start(prefetch=8, io_threads=4)
    taken = run_without_closing(dataset, 10)
    time.sleep(0.2)  # let it run ahead
    state = dataset.state_dict()
    dataset.close()
    assert state["step"] == 10
    assert taken == reference[: 10 * BATCH]
    again = make(corpus)
    again.load_state_dict(state)
    assert ledger(run(again, 20)) == reference[10 * BATCH : 30 * BATCH]
    again.load_state_dict(state)  # a second time, on a used data set
    assert ledger(run(again, 20)) == reference[10 * BATCH : 30 * BATCH]


def run_without_closing(dataset, steps):
    entries = []
    for batch in itertools.islice(dataset, steps):
        dataset.publish(batch["step"] + 1 + dataset.mixture_lag, changing_mixture(batch["step"], 5))
        entries += ledger([batch])
    return entries


def test_no_sample_comes_twice_before_its_lanes_share_is_through():
    """A million draws through cursors and order, the mixture changed at every step, a resume every 1,000 steps."""
    from ado_stream.stream.batch_draw import advance, draw_domains
    from ado_stream.stream.sample_order import DomainOrder

    sizes, lanes, batch = (40_000, 9_000, 1_000, 64, 3), 4, 256
    orders = [DomainOrder(str(k), np.full(-(-n // 50), 50), 1, lanes) for k, n in enumerate(sizes)]
    cursors = np.zeros((5, lanes), np.int64)
    drawn = [[[] for _ in range(lanes)] for _ in sizes]
    for step in range(3910):
        if step % 1000 == 0:
            cursors = np.array(json.loads(json.dumps(cursors.tolist())))
            orders = [DomainOrder(str(k), np.full(-(-n // 50), 50), 1, lanes) for k, n in enumerate(sizes)]
        domain = draw_domains(changing_mixture(step, 5), batch, 1, step, "systematic")
        position = advance(domain, cursors)
        lane = np.arange(batch) * lanes // batch
        for k in range(5):
            for c in range(lanes):
                mine = position[(domain == k) & (lane == c)]
                if mine.size:
                    drawn[k][c].append(orders[k].ids(c, int(mine[0]), mine.size))
    total = repeats = 0
    for order, by_lane in zip(orders, drawn, strict=True):
        for c, parts in enumerate(by_lane):
            ids = np.concatenate(parts)
            total += ids.size
            for begin in range(0, ids.size, share_of(order, c)):
                epoch = ids[begin : begin + share_of(order, c)]
                repeats += epoch.size - np.unique(epoch).size
    assert total > 1_000_000
    assert repeats == 0


def test_hash_seed_locale_zone_and_processors_change_nothing(corpus, reference, tmp_path):
    code = (
        "import sys, json, zlib, ado_stream as ado\n"
        f"sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})\n"
        "from tests.stream.helpers import run, ledger\n"
        "domains = [ado.Domain(n, local=p) for n, p in json.loads(sys.argv[1])]\n"
        "data = ado.AdaptiveStreamingDataset(domains, global_batch_size=24, seed=5, canonical_nodes=2)\n"
        "print(zlib.crc32(repr(ledger(run(data, 15))).encode()))\n"
    )
    import zlib

    expected = str(zlib.crc32(repr(reference[: 15 * BATCH]).encode()))
    environment = {**os.environ, "PYTHONHASHSEED": "4711", "TZ": "Asia/Tokyo", "LC_ALL": "C", "NUMBA_NUM_THREADS": "1"}
    argument = json.dumps([[domain.name, domain.local] for domain in corpus])
    command = ["taskset", "-c", "0", sys.executable, "-c", code, argument]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == expected, done.stderr


def test_domains_may_be_added_and_retired_at_a_resume(corpus, tmp_path, caplog):
    write_domain(tmp_path / "new", 9, 50)
    dataset = make(corpus)
    first = run(dataset, 20)
    state = dataset.state_dict()
    changed = make([*corpus[1:], ado.Domain("new", local=str(tmp_path / "new"))])
    changed.load_state_dict(state)
    assert "added ['new']; retired ['d0']" in caplog.text
    later = run(changed, 25, mixture=lambda step, k: np.full(k, 1 / k))
    drawn = Counter((d, int(row[1])) for b in first for d, row in zip(b["domain"].tolist(), b["tokens"], strict=True))
    unseen = {sample for sample in range(300) if (2, sample) not in drawn}
    fresh = [int(row[1]) for b in later for d, row in zip(b["domain"].tolist(), b["tokens"], strict=True) if d == 1]
    # d2 is number 1 now; it goes on where it stopped: what was not drawn comes before anything comes again
    assert len(fresh) < len(unseen)
    assert set(fresh) <= unseen
    assert any(9 in b["tokens"][:, 0] for b in later)


def test_a_state_that_does_not_fit_is_refused_by_name(corpus, tmp_path):
    dataset = make(corpus)
    state = dataset.state_dict()
    with pytest.raises(ado.ResumeError, match=r"seed 5 -> 6"):
        make(corpus, seed=6).load_state_dict(state)
    with pytest.raises(ado.ResumeError, match=r"canonical_nodes 2 -> 1; mixture_lag 8 -> 3"):
        make(corpus, mixture_lag=3, canonical_nodes=1).load_state_dict(state)
    write_domain(tmp_path / "other", 3, 70)
    other = [*corpus[:1], ado.Domain("d1", local=str(tmp_path / "other")), *corpus[2:]]
    with pytest.raises(ado.ResumeError, match="domain 'd1': its shards are not those"):
        make(other).load_state_dict(state)
    with pytest.raises(ado.ResumeError, match="none of the saved domains"):
        make([ado.Domain("x", local=str(tmp_path / "other"))]).load_state_dict(state)
    for damaged in ({}, {"version": 7}, {key: value for key, value in state.items() if key != "domains"}):
        with pytest.raises(ado.ResumeError):
            dataset.load_state_dict(damaged)


def test_publishing_late_or_nonsense_is_an_error(corpus):
    dataset = make(corpus)
    even = np.full(5, 0.2)
    dataset.publish(3, even)
    dataset.publish(3, even)
    run(dataset, 5, mixture=None)
    dataset.publish(3, even)  # the same again: harmless, even after the draw
    with pytest.raises(ado.PolicyError, match="already drawn"):
        dataset.publish(3, np.array([0.4, 0.1, 0.1, 0.2, 0.2]))
    for nonsense in (
        np.full(4, 0.25),
        np.full(5, 0.3),
        np.array([np.nan, 0.2, 0.2, 0.2, 0.2]),
        np.array([-1, 2, 0, 0, 0]),
    ):
        with pytest.raises(ado.PolicyError, match="publish"):
            dataset.publish(20, nonsense)


def test_a_mixture_that_never_comes_is_an_error_that_names_the_call(corpus):
    """Others came, so this one is waited for."""
    dataset = make(corpus, timeout_s=1.0, mixture_lag=2)
    dataset.start(prefetch=0, io_threads=0)
    dataset.publish(3, np.full(5, 0.2))
    with pytest.raises(ado.PolicyError, match=r"(?s)dataset\.publish\(4, mixture\).*Waited 1 s"):
        run(dataset, 10, mixture=None)


def test_without_a_lag_the_last_mixture_is_kept_over_a_resume(corpus):
    dataset = make(corpus, mixture_lag=None)
    only_third = np.array([0, 0, 1.0, 0, 0])
    dataset.publish(2, only_third)
    batches = run(dataset, 6, mixture=None)
    assert set(batches[5]["domain"].tolist()) == {2}
    again = make(corpus, mixture_lag=None)
    again.load_state_dict(json.loads(json.dumps(dataset.state_dict())))
    assert set(run(again, 1, mixture=None)[0]["domain"].tolist()) == {2}


@pytest.mark.parametrize("workers", [0, 1])
def test_it_runs_inside_a_data_loader(corpus, workers):
    expected = ledger(run(make(corpus, mixture_lag=None), 10, mixture=None))
    loader = torch.utils.data.DataLoader(make(corpus, mixture_lag=None), batch_size=None, num_workers=workers)
    assert ledger(list(itertools.islice(loader, 10))) == expected


def test_what_is_published_reaches_a_data_loaders_worker(corpus, reference):
    dataset = make(corpus)
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1)
    batches = []
    for batch in itertools.islice(loader, STEPS):
        batches.append(batch)
        dataset.publish(batch["step"] + 1 + dataset.mixture_lag, changing_mixture(batch["step"], 5))
    assert ledger(batches) == reference
    with pytest.raises(ado.PolicyError, match="worker has drawn"):
        dataset.publish(STEPS, np.full(5, 0.2))
    with pytest.raises(ado.ConfigError, match="worker reads this data set"):
        dataset.state_dict()
    dataset.load_state_dict(make(corpus).state_dict())  # the worker is gone: this process reads again
    assert ledger(run(dataset, STEPS)) == reference


def test_a_mailbox_never_drops_nor_tears_a_mixture():
    """A fork that collects while this process posts, each mixture one number K times: what arrives is whole."""
    mailbox = SharedMixtures(num_domains=500)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        mailbox.open()
        first, whole = 0, True
        while first < 3000:
            for step, mixture in sorted(mailbox.collect(first)):
                whole &= bool((mixture == step).all())
                first += step == first
        os.write(writer, b"whole" if whole else b"torn")
        os._exit(0)
    wait_until(lambda: mailbox.is_read_elsewhere)
    for step in range(3000):
        while True:
            try:
                mailbox.post(step, np.full(500, float(step)))
                break
            except ado.PolicyError:  # too far ahead of the reader
                time.sleep(0.001)
    os.waitpid(child, 0)
    assert os.read(reader, 8) == b"whole"
    os.close(reader)
    os.close(writer)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on one core
def test_two_data_loader_workers_are_refused(corpus):
    loader = torch.utils.data.DataLoader(make(corpus, mixture_lag=None), batch_size=None, num_workers=2)
    with pytest.raises(ado.ConfigError, match="num_workers=2"), passing(loader) as iterator:
        next(iterator)


def test_streams_of_streaming_are_domains(corpus):
    from streaming import Stream

    streams = [Stream(local=domain.local, proportion=float(weight)) for weight, domain in enumerate(corpus, 1)]
    dataset = make(streams)
    assert dataset.names == [domain.name for domain in corpus]
    assert dataset.prior == pytest.approx(np.arange(1, 6) / 15)
    with pytest.raises(ado.ConfigError, match="repeat="):
        make([Stream(local=corpus[0].local, repeat=2)])


def test_a_kept_batch_is_not_overwritten(corpus):
    dataset = make(corpus)
    kept = run(dataset, 30)
    copies = [batch["tokens"].clone() for batch in kept]
    run(dataset, 30)
    assert all(torch.equal(batch["tokens"], copy) for batch, copy in zip(kept, copies, strict=True))


def test_nothing_is_left_behind(corpus):
    before = set(threading.enumerate())
    memory = set(os.listdir("/dev/shm"))
    dataset = make(corpus)
    run(dataset, 5)
    abandoned = make(corpus)
    next(iter(abandoned))
    del abandoned
    wait_until(lambda: set(threading.enumerate()) <= before)
    # Other processes have theirs: a semaphore's name is removed once it is open, what is left behind stays.
    wait_until(lambda: set(os.listdir("/dev/shm")) <= memory)


@pytest.mark.deadline
def test_closing_while_shards_are_awaited_is_prompt(corpus, monkeypatch, caplog):
    from ado_stream.storage.node_cache import NodeCache

    fetch = NodeCache.fetch

    def slow(self, spec, stop=None):
        time.sleep(0.2)
        return fetch(self, spec, stop)

    monkeypatch.setattr(NodeCache, "fetch", slow)
    dataset = make(corpus)
    dataset.start(prefetch=4, io_threads=1)
    time.sleep(0.1)
    started = time.monotonic()
    dataset.close()
    assert time.monotonic() - started < 2
    assert not caplog.records


@pytest.mark.deadline
def test_an_error_behind_reaches_the_consumer_as_itself_within_a_second(corpus, monkeypatch):
    from ado_stream.stream import batch_pipeline, shard_table

    class Odd(Exception):
        pass

    for module, name in ((batch_pipeline, "draw_step"), (shard_table, "gather"), (shard_table.NodeCache, "fetch")):
        dataset = make(corpus)
        with monkeypatch.context() as patch:

            def broken(*args, **kwargs):
                raise Odd("injected")

            patch.setattr(module, name, broken)
            started = time.monotonic()
            with pytest.raises(Odd, match="injected"):
                run(dataset, 3)
            assert time.monotonic() - started < 1
            dataset.close()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"global_batch_size": 25}, "not a multiple of canonical_nodes 2; nearest: 24 or 26"),
        ({"rank": 0, "world_size": 5}, "not a multiple of ranks 5; nearest: 20 or 30"),
        ({"rank": 4, "world_size": 4}, "rank 4 of world_size 4"),
        ({"rank": 1}, "both rank= and world_size="),
        ({"rank": 0, "world_size": 4, "replication": 3}, "replication 3 does not divide the 4 ranks"),
        ({"sampling": "x"}, "sampling is 'x'"),
        ({"mixture_lag": -1}, "mixture_lag is -1"),
        ({"token_column": "text"}, "columns found: tokens"),
    ],
)
def test_settings_that_cannot_work_are_named(corpus, changes, text):
    with pytest.raises(ado.ConfigError, match=text):
        make(corpus, **changes)


def test_domains_that_cannot_work_are_named(corpus, tmp_path):
    first = corpus[0]
    with pytest.raises(ado.ConfigError, match="'d0' is given twice"):
        make([first, first])
    with pytest.raises(ado.ConfigError, match="have the same data"):
        make([first, ado.Domain("again", local=first.local)])
    with pytest.raises(ado.ConfigError, match="domain 'd0': prior is -1"):
        ado.Domain("d0", local=first.local, prior=-1)
    with pytest.raises(ado.ConfigError, match="domain 'd1' has no prior"):
        make([ado.Domain("d0", local=first.local, prior=1.0), corpus[1]])
    with pytest.raises(ado.NotFound, match=r"index.json: No such file"):
        make([ado.Domain("x", local=str(tmp_path / "nowhere"))])
    with pytest.raises(ado.ConfigError, match="no domains"):
        make([])


def test_tokens_outside_the_vocabulary_are_named(corpus):
    with pytest.raises(ado.DataError, match=r"domain 'd\d' shard.\d+.mds, row \d+ \(id \d+\): token \d+ outside"):
        run(make(corpus, vocab_size=1000), 3)


def test_a_repr_is_one_line_that_says_what_the_data_are(corpus):
    dataset = make(corpus)
    text = "AdaptiveStreamingDataset(5 domains, 1070 samples, global_batch_size=24, seed=5, mixture_lag=8, at step 0)"
    assert repr(dataset) == text
    loader = ado.AdaptiveLoader(dataset, policy=ado.make_policy("natural", dataset.prior))
    assert repr(loader) == f"AdaptiveLoader({text}, policy={type(loader.policy).__name__}, prefetch=4, io_threads=4)"
    one = make(corpus[2:3])
    assert repr(one).startswith("AdaptiveStreamingDataset(1 domain (d2), 300 samples,")
    domain = ado.Domain("code", remote="s3://b/code", local="/cache/code")
    assert repr(domain) == "Domain(name='code', remote='s3://b/code', local='/cache/code')"
    assert eval(repr(domain), {"Domain": ado.Domain}) == domain


def test_names_with_a_suffix_remain_as_aliases(corpus):
    dataset = make(corpus)
    assert np.array_equal(dataset.prior_K, dataset.prior)
    assert np.array_equal(dataset.num_samples_K, dataset.num_samples)
