"""Timing, guards and records: what every section of the kernel benchmark uses.

On a GPU there are two clocks, each with the L2 cache emptied before every call by reading: a flush that writes would
leave lines whose write-back is charged to the call.
ms: events around single calls, median of 20. The flush before takes a quarter of a millisecond, in which the host
enqueues the call; but what the call wrote last (up to a cache's worth) may still be in the cache when it ends.
graph_ms, of calls under a millisecond and of the ceilings: replays of a CUDA graph of ten flushed calls, less those of
the flushes alone. No host takes part, and every write is paid for, by the next flush. Each flush reads another part of
the buffer: a cache that is not strictly LRU would keep some of what the flush before read, more of it where no call
came between. Where there is a graph_ms, it is what shares and ratios are made of. On a CPU: ms, wall time.

So a floor's rate is by graph, and a call under a millisecond too; a longer one, by events, leaves at most a cache's
worth of writes unpaid, 12 us on an H200.
"""

import functools
import gc
import json
import math
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

COMPILE_BUDGET_S = 25
EVENT_FLUSH_BYTES = 1 << 30
GRAPH_BELOW_MS = 1.0
GRAPH_CALLS = 10
FLUSH_PARTS = (1, 2, 5, 10)  # divisors of that: a replay does not begin with the part that the one before ended with
CLOCK_READS = 100  # 30 ms of reading before a case: clocks fall while the host compiles
Call = Callable[[], Any]
Builder = Callable[[], Call]


