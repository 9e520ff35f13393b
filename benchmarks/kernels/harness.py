"""The clock, the checks and the records that every script of this folder uses.

On a GPU there are two clocks. ms: triton.testing.do_bench, events around single calls with the L2 cache flushed before
each. It flushes by writing, so up to a cache's worth of write-back is charged to the call (12 us on an H200), and a
host slower than the flush shows. graph_ms, of calls under a millisecond and of the ceilings: a CUDA graph of ten calls,
each after a read of four times the cache, less a graph of the reads alone. No host takes part and every write is paid
for. Where there is a graph_ms, shares and ratios are made of it. On a CPU: ms, wall time.
"""

import gc
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import triton

from benchmarks.common import median_s

COMPILE_BUDGET_S = 25.0
GRAPH_BELOW_MS = 1.0
# Calls of a graph, and parts of the flushed memory. A cache that is not strictly LRU would keep some of what the last
# flush read: each reads another part, and a replay does not begin with the part that the one before ended with.
GRAPH_CALLS, FLUSH_PARTS = 10, 5
Call = Callable[[], Any]


@dataclass(frozen=True)
class Work:
    """What a call must do at least: bytes through memory (each input read once, each output written once), FLOP.

    own_floor_ms: of its matmuls at the rates that these shapes reach, where that was measured.
    """

    num_bytes: float = 0.0
    num_flops: float = 0.0
    own_floor_ms: float | None = None


