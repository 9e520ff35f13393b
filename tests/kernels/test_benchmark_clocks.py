"""The benchmark's two clocks and its ceilings: what is timed, on which stream, after which flush."""

import itertools
import time
from contextlib import contextmanager

import pytest
import torch

from benchmarks.kernels import ceilings, harness
from benchmarks.kernels.harness import Alarm, Bench, Work

CPU = torch.device("cpu")


@pytest.fixture
def bench():
    return Bench(CPU, smoke=True, deadline=time.monotonic() + 60)


@pytest.mark.deadline
def test_a_compilation_that_takes_too_long_is_cut():
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="not ready after 1 s"), Alarm(1):
        time.sleep(30)
    assert time.monotonic() - start < 10


def test_on_a_gpu_the_cache_is_read_full_before_every_timed_call(monkeypatch):
    done = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            done.append("event")

        def elapsed_time(self, stop):
            return 0.25

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("wait"))
    monkeypatch.setattr(Bench, "_read", lambda self: done.append("read"))
    bench = Bench(torch.device("cuda"), smoke=False, deadline=0.0)
    assert bench.time_ms(lambda: done.append("call")) == 0.25
    assert done == ["read"] * 100 + ["call"] * 5 + ["read", "event", "call", "event"] * 20 + ["wait"]


def test_a_graph_is_recorded_on_the_current_stream_and_replayed_ten_calls_at_a_time(monkeypatch):
    done = []

    @contextmanager
    def graph(graph, stream):
        assert stream == "side"
        done.append("record")
        yield

    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "side")
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: type("Graph", (), {"replay": lambda: done.append("replay")}))
    monkeypatch.setattr(Bench, "_events_ms", lambda self, call, before: (before(), call(), 4.0)[-1])
    bench = Bench(torch.device("cuda"), smoke=False, deadline=0.0)
    assert bench._replay_ms(done.append) == 4.0
    assert done == ["record", *range(10), "replay", "replay"]


def test_replays_are_timed_without_the_flush_and_failing_to_capture_is_said(bench, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: type("L2", (), {"L2_cache_size": 1 << 20}))
    monkeypatch.setattr(Bench, "_read", lambda self, num_bytes, turn: reads.append((num_bytes, turn)))
    spent = {1: 0.4, 2: 0.7}  # milliseconds of ten flushes, and of ten flushed calls
    reads = []

    def replay_ms(self, call):
        reads.clear()
        call(7)
        return spent[len(reads)]

    monkeypatch.setattr(Bench, "_replay_ms", replay_ms)
    assert bench.graph_ms(lambda: reads.append("call"))["graph_ms"] == pytest.approx(0.03)
    assert reads == [(4 << 20, 7)]

    def synchronises():
        raise RuntimeError("operation not permitted when stream is capturing")

    assert bench.graph_ms(synchronises) == {"not_capturable": "operation not permitted when stream is capturing"}
    slow, fast = {"ms": 3.0, "graph_ms": 2.0}, {"ms": 2.0, "graph_ms": 0.5}
    assert harness.judged_ms(slow) == 2.0
    assert harness._against(slow, fast) == {"times_ours": 4.0}
    assert harness._against({"ms": 3.0}, fast) == {"times_ours": 1.5}


@pytest.mark.parametrize("cache_bytes", [1 << 8, 40, 50, 60, 72, 126])
def test_no_flush_reads_what_the_one_before_read(bench, cache_bytes):
    """In ten flushes of four times the cache, over and over, wherever the buffer has room for two; always in full.

    A cache that is not strictly LRU would keep some of it for the next flush, and more of it where no call came
    between: the flushes alone would be too cheap, and what is left for the call too much.
    """
    read = []

    class Buffer:
        def __len__(self):
            return 1 << 8

        def __getitem__(self, part):
            assert part.stop <= len(self) or part.start == 0
            read.append(part)
            return torch.ones(1)

    bench._flush = Buffer()
    for turn in [*range(harness.GRAPH_CALLS)] * 2:
        bench._read(4 * cache_bytes, turn)
    assert {part.stop - part.start for part in read} == {cache_bytes}
    if cache_bytes <= len(bench._flush) // 2:
        assert all(one.stop <= two.start or two.stop <= one.start for one, two in itertools.pairwise(read))


def test_ceilings_are_judged_by_the_clock_of_what_they_judge(monkeypatch):
    """By graph, where every write is paid for: by events, a cache's worth of the copy's writes would not be."""
    monkeypatch.setattr(Bench, "time_ms", lambda self, call: 2.0)
    monkeypatch.setattr(Bench, "graph_ms", lambda self, call: {"graph_ms": 4.0})
    monkeypatch.setattr(Bench, "on_gpu", True)
    monkeypatch.setattr(ceilings, "own_rates", lambda *_: {})
    bench = Bench(CPU, smoke=True, deadline=0.0, backend="eager")
    ceilings.run_device(bench)
    assert bench.copy_bytes_per_s == 2e3 * 2 * (1 << 24) / 4.0
    assert bench.matmul_flop_per_s == 2e3 * 512**3 / 4.0
    assert bench.times(lambda: None, graph_below_ms=1.0) == {"ms": 2.0}


def test_a_compiler_that_does_not_start_costs_no_ceiling(bench, monkeypatch):
    def refuses(self, function):
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(Bench, "compiled", refuses)
    ceilings.run_device(bench)
    assert bench.failed == []
    assert bench.floor_ms(Work(num_bytes=1.0, num_flops=1.0)) > 0
    (failed,) = [record for record in bench.records if "failed" in record]
    assert (failed["case"], failed["failed"]) == ("torch.compile starts", "RuntimeError: no C compiler")
    assert [name for name, _ in bench.own_flop_per_s] == ["logits", "dX", "dW"]


def test_ceilings_are_of_the_operands_as_they_lie(bench, monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "mm", lambda a, b, **more: calls.append((a.shape, b.shape, a.stride(), b.stride())))
    ceilings.own_rates(bench, rows=4, width=8, vocabulary=16, dtype=torch.float32)
    assert list(dict.fromkeys(calls)) == [
        ((4, 8), (8, 16), (8, 1), (1, 8)),  # x W^T
        ((4, 16), (16, 8), (16, 1), (8, 1)),  # g W
        ((16, 4), (4, 8), (1, 16), (8, 1)),  # g^T x
    ]
    bench.own_flop_per_s = {("logits", 8): 1e3, ("dX", 8): 2e3, ("dW", 8): 4e3}
    assert ceilings.own_floor_ms(bench, ceilings.TRAINING, 1e3, 8) == pytest.approx(1e3 + 500 + 250)
    assert ceilings.own_floor_ms(bench, ceilings.FORWARD, 1e3, 64) is None
