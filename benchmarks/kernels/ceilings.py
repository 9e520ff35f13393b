"""How fast are this card's memory and matrix units? The denominators of every floor.

Bytes per second of a copy; FLOP per second of a square matmul, the card's ceiling, of which bars are shares; and of
linear_cross_entropy's own three, each with its operands laid out as they are there. The own ones say what a library's
matmul reaches at these shapes: what is missing from there on is ours.
"""

import time
from typing import Any

import torch

from benchmarks.kernels.harness import Bench, judged_ms, time_limit

WARM_UP_S = 2.0
START_BUDGET_S = 60  # of torch.compile: it imports and starts workers, and an import that is cut may stay half done
VOCABULARY, WIDTHS, CHUNK_ROWS = 50304, (768, 2048), (4096, 5632)
SMOKE_SIZES = (2048, (64,), (512,))
FORWARD, TRAINING = ("logits",), ("logits", "dX", "dW")  # matmuls of a loss, and of a loss with both gradients


def run_device(bench: Bench) -> None:
    """Measures and keeps all rates; on a GPU after two seconds of work, for the clocks to settle."""
    dtype = torch.bfloat16 if bench.on_gpu else torch.float32
    size = 512 if bench.smoke else 8192
    square = torch.randn(size, size, device=bench.device).to(dtype)
    stop = time.monotonic() + (WARM_UP_S if bench.on_gpu and not bench.smoke else 0.0)
    while time.monotonic() < stop:
        torch.mm(square, square)
        bench.synchronize()
    source = torch.ones(1 << (24 if bench.smoke else 29), dtype=torch.bfloat16, device=bench.device)
    target = torch.empty_like(source)
    times = bench.times(lambda: target.copy_(source))
    bench.copy_bytes_per_s = 2e3 * source.nbytes / judged_ms(times)
    bench.emit("device", "copy", **times, gb_per_s=bench.copy_bytes_per_s / 1e9)
    bench.matmul_flop_per_s = _rate(bench, "square", square, square)
    _start_compiler(bench, square)
    vocabulary, widths, chunks = SMOKE_SIZES if bench.smoke else (VOCABULARY, WIDTHS, CHUNK_ROWS)
    for width in widths:
        for rows in chunks:
            for name, rate in own_rates(bench, rows, width, vocabulary, dtype).items():
                bench.own_flop_per_s[name, width] = max(rate, bench.own_flop_per_s.get((name, width), 0.0))


def own_rates(bench: Bench, rows: int, width: int, vocabulary: int, dtype: torch.dtype) -> dict[str, float]:
    """FLOP per second of the matmuls of one chunk: logits = x W^T, and in float32 dX = g W, dW = g^T x."""
    sizes = ((rows, width), (vocabulary, width), (rows, vocabulary))
    x_CH, weight_VH, g_CV = (torch.randn(size, device=bench.device).to(dtype) for size in sizes)
    wide = {"out_dtype": torch.float32} if bench.on_gpu else {}
    return {
        "logits": _rate(bench, f"logits H={width}", x_CH, weight_VH.t()),
        "dX": _rate(bench, f"dX H={width}", g_CV, weight_VH, **wide),
        "dW": _rate(bench, f"dW H={width}", g_CV.t(), x_CH, **wide),
    }


def own_floor_ms(bench: Bench, products: tuple[str, ...], num_flops: float, width: int) -> float | None:
    """Milliseconds of these matmuls, `num_flops` each, at their own rates; None where they were not measured."""
    rates = [bench.own_flop_per_s.get((name, width)) for name in products]
    return None if None in rates else sum(1e3 * num_flops / rate for rate in rates if rate)


def _start_compiler(bench: Bench, x: torch.Tensor) -> None:
    """Compiles anything: torch.compile's own start would count against its first case. Where it fails, so will they."""
    try:
        with time_limit(START_BUDGET_S):
            bench.compiled(torch.neg)(x)
    except Exception as error:  # noqa: BLE001 - a baseline; the ceilings are ours
        bench.emit("device", "torch.compile starts", failed=f"{type(error).__name__}: {error}"[:300])


def _rate(bench: Bench, name: str, a: torch.Tensor, b: torch.Tensor, **wide: Any) -> float:
    times = bench.times(lambda: torch.mm(a, b, **wide))
    rate = 2e3 * a.shape[0] * a.shape[1] * b.shape[1] / judged_ms(times)
    case = f"matmul {name} {a.shape[0]}x{a.shape[1]}x{b.shape[1]}"
    bench.emit("device", case, **times, tflop_per_s=rate / 1e12, dtype=str(a.dtype)[6:])
    return rate