@dataclass
class Bench:
    """The device, the time left, the measured ceilings, the records so far and what went wrong with our own code.

    backend: of torch.compile. own_flop_per_s: of linear_cross_entropy's matmuls, by name and width (ceilings.py).
    """

    device: torch.device
    smoke: bool
    deadline: float
    backend: Any = "inductor"
    records: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    copy_bytes_per_s: float | None = None
    matmul_flop_per_s: float | None = None
    own_flop_per_s: dict[tuple[str, int], float] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() > self.deadline

    def out_of_time(self, section: str, case: str, **values: Any) -> bool:
        """Whether nothing more may start; that is then recorded for this case."""
        if self.over:
            self.emit(section, case, **values, skipped="out of time")
        return self.over

    def emit(self, section: str, case: str, **values: Any) -> None:
        """Prints one record at once and keeps it."""
        record = {"section": section, "case": case, "device": self.device.type, **values}
        self.records.append(record)
        print(json.dumps(record), flush=True)

    def find(self, section: str, case: str, implementation: str = "ours") -> dict[str, Any]:
        """The record of an implementation; empty if there is none."""
        wanted = {"section": section, "case": case, "implementation": implementation}
        return next((record for record in self.records if wanted.items() <= record.items()), {})

    def compiled(self, function: Callable) -> Callable:
        """`function` through torch.compile for static shapes, as if nothing had been compiled before.

        Dynamo keeps its cache by code object: without the reset a second shape would be compiled symbolically, and a
        ninth not at all.
        """
        torch._dynamo.reset()
        return torch.compile(function, fullgraph=True, dynamic=False, backend=self.backend)

    def compare(
        self,
        section: str,
        case: str,
        builds: dict[str, Callable[[], Call]],
        work: Work,
        examine: Callable[[Any], dict[str, Any]] | None = None,
    ) -> None:
        """Times every implementation of one case, "ours" first (or taken from an earlier record).

        A baseline may be absent (ImportError) or fail in any way: its record says how. What is called "ours..." may
        not. examine: more fields, of the call's result; "wrong": True among them says that the result is not right.
        """
        ours = self.find(section, case)
        for name, build in builds.items():
            own = name.startswith("ours")
            if self.out_of_time(section, case, implementation=name):
                continue
            try:
                record = self._measure(build, work, examine)
            except Exception as error:  # noqa: BLE001 - a baseline may raise anything
                absent = isinstance(error, ImportError) and not own
                record = {"skipped" if absent else "failed": f"{type(error).__name__}: {error}"[:300]}
            ours = record if name == "ours" else ours
            self.emit(section, case, implementation=name, **record, **_against(record, ours))
            if own and ("failed" in record or record.get("wrong")):
                self.failed.append(f"{section}, {case}, {name}")

    def _measure(self, build: Callable[[], Call], work: Work, examine: Callable[[Any], dict] | None) -> dict[str, Any]:
        with time_limit(COMPILE_BUDGET_S):
            call = build()
            result = call()
            self.synchronize()
        found = examine(result) if examine else {}  # before later calls write over it
        record = self.times(call, graph_below_ms=GRAPH_BELOW_MS)
        ms, floor_ms = judged_ms(record), self.floor_ms(work)
        if floor_ms:
            record |= {"floor_ms": floor_ms, "share_of_floor": floor_ms / ms}
        if work.own_floor_ms:
            record["share_of_own_floor"] = work.own_floor_ms / ms
        if work.num_bytes:
            record["gb_per_s"] = work.num_bytes / ms / 1e6
        if work.num_flops:
            record |= {"tflop_per_s": work.num_flops / ms / 1e9, "peak_bytes": self.peak_bytes(call)}
        return record | found

    def floor_ms(self, work: Work) -> float | None:
        """The least milliseconds at the measured ceilings; None where one that it takes was not measured."""
        ceilings = ((work.num_bytes, self.copy_bytes_per_s), (work.num_flops, self.matmul_flop_per_s))
        taken = [(amount, rate) for amount, rate in ceilings if amount]
        if any(rate is None for _, rate in taken):
            return None
        return 1e3 * max((amount / rate for amount, rate in taken if rate), default=0.0)

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def times(self, call: Call, graph_below_ms: float = math.inf) -> dict[str, Any]:
        """{"ms"} of a call, and on a GPU, if that is less than this, {"graph_ms"}."""
        record = {"ms": self.time_ms(call)}
        return record | (self.graph_ms(call) if self.on_gpu and record["ms"] < graph_below_ms else {})

    def time_ms(self, call: Call) -> float:
        """Median milliseconds of one call."""
        if not self.on_gpu:
            return 1e3 * median_s(call, repeats=2 if self.smoke else 20)
        warmup, rep = (1, 2) if self.smoke else (25, 100)
        return triton.testing.do_bench(call, warmup, rep, return_mode="median")

    def graph_ms(self, call: Call) -> dict[str, Any]:
        """{"graph_ms"} of a call, or why it cannot be captured."""
        cache_bytes = torch.cuda.get_device_properties(self.device).L2_cache_size
        memory = torch.ones(FLUSH_PARTS, cache_bytes, device=self.device)  # float32: each part four times the cache

        def replay_ms(*calls: Call) -> float:
            def ten() -> None:
                for turn in range(GRAPH_CALLS):
                    memory[turn % FLUSH_PARTS].sum()
                    for each in calls:
                        each()

            return self.time_ms(self.captured(ten))

        try:
            return {"graph_ms": (replay_ms(call) - replay_ms()) / GRAPH_CALLS}
        except RuntimeError as error:
            return {"not_capturable": str(error)[:200]}

    def captured(self, call: Call) -> Call:
        """The replay of a CUDA graph of `call`.

        The graph is recorded on the current stream, which must not be the default one: a backward pass runs on the
        stream of its forward pass.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            call()
        return graph.replay

    def peak_bytes(self, call: Call) -> int | None:
        """Most device memory that one call adds; None on a CPU (bench_linear_cross_entropy.py measures that)."""
        if not self.on_gpu:
            return None
        gc.collect()
        self.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        self.synchronize()
        return torch.cuda.max_memory_allocated() - before


def judged_ms(record: dict[str, Any]) -> float:
    """The milliseconds that a record is judged by."""
    return record.get("graph_ms", record["ms"])


def _against(record: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
    """Time over ours, both by the same clock; and our peak memory over this one's."""
    if "ms" not in ours or "ms" not in record:
        return {}
    clock = "graph_ms" if "graph_ms" in record and "graph_ms" in ours else "ms"
    ratios = {"times_ours": record[clock] / ours[clock]}
    if record.get("peak_bytes"):
        ratios["our_peak_frac"] = ours["peak_bytes"] / record["peak_bytes"]
    return ratios


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the body after this many seconds: torch.compile may take minutes."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not ready after {seconds:g} s")

    handler = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)
