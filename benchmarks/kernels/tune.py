"""Which launches are fastest on the GPU at hand? Writes its rows of the table that ado_kernels.ops.launch reads.

    python -m benchmarks.kernels --tune

A row is written where a candidate beats the present entry by more than the noise of timing, or where that cannot run
here; what decides the bits of a sum over rows is no candidate (launch.SAME_BITS), nor is what the launcher refuses on
this architecture. Time alone decides: of linear_cross_entropy's rows per chunk, weigh the memory that they take before
the row is kept (predictions.md). Kernels inside a larger operation are chosen before it, and stay so while it is tuned.

The sweep, last in a run of the benchmark, times what does decide bits: rows, warps, programs and stages of RMSNorm's
backward pass, and tiles of "exponentials". A gain there is a reason to change the row for all architectures.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from ado_kernels import linear_cross_entropy, rms_norm, rms_norm_rope, swiglu
from ado_kernels.ops import launch_table
from ado_kernels.ops.launch import Key, device_architecture, read_table, using
from ado_stream.durable import write_durably
from benchmarks.kernels import linear_cross_entropy as loss
from benchmarks.kernels.harness import Bench, Call, time_limit

GAIN = 0.02  # a smaller one is noise
VOCABULARY = 50304
COMPILE_BUDGET_S = 60  # of one candidate
TABLE_PATH = Path(launch_table.__file__)
SWEPT_WIDTHS = (2048, 768, 4096, 8192)
TILES = ((128, 128, 4), (128, 128, 8), (128, 256, 8))  # rows, words, warps
Fields = dict[str, Any]


@dataclass(frozen=True)
class Space:
    """What may change in the entry of one operation and size class, and a call that runs it."""

    op: str
    key: int
    candidates: tuple[Fields, ...]
    build: Callable[[], Call]
    within: Fields | None = None  # fields of linear_cross_entropy under which the call uses this kernel


def run_tune(bench: Bench) -> None:
    """Tries every space and writes the table."""
    architecture = device_architecture(bench.device)
    write_table(TABLE_PATH, with_rows(launch_table.TABLE, architecture, choose_all(bench, spaces(bench.device))))
    bench.emit("tune", "table", written=str(TABLE_PATH), architecture=architecture)


def choose_all(bench: Bench, every: Iterator[Space]) -> dict[tuple[str, int], Fields]:
    """(op, size class) -> the fields to change, for those that gain."""
    chosen = {}
    with ExitStack() as kept:
        for space in every:
            with using("linear_cross_entropy", **(space.within or {})):
                fields = _fastest(bench, "tune", f"{space.op} {space.key}", space.op, space.candidates, space.build)
            if fields:
                chosen[space.op, space.key] = fields
                if space.within:
                    kept.enter_context(using(space.op, **fields))
    return chosen


def _fastest(
    bench: Bench, section: str, case: str, op: str, candidates: Sequence[Fields], build: Callable[[], Call]
) -> Fields:
    """The fastest candidate; none if the entry as it is comes within `GAIN` of it, if nothing runs, or time is up."""
    if bench.out_of_time(section, case):
        return {}
    as_it_is_ms, *milliseconds = [_time_ms(bench, op, fields, build) for fields in ({}, *candidates)]
    best_ms = min(milliseconds, default=math.inf)
    fields = candidates[milliseconds.index(best_ms)] if best_ms < (1 - GAIN) * as_it_is_ms else {}
    tried = [{**fields, "ms": _finite(ms)} for fields, ms in zip(candidates, milliseconds, strict=True)]
    bench.emit(section, case, ms=_finite(as_it_is_ms), best_ms=_finite(best_ms), chosen=fields, candidates=tried)
    return fields


def _time_ms(bench: Bench, op: str, fields: Fields, build: Callable[[], Call]) -> float:
    """Infinite where it cannot run (too much shared memory for this card, for example) or time is up."""
    if bench.over:
        return math.inf
    try:
        with using(op, **fields):
            with time_limit(COMPILE_BUDGET_S):
                call = build()
                call()
            return bench.time_ms(call)
    except Exception:  # noqa: BLE001 - a candidate, not what is shipped
        return math.inf


def _finite(milliseconds: float) -> float | None:
    """None for infinite, which JSON does not know."""
    return milliseconds if math.isfinite(milliseconds) else None


def spaces(device: torch.device) -> Iterator[Space]:
    """All that is tuned, most valuable first, for compiling takes seconds and time may run out."""
    yield from _loss_spaces(device)
    gate, up = (_draw(device, 16384, 5632).detach() for _ in range(2))
    yield Space("swiglu", 0, _each(warps=(2, 4, 8)), lambda: lambda: swiglu(gate, up))
    table = torch.rand(1024, 128, device=device)
    for width in (64, 128, 256):
        x, weight = _draw(device, 16, 1024, 768 // width, width), _draw(device, width)
        yield from _norm_spaces("rms_norm_rope", width, x, weight, rms_norm_rope, *[table[:, : width // 2]] * 2)
    for width in (2048, 4096, 1024, 8192, 512, 256, 16384, 128, 64):
        x, weight = _draw(device, (1 << 25) // width, width), _draw(device, width)
        yield from _norm_spaces("rms_norm", width, x, weight, rms_norm)


def _loss_spaces(device: torch.device) -> Iterator[Space]:
    """The kernels inside first, each under its own method."""
    targets = torch.randint(0, VOCABULARY, (16384,), device=device)
    ids = torch.zeros(1, dtype=torch.int64, device=device)
    for width, key in ((2048, 0), (768, 1024)):
        leaves = _draw(device, 16384, width), _draw(device, VOCABULARY, width)

        def train(leaves: tuple[torch.Tensor, torch.Tensor] = leaves) -> Call:
            return lambda: torch.autograd.grad(linear_cross_entropy(*leaves, targets, ids, 1)[0], leaves)

        if width == 2048:
            by_row = _each(block=(2048, 4096, 8192), warps=(4, 8, 16))
            yield Space("softmax_gradient", 0, by_row, train, {"method": "softmax_pass"})
            if "exponentials" in loss.methods(device):
                yield Space("exponentials", 0, _each(stages=(2, 3, 4)), train, {"method": "exponentials"})
        chunks = _each(rows=loss.CHUNK_ROWS, method=loss.methods(device))
        yield Space("linear_cross_entropy", key, chunks, train)


def _norm_spaces(
    op: str, width: int, x: torch.Tensor, weight: torch.Tensor, function: Callable, *angles: torch.Tensor
) -> Iterator[Space]:
    """Forward: tiles of 1,024 to 8,192 elements, or of one row. Backward: stages, the rest decides bits."""
    rows = [rows for rows in (1, 2, 4, 8, 16, 32, 64) if rows == 1 or 1024 <= rows * width <= 8192]
    yield Space(op, width, _each(rows=rows, warps=(4, 8, 16)), lambda: lambda: function(x, weight, *angles))

    def backward() -> Call:
        y = function(x, weight, *angles)
        dy = torch.randn_like(y)
        return lambda: torch.autograd.grad(y, x, dy, retain_graph=True)

    yield Space(f"{op}_backward", width, _each(stages=(1, 2, 3, 4)), backward)


def run_sweep(bench: Bench) -> None:
    """On a GPU: the fastest RMSNorm backward of every width, then the training call by tiles."""
    if not bench.on_gpu:
        bench.emit("sweep", "rms_norm backward", skipped="needs a CUDA GPU")
        return
    for width in SWEPT_WIDTHS:
        x, weight = _draw(bench.device, 16384, width), _draw(bench.device, width)
        *_, space = _norm_spaces("rms_norm", width, x, weight, rms_norm)
        case = f"rms_norm backward D={width}"
        rows = [rows for rows in (1, 2, 4) if rows * width <= 8192]
        tiles = _each(rows=rows, warps=(4, 8, 16))
        found = _fastest(bench, "sweep", f"{case} rows, warps", space.op, tiles, space.build)
        grids = [{**found, **each} for each in _each(programs=(132, 264, 528, 1056), stages=(1, 2, 3))]
        _fastest(bench, "sweep", f"{case} programs, stages", space.op, grids, space.build)
    for shape in loss.bar_shapes(bench) if "exponentials" in loss.methods(bench.device) else ():
        inputs = loss.draw(bench, shape)
        for long, wide, warps in TILES:
            tile = patch.dict("ado_kernels.ops.linear_cross_entropy.exponentials.TILE", LONG=long, WIDE=wide)
            with tile, using("linear_cross_entropy", method="exponentials"):
                case, build = f"exponentials {shape} {long}x{wide}", loss.training(lambda: loss.ours, inputs)
                _fastest(bench, "sweep", case, "exponentials", [{"warps": warps}], build)


def _draw(device: torch.device, *shape: int) -> torch.Tensor:
    return torch.randn(shape, device=device).bfloat16().requires_grad_()


def _each(**values: Sequence[Any]) -> tuple[Fields, ...]:
    """All combinations of the fields' values."""
    return tuple(dict(zip(values, each, strict=True)) for each in product(*values.values()))


def with_rows(
    table: Mapping[Key, Mapping[str, Any]], architecture: str, chosen: Mapping[tuple[str, int], Fields]
) -> dict[Key, Fields]:
    """`table` with the chosen fields in this architecture's rows, which start from the rows for all; sorted."""
    rows = {key: dict(fields) for key, fields in table.items()}
    for (op, key), fields in chosen.items():
        rows[op, key, architecture] = {**rows.get((op, key, architecture), rows[op, key, ""]), **fields}
    return dict(sorted(rows.items()))


def table_text(table: Mapping[Key, Mapping[str, Any]]) -> str:
    """The source of launch_table.py with these rows."""
    opening = TABLE_PATH.read_text().split("= {\n")[0]
    rows = [f"    ({json.dumps(key)[1:-1]}): {json.dumps(fields)},\n" for key, fields in table.items()]
    return f"{opening}= {{\n{''.join(rows)}}}\n"


def write_table(path: Path, table: Mapping[Key, Mapping[str, Any]]) -> None:
    """Checks the rows as the launcher will, then writes them."""
    read_table(table)
    write_durably(path, table_text(table))
