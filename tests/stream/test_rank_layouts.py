"""docs/faults.md E1 and E2 with real processes, each node with its own cache: one global order in every world."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch.distributed as dist

import ado_stream as ado
from tests.stream.helpers import SAMPLES, ledger, run

BATCH, LANES = 24, 4


@dataclass(frozen=True)
class Job:
    """One rank's part of a run."""

    remote: Path
    cache: Path  # of its node
    rank: int
    world_size: int
    io_threads: int
    steps: int
    state: str | None


def make(job: Job) -> ado.AdaptiveStreamingDataset:
    names = [f"d{number}" for number in range(len(SAMPLES))]
    return ado.AdaptiveStreamingDataset(
        [ado.Domain(name, str(job.remote / name), str(job.cache / name)) for name in names],
        global_batch_size=BATCH,
        canonical_nodes=LANES,
        seed=9,
        rank=job.rank,
        world_size=job.world_size,
    )


def read(job: Job) -> tuple[list[list], str]:
    """The ledger of each step, and the state at the end; runs in a process of its own."""
    dataset = make(job)
    if job.state is not None:
        dataset.load_state_dict(json.loads(job.state))
    dataset.start(prefetch=min(job.io_threads, 4), io_threads=job.io_threads)
    batches = run(dataset, job.steps)
    return [ledger([batch]) for batch in batches], json.dumps(dataset.state_dict())


@pytest.fixture(scope="module")
def remote(corpus, tmp_path_factory):
    root = tmp_path_factory.mktemp("remote")
    for domain in corpus:
        shutil.copytree(domain.local, root / domain.name)
    return root


def global_ledger(children, remote, folder, nodes, ranks, io_threads, steps, state=None):
    """The union over ranks, in the order of slots, and the state, the same on all of them."""
    jobs = [
        Job(remote, folder / f"node{rank // ranks}", rank, nodes * ranks, io_threads, steps, state)
        for rank in range(nodes * ranks)
    ]
    with children.pool(len(jobs)) as pool:
        parts = pool.map(read, jobs, chunksize=1)
    assert len({state for _, state in parts}) == 1
    return [entry for step in range(steps) for ledgers, _ in parts for entry in ledgers[step]], parts[0][1]


@pytest.fixture(scope="module")
def reference(remote, tmp_path_factory):
    ledgers, _ = read(Job(remote, tmp_path_factory.mktemp("one"), 0, 1, 1, 60, None))
    return [entry for entries in ledgers for entry in entries]


@pytest.mark.parametrize(
    ("nodes", "ranks", "io_threads"), [(1, 1, 0), (1, 2, 1), (2, 1, 4), (2, 2, 1), (4, 1, 0), (3, 1, 4), (4, 2, 4)]
)
def test_e1_nodes_ranks_and_threads_read_one_global_order(
    children, remote, reference, tmp_path, nodes, ranks, io_threads
):
    union, _ = global_ledger(children, remote, tmp_path, nodes, ranks, io_threads, 30)
    assert union == reference[: 30 * BATCH]


def test_e2_a_run_moves_from_two_ranks_to_four_to_one(children, remote, reference, tmp_path):
    union, state = [], None
    for nodes, ranks, io_threads in ((1, 2, 1), (2, 2, 4), (1, 1, 0)):
        part, state = global_ledger(children, remote, tmp_path, nodes, ranks, io_threads, 20, state)
        union += part
    assert union == reference


@pytest.mark.parametrize("ranks", [64, pytest.param(1000, marks=pytest.mark.slow)])
def test_e2_many_ranks_read_one_order_and_go_on_as_fewer(corpus, ranks):
    """In one process, made with rank and world_size; canonical lanes fewer than ranks, and none a node's own."""

    def batches(state, world_size):
        parts = []
        for rank in range(world_size):
            stream = ado.AdaptiveStreamingDataset(
                corpus, 2 * ranks, seed=9, canonical_nodes=8, rank=rank, world_size=world_size
            )
            if state is not None:
                stream.load_state_dict(state)
            stream.start(0, 0)
            parts.append(run(stream, 2))
        return [entry for step in range(2) for part in parts for entry in ledger([part[step]])], stream.state_dict()

    first, state = batches(None, 1)
    second, _ = batches(state, 1)
    union, of_many = batches(None, ranks)
    assert (union, of_many) == (first, state)
    for world_size in (4, ranks // 2):
        assert batches(of_many, world_size)[0] == second


def test_the_batch_sizes_that_are_named_work(corpus):
    for size, lanes, ranks in ((1000, 3, 1000), (1001, 1, 1000), (100, 6, 4), (1, 5, 64)):
        options = {"canonical_nodes": lanes, "rank": 0, "world_size": ranks}
        with pytest.raises(ado.ConfigError, match="nearest: ") as refused:
            ado.AdaptiveStreamingDataset(corpus, size, **options)
        for nearest in re.findall(r"\d+", str(refused.value).partition("nearest: ")[2]):
            ado.AdaptiveStreamingDataset(corpus, int(nearest), **options)


def test_a_data_set_made_before_the_process_group_is_refused_where_it_would_read_the_same_on_all_ranks(
    corpus, monkeypatch
):
    early, given = (
        ado.AdaptiveStreamingDataset(corpus, 24, mixture_lag=None, **place)
        for place in ({}, {"rank": 0, "world_size": 1})
    )
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    for stream in (early, ado.AdaptiveLoader(early, prefetch=0)):
        with pytest.raises(ado.ConfigError, match=r"rank 0 of 1, but this is rank 1 of 2.*\n.*after torch.distributed"):
            next(iter(stream))
    for stream in (given, ado.AdaptiveStreamingDataset(corpus, 24, mixture_lag=None)):
        assert len(next(iter(stream))["domain"]) == (24 if stream is given else 12)
        stream.close()
