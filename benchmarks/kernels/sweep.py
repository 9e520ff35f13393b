"""What the launch table could say: RMSNorm's backward by rows, warps, programs and stages; tiles of "exponentials".

Rows, warps and programs decide the bits of the weight's gradient, tiles those of a loss: a gain here is a reason
to change the table's row for all architectures, never one card's (launch.py). Last, because cutting it costs nothing.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch

from ado_kernels.ops.launch import using
from benchmarks.kernels import linear_cross_entropy
from benchmarks.kernels.harness import Alarm, Bench
from benchmarks.kernels.linear_cross_entropy_baselines import methods, ours

WIDTHS = (2048, 768, 4096, 8192)
NUM_ROWS = 16384
TILES = ((128, 128, 4), (128, 128, 8), (128, 256, 8))  # rows, words, warps
COMPILE_BUDGET_S = 25


def run_sweep(bench: Bench) -> None:
    """On a GPU: the fastest RMSNorm backward of every width, then the training call by tiles."""
    if not bench.on_gpu:
        bench.emit("sweep", "rms_norm backward", skipped="needs a CUDA GPU")
        return
    for width in WIDTHS:
        _norm_backward(bench, width)
    if "exponentials" in methods(bench.device):
        _tiles(bench)


def _norm_backward(bench: Bench, width: int) -> None:
    """First what one program does (rows, warps), then, with the best of that, how many there are and how deep."""
    from ado_kernels.ops.rms_norm import gpu

    x, dy = (torch.randn(NUM_ROWS, width, device=bench.device).bfloat16() for _ in range(2))
    weight = torch.ones(width, device=bench.device).bfloat16()
    _, rstd, _ = gpu.forward_gpu(x, None, weight, 1e-6)

    def milliseconds(fields: dict[str, Any]) -> float | None:
        return _milliseconds(bench, "rms_norm_backward", fields, lambda: gpu.backward_gpu(dy, None, x, weight, rstd))

    shapes = [{"rows": rows, "warps": warps} for rows, warps in product((1, 2, 4), (4, 8, 16)) if rows * width <= 8192]
    best = _fastest(bench, f"rms_norm backward D={width} rows, warps", shapes, milliseconds)
    grids = [{**best, "programs": n, "stages": s} for n, s in product((132, 264, 528, 1056), (1, 2, 3))]
    _fastest(bench, f"rms_norm backward D={width} programs, stages", grids, milliseconds)


def _tiles(bench: Bench) -> None:
    for shape in linear_cross_entropy.bar_shapes(bench):
        call = linear_cross_entropy.training(lambda: ours, linear_cross_entropy.draw(bench, shape))()

        def milliseconds(fields: dict[str, Any], call: Callable = call) -> float | None:
            with tile(fields["long"], fields["wide"]), using("linear_cross_entropy", method="exponentials"):
                return _milliseconds(bench, "exponentials", {"warps": fields["warps"]}, call)

        candidates = [{"long": long, "wide": wide, "warps": warps} for long, wide, warps in TILES]
        _fastest(bench, f"exponentials {shape}", candidates, milliseconds)


@contextmanager
def tile(long: int, wide: int) -> Iterator[None]:
    """Runs the body with other output tiles in the matmul of "exponentials"."""
    from ado_kernels.ops.linear_cross_entropy.exponentials import TILE

    before = dict(TILE)
    TILE.update(LONG=long, WIDE=wide)
    try:
        yield
    finally:
        TILE.update(before)


def _milliseconds(bench: Bench, op: str, fields: dict[str, Any], call: Callable) -> float | None:
    """None where this card refuses the launch, or compiling it takes too long."""
    try:
        with using(op, **fields), Alarm(COMPILE_BUDGET_S):
            call()
            return bench.time_ms(call)
    except Exception:  # noqa: BLE001 - a candidate, not what is shipped
        return None


def _fastest(
    bench: Bench,
    case: str,
    candidates: Iterable[dict[str, Any]],
    milliseconds: Callable[[dict[str, Any]], float | None],
) -> dict[str, Any]:
    """The fastest candidate, recorded with the times of all; empty if none was tried or none ran."""
    tried = [(fields, milliseconds(fields)) for fields in candidates if not bench.out_of_time()]
    ran = [(fields, ms) for fields, ms in tried if ms is not None]
    best, best_ms = min(ran, key=lambda one: one[1], default=({}, None))
    bench.emit("sweep", case, ms=best_ms, best=best, tried=[{**fields, "ms": ms} for fields, ms in tried])
    return best
