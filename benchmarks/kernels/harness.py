"""Timing, ceilings, guards and records: what every section of the kernel benchmark uses.

On a GPU a call is timed by events, median of 20 after 5, with the L2 cache flushed before each by writing 1 GB: long
enough (a third of a millisecond) that the host has enqueued the whole call before the device reaches it, so that
host overhead does not count. On a CPU: wall seconds of the call.
"""

import gc
import json
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

COMPILE_BUDGET_S = 25
Call = Callable[[], Any]


@dataclass
class Bench:
    """The device, the time left, the measured ceilings and the records so far."""

    device: torch.device
    smoke: bool
    deadline: float
    records: list[dict] = field(default_factory=list)
    copy_bytes_per_s: float = float("nan")
    matmul_flop_per_s: float = float("nan")

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def emit(self, section: str, case: str, **values: Any) -> None:
        """Prints one record at once and keeps it."""
        record = {"section": section, "case": case, "device": self.device.type, **values}
        self.records.append(record)
        print(json.dumps(record), flush=True)

    def out_of_time(self) -> bool:
        return time.monotonic() > self.deadline

    def time_ms(self, call: Call) -> float:
        """Median milliseconds of one call."""
        repeats, warmup = (2, 1) if self.smoke else (20, 5)
        return self._time_gpu_ms(call, repeats, warmup) if self.on_gpu else _time_cpu_ms(call, repeats)

    def _time_gpu_ms(self, call: Call, repeats: int, warmup: int) -> float:
        flush = torch.empty(1 << 28, dtype=torch.float32, device=self.device)
        for _ in range(warmup):
            call()
        pairs = []
        for _ in range(repeats):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            start.record()
            call()
            stop.record()
            pairs.append((start, stop))
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(stop) for start, stop in pairs)

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

    def compare(
        self, section: str, case: str, builders: dict[str, Callable[[], Call]], floor_ms: float, **more
    ) -> None:
        """Times every implementation of one case; ours is the one named "ours" and comes first."""
        ours_ms = None
        for name, build in builders.items():
            if self.out_of_time():
                self.emit(section, case, implementation=name, skipped="out of time")
                continue
            try:
                with Alarm(COMPILE_BUDGET_S):
                    call = build()
                    call()
                milliseconds = self.time_ms(call)
                peak = self.peak_bytes(call)
            except Exception as error:  # noqa: BLE001 - a baseline may fail in any way; the record says how
                self.emit(section, case, implementation=name, failed=f"{type(error).__name__}: {error}"[:300])
                continue
            ours_ms = milliseconds if name == "ours" else ours_ms
            self.emit(
                section,
                case,
                implementation=name,
                ms=milliseconds,
                floor_ms=floor_ms,
                share_of_floor=floor_ms / milliseconds,
                times_ours=None if ours_ms is None else milliseconds / ours_ms,
                peak_bytes=peak,
                **more,
            )

    def bytes_floor_ms(self, num_bytes: float) -> float:
        return num_bytes / self.copy_bytes_per_s * 1e3

    def flops_floor_ms(self, num_flops: float) -> float:
        return num_flops / self.matmul_flop_per_s * 1e3


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
        signal.signal(signal.SIGALRM, self._raise)
        signal.alarm(self.seconds)

    def __exit__(self, *_: object) -> None:
        signal.alarm(0)

    def _raise(self, *_: object) -> None:
        raise TimeoutError(f"not ready after {self.seconds} s")


def measure_ceilings(bench: Bench) -> None:
    """The denominators: bytes per second of a copy, and FLOP per second of the matmuls that matter."""
    size = 1 << (24 if bench.smoke else 29)
    source = torch.ones(size, dtype=torch.bfloat16, device=bench.device)
    target = torch.empty_like(source)
    seconds = bench.time_ms(lambda: target.copy_(source)) / 1e3
    bench.copy_bytes_per_s = 2 * source.nbytes / seconds
    bench.emit("device", "copy", gb_per_s=bench.copy_bytes_per_s / 1e9)
    dtype = torch.bfloat16 if bench.on_gpu else torch.float32
    square = 512 if bench.smoke else 8192
    shapes = [("square", square, square, square)]
    if bench.on_gpu:
        for width in (768, 2048):
            for rows in (4096, 5632):
                shapes += [(f"logits H={width}", rows, width, 50304), (f"dX H={width}", rows, 50304, width)]
            shapes.append((f"dW H={width}", 50304, 4096, width))
    for name, m, k, n in shapes:
        a, b = (torch.randn(shape, device=bench.device).to(dtype) for shape in ((m, k), (k, n)))
        wide = {"out_dtype": torch.float32} if name.startswith("dW") else {}
        seconds = bench.time_ms(lambda a=a, b=b, wide=wide: torch.mm(a, b, **wide)) / 1e3
        rate = 2 * m * n * k / seconds
        if name == "square":
            bench.matmul_flop_per_s = rate
        bench.emit("device", f"matmul {name} {m}x{k}x{n}", tflop_per_s=rate / 1e12, dtype=str(dtype))