class Absent(Exception):
    """A baseline that the installed version of its package does not have."""


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
    records: list[dict] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    copy_bytes_per_s: float | None = None
    matmul_flop_per_s: float | None = None
    own_flop_per_s: dict[tuple[str, int], float] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def out_of_time(self) -> bool:
        return time.monotonic() > self.deadline

    def emit(self, section: str, case: str, **values: Any) -> None:
        """Prints one record at once and keeps it."""
        record = {"section": section, "case": case, "device": self.device.type, **values}
        self.records.append(record)
        print(json.dumps(record), flush=True)

    def find(self, section: str, case: str, implementation: str = "ours") -> dict:
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

    def floor_ms(self, work: Work) -> float | None:
        """The least milliseconds at the measured ceilings; None where one that it takes was not measured."""
        ceilings = ((work.num_bytes, self.copy_bytes_per_s), (work.num_flops, self.matmul_flop_per_s))
        taken = [(amount, rate) for amount, rate in ceilings if amount]
        if any(rate is None for _, rate in taken):
            return None
        return 1e3 * max((amount / rate for amount, rate in taken), default=0.0)

    def compare(
        self,
        section: str,
        case: str,
        builders: dict[str, Builder],
        work: Work,
        examine: Callable[[Any], dict] | None = None,
    ) -> None:
        """Times every implementation of one case, "ours" first (or taken from an earlier record).

        A baseline may be absent or fail in any way: its record says how. What is called "ours..." may not.
        examine: of the call's result, more fields; "wrong": True among them says that the result is not right.
        """
        ours = self.find(section, case)
        for name, build in builders.items():
            own = name.startswith("ours")
            if self.out_of_time():
                self.emit(section, case, implementation=name, skipped="out of time")
                continue
            try:
                record = self._measure(build, work, examine)
            except Exception as error:  # noqa: BLE001
                absent = isinstance(error, (ModuleNotFoundError, Absent)) and not own
                values = {"skipped" if absent else "failed": f"{type(error).__name__}: {error}"[:300]}
                self.emit(section, case, implementation=name, **values)
                self._note(own, section, case, name)
                continue
            ours = record if name == "ours" else ours
            self.emit(section, case, implementation=name, **record, **_against(record, ours))
            self._note(own and record.get("wrong", False), section, case, name)

    def _note(self, wrong: bool, *what: str) -> None:
        if wrong:
            self.failed.append(", ".join(what))

    def _measure(self, build: Builder, work: Work, examine: Callable[[Any], dict] | None) -> dict:
        with Alarm(COMPILE_BUDGET_S):
            call = build()
            result = call()
            self.synchronize()
        record: dict[str, Any] = self.times(call, graph_below_ms=GRAPH_BELOW_MS)
        seconds, floor_ms = judged_ms(record) / 1e3, self.floor_ms(work)
        if floor_ms:
            record |= {"floor_ms": floor_ms, "share_of_floor": floor_ms / judged_ms(record)}
        if work.own_floor_ms:
            record["share_of_own_floor"] = work.own_floor_ms / judged_ms(record)
        if work.num_bytes:
            record["gb_per_s"] = work.num_bytes / seconds / 1e9
        if work.num_flops:
            record |= {"tflop_per_s": work.num_flops / seconds / 1e12, "peak_bytes": self.peak_bytes(call)}
        return record | (examine(result) if examine else {})

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def times(self, call: Call, graph_below_ms: float = math.inf) -> dict:
        """{"ms"} of a call, and on a GPU, if that is less than this, {"graph_ms"}."""
        record: dict[str, Any] = {"ms": self.time_ms(call)}
        return record | (self.graph_ms(call) if self.on_gpu and record["ms"] < graph_below_ms else {})

    def time_ms(self, call: Call) -> float:
        """Median milliseconds of one call."""
        return self._time_gpu_ms(call) if self.on_gpu else _time_cpu_ms(call, repeats=2 if self.smoke else 20)

    def graph_ms(self, call: Call) -> dict:
        """{"graph_ms": milliseconds of a call by replays}, or why it cannot be captured."""
        num_bytes = 4 * torch.cuda.get_device_properties(self.device).L2_cache_size

        def flush(turn: int) -> None:
            self._read(num_bytes, turn)

        def flushed(turn: int) -> None:
            flush(turn)
            call()

        try:
            with_call_ms = self._replay_ms(flushed)
        except RuntimeError as error:
            return {"not_capturable": str(error)[:200]}
        return {"graph_ms": (with_call_ms - self._replay_ms(flush)) / GRAPH_CALLS}

    def captured(self, call: Call) -> tuple[Any, Call]:
        """What `call` returned as it was recorded in a CUDA graph, and what fills it anew.

        The graph is recorded on the current stream, which must not be the default one: a backward pass runs on the
        stream of its forward pass. On a CPU, calling again stands in for the replay.
        """
        if not self.on_gpu:
            outputs = call()

            def again() -> None:
                for output, new in zip(outputs, call(), strict=True):
                    output.copy_(new)

            return outputs, again
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            outputs = call()
        return outputs, graph.replay

    def peak_bytes(self, call: Call) -> int | None:
        """Most device memory that one call adds; None on a CPU (bench_linear_cross_entropy.py measures that)."""
        if not self.on_gpu:
            return None
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    @functools.cached_property
    def _flush(self) -> torch.Tensor:
        return torch.ones(EVENT_FLUSH_BYTES // 4, device=self.device)

    def _read(self, num_bytes: int = EVENT_FLUSH_BYTES, turn: int = 0) -> None:
        """Reads the turn-th part of this size, from the first again after the last."""
        size = num_bytes // 4
        parts = max(n for n in FLUSH_PARTS if n == 1 or n * size <= len(self._flush))
        start = turn % parts * size
        self._flush[start : start + size].sum()

    def _time_gpu_ms(self, call: Call) -> float:
        for _ in range(CLOCK_READS):
            self._read()
        for _ in range(1 if self.smoke else 5):
            call()
        return self._events_ms(call, self._read)

    def _replay_ms(self, call: Callable[[int], None]) -> float:
        """Milliseconds of GRAPH_CALLS calls in one graph, each told its number."""

        def calls() -> None:
            for turn in range(GRAPH_CALLS):
                call(turn)

        _, replay = self.captured(calls)
        replay()
        return self._events_ms(replay, lambda: None)

    def _events_ms(self, call: Call, before: Call) -> float:
        pairs = []
        for _ in range(2 if self.smoke else 20):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before()
            start.record()
            call()
            stop.record()
            pairs.append((start, stop))
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(stop) for start, stop in pairs)


def judged_ms(record: dict) -> float:
    """The milliseconds that a record is judged by."""
    return record.get("graph_ms", record["ms"])


def _against(record: dict, ours: dict) -> dict:
    """Time over ours, both by the same clock; and our peak memory over this one's."""
    if "ms" not in ours:
        return {}
    clock = "graph_ms" if "graph_ms" in record and "graph_ms" in ours else "ms"
    ratios = {"times_ours": record[clock] / ours[clock]}
    if record.get("peak_bytes"):
        ratios["our_peak_frac"] = ours["peak_bytes"] / record["peak_bytes"]
    return ratios


def _time_cpu_ms(call: Call, repeats: int) -> float:
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) * 1e3


class Alarm:
    """Raises TimeoutError in the body after this many seconds: torch.compile may take minutes."""

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        self._handler = signal.signal(signal.SIGALRM, self._raise)
        self._timer = signal.setitimer(signal.ITIMER_REAL, self.seconds)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, *self._timer)
        signal.signal(signal.SIGALRM, self._handler)

    def _raise(self, *_: object) -> None:
        raise TimeoutError(f"not ready after {self.seconds} s")
