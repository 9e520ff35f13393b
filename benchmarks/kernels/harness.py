"""The clock, the comparison and the records that every script of this folder uses.

ms: on a CPU the median wall time of a call. On a GPU by triton.testing: calls under a millisecond in a CUDA graph of
many (do_bench_cudagraph), so that no host takes part; longer ones, and those that cannot be captured, by events around
single calls after a flush of the L2 cache (do_bench). Calls in a graph find the cache as the last one left it: shapes
that fit it (50 MB on an H200) can be faster than memory allows.
"""

import functools
import gc
import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import triton

from benchmarks.common import median_s

COMPILE_BUDGET_S = 60.0
GRAPH_BELOW_MS = 1.0
WARM_UP_S = 2.0
Call = Callable[[], Any]
Function = Callable[..., Any]
Make = Callable[[], Function]  # imports or compiles an implementation


@dataclass
class Bench:
    """The device, the time left, the measured ceilings, the records so far and what went wrong with our own code."""

    device: torch.device
    smoke: bool
    deadline: float
    backend: Any = "inductor"  # of torch.compile
    records: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    copy_bytes_per_s: float = math.nan
    matmul_flop_per_s: float = math.nan

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def out_of_time(self, section: str, case: str, **values: Any) -> bool:
        """Whether nothing more may start; that is then recorded for this case."""
        over = time.monotonic() > self.deadline
        if over:
            self.emit(section, case, **values, skipped="out of time")
        return over

    def emit(self, section: str, case: str, **values: Any) -> None:
        """Prints one record at once and keeps it."""
        self.records.append({"section": section, "case": case, "device": self.device.type, **values})
        print(json.dumps(self.records[-1]), flush=True)

    def find(self, section: str, case: str, implementation: str = "ours") -> dict[str, Any]:
        """The record of an implementation; empty if there is none."""
        wanted = {"section": section, "case": case, "implementation": implementation}
        return next((record for record in self.records if wanted.items() <= record.items()), {})

    def compiled(self, function: Function) -> Function:
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
        builds: Mapping[str, Callable[[], Call]],
        *,
        num_bytes: float = 0.0,
        num_flops: float = 0.0,
        expected: Call | None = None,
        tolerances: Sequence[float] = (),
    ) -> None:
        """Times every implementation of one case, "ours" first (or taken from an earlier record).

        A baseline may be absent (ImportError) or fail in any way: its record says how. "ours" may not. num_bytes,
        num_flops: what a call must do at least. expected: the call's results, each to be met within its tolerance.
        """
        known = expected() if expected and not self.out_of_time(section, case) else None
        for name, build in builds.items():
            if self.out_of_time(section, case, implementation=name):
                continue
            try:
                record = self._measure(build, num_bytes, num_flops, known, tolerances)
            except Exception as error:  # noqa: BLE001 - a baseline may raise anything
                absent = isinstance(error, ImportError) and name != "ours"
                record = {"skipped" if absent else "failed": f"{type(error).__name__}: {error}"[:300]}
            ours = record if name == "ours" else self.find(section, case)
            self.emit(section, case, implementation=name, **record, **_against(record, ours))
            if name == "ours" and ("failed" in record or record.get("wrong")):
                self.failed.append(f"{section}, {case}")

    def _measure(
        self, build: Callable[[], Call], num_bytes: float, num_flops: float, known: Any, tolerances: Sequence[float]
    ) -> dict[str, Any]:
        with time_limit(COMPILE_BUDGET_S):
            call = build()
            result = call()
            self.synchronize()
        found: dict[str, Any] = {}
        if known is not None:  # compared before later calls write over it
            results, wanted = (value if isinstance(value, tuple) else (value,) for value in (result, known))
            errors = [error_of(*pair) for pair in zip(results, wanted, strict=True)]
            right = all(error <= most for error, most in zip(errors, tolerances, strict=True))  # no NaN is
            found = {"errors": errors, "wrong": not right}
        record = self.time(call)
        floor_ms = 1e3 * max(num_bytes / self.copy_bytes_per_s, num_flops / self.matmul_flop_per_s)
        if floor_ms > 0:  # NaN without ceilings
            record |= {"floor_ms": floor_ms, "share_of_floor": floor_ms / record["ms"]}
        if num_flops and self.on_gpu:
            record["peak_bytes"] = peak_bytes(call)
        return record | found

    def compare_passes(
        self,
        name: str,
        case: str,
        makes: Mapping[str, Make],
        inputs: Sequence[torch.Tensor],
        grads: Sequence[torch.Tensor],
        traffic: tuple[float, float],
        reference: Function,
        roundings: int = 1,
    ) -> None:
        """A differentiable operation forward, backward and both together, as in training.

        grads: of the outputs. traffic: bytes of a forward and of a backward pass. reference: the operation in plain
        torch, whose results in float64 ours must equal up to `roundings` roundings to the inputs' dtype.
        """
        made = {name: functools.cache(make) for name, make in makes.items()}  # compiled once for three passes
        wide_inputs, wide_grads = [each.double() for each in inputs], [each.double() for each in grads]
        tolerance = roundings * max(1e-5, torch.finfo(inputs[0].dtype).eps / 2)  # a float32 sum over a row: 1e-5
        for which, num_bytes in (("forward", traffic[0]), ("backward", traffic[1]), ("forward+backward", sum(traffic))):
            builds = {name: functools.partial(one_pass, make, which, inputs, grads) for name, make in made.items()}
            self.compare(
                f"{name} {which}",
                case,
                builds,
                num_bytes=num_bytes,
                expected=one_pass(lambda: reference, which, wide_inputs, wide_grads),
                tolerances=[tolerance] * len(grads if which == "forward" else inputs),
            )

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def time(self, call: Call) -> dict[str, Any]:
        """{"ms"} of a call, and on a GPU {"events_ms"}, or why it is not of a graph."""
        if not self.on_gpu:
            return {"ms": 1e3 * median_s(call, repeats=2 if self.smoke else 20)}
        warmup, rep = (1, 2) if self.smoke else (25, 100)
        events_ms = triton.testing.do_bench(call, warmup, rep, return_mode="median")
        if events_ms < GRAPH_BELOW_MS:
            try:
                graph_ms = triton.testing.do_bench_cudagraph(call, rep=rep // 4 or 1, return_mode="median")
                return {"ms": graph_ms, "events_ms": events_ms}
            except RuntimeError as error:
                return {"ms": events_ms, "events_ms": events_ms, "not_capturable": str(error)[:200]}
        return {"ms": events_ms, "events_ms": events_ms}


def measure_ceilings(bench: Bench) -> None:
    """Bytes per second of a copy and FLOP per second of a square matmul, after two seconds for the clocks to settle."""
    dtype, size = torch.bfloat16 if bench.on_gpu else torch.float32, 512 if bench.smoke else 8192
    square = torch.randn(size, size, device=bench.device).to(dtype)
    stop = time.monotonic() + (WARM_UP_S if bench.on_gpu and not bench.smoke else 0.0)
    while time.monotonic() < stop:
        torch.mm(square, square)
        bench.synchronize()
    source = torch.ones(1 << (24 if bench.smoke else 29), dtype=torch.bfloat16, device=bench.device)
    target = torch.empty_like(source)
    copy, product = bench.time(lambda: target.copy_(source)), bench.time(lambda: torch.mm(square, square))
    # By events: as a node of a graph a copy of this size is slower, 2.8 in place of 4.3 TB/s on an H200.
    bench.copy_bytes_per_s = 2e3 * source.nbytes / copy.get("events_ms", copy["ms"])
    bench.matmul_flop_per_s = 2e3 * size**3 / product["ms"]
    bench.emit("device", "copy", **copy, gb_per_s=bench.copy_bytes_per_s / 1e9)
    bench.emit("device", f"matmul {size}^3 {str(dtype)[6:]}", **product, tflop_per_s=bench.matmul_flop_per_s / 1e12)


def one_pass(make: Make, which: str, inputs: Sequence[torch.Tensor], grads: Sequence[torch.Tensor]) -> Call:
    """The call of one pass; the backward pass alone keeps its graph and repeats.

    On copies: Liger writes gradients over what it was given (SwiGLU over its inputs, RMSNorm over dy), which the
    next implementation reads. Its own repeated calls then read what it wrote: no matter for their time.
    """
    function, grads = make(), [grad.clone() for grad in grads]
    leaves = [each.clone().requires_grad_() for each in inputs]
    if which == "forward":
        return lambda: function(*leaves)
    if which == "backward":
        outputs = function(*leaves)
        return lambda: torch.autograd.grad(outputs, leaves, grads, retain_graph=True)
    return lambda: torch.autograd.grad(function(*leaves), leaves, grads)


def error_of(result: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest of the rows' |result - expected| / |expected|; of a scalar (a loss in nats) the difference.

    By rows, because one norm of a whole gradient hides what is missing: the target's -1 outweighs the softmax.
    """
    difference = result.detach().double() - expected.detach().double()
    if not expected.dim():
        return float(difference.abs())
    norms = expected.detach().double().norm(dim=-1).clamp(min=1e-300)
    return float((difference.norm(dim=-1) / norms).max())


def peak_bytes(call: Call) -> int:
    """Most device memory that one call adds (on a CPU bench_linear_cross_entropy.py measures that)."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _against(record: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
    """Time over ours, both by the same clock; and our peak memory over this one's."""
    if "ms" not in ours or "ms" not in record:
        return {}
    clock = "events_ms" if "not_capturable" in ours or "not_capturable" in record else "ms"
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
