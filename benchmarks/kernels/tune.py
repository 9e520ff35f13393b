"""Which launches are fastest on the GPU at hand? Writes its rows of the table that ado_kernels.ops.launch reads.

    python -m benchmarks.kernels --tune

A row is written where a candidate beats the present entry by more than the noise of timing, or where that cannot run
here; what decides the bits of a sum over rows is no candidate (launch.SAME_BITS). Time alone decides: of
linear_cross_entropy's rows per chunk, weigh the memory that they take before the row is kept (predictions.md).
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ado_kernels import linear_cross_entropy, rms_norm, rms_norm_rope, swiglu
from ado_kernels.ops import launch_table
from ado_kernels.ops.launch import Key, device_architecture, using
from ado_stream.durable import write_durably
from benchmarks.kernels.harness import COMPILE_BUDGET_S, Bench, Call, time_limit
from benchmarks.kernels.linear_cross_entropy import CHUNK_ROWS

GAIN = 0.02  # a smaller one is noise
TABLE_PATH = Path(launch_table.__file__)
Fields = dict[str, Any]
Space = tuple[str, int, tuple[Fields, ...], Callable[[], Call]]  # operation, size class, candidates, what to time


def run_tune(bench: Bench) -> None:
    """Tries every space and writes the table."""
    architecture = device_architecture(bench.device)
    rows = with_rows(launch_table.TABLE, architecture, choose_all(bench, spaces(bench.device)))
    write_durably(TABLE_PATH, table_text(rows))
    bench.emit("tune", "table", written=str(TABLE_PATH), architecture=architecture)


def choose_all(bench: Bench, every: Iterable[Space]) -> dict[tuple[str, int], Fields]:
    """(operation, size class) -> the fields to change, for those that gain."""
    chosen = {}
    for op, key, candidates, build in every:
        if bench.out_of_time("tune", f"{op} {key}"):
            break
        present, *times = [_time_ms(bench, op, fields, build) for fields in ({}, *candidates)]
        best = min(times, default=math.inf)
        if best < (1 - GAIN) * present:
            chosen[op, key] = candidates[times.index(best)]
        tried = [fields | {"ms": str(ms)} for fields, ms in zip(candidates, times, strict=True)]
        bench.emit("tune", f"{op} {key}", ms=str(present), chosen=chosen.get((op, key), {}), candidates=tried)
    return chosen


def _time_ms(bench: Bench, op: str, fields: Fields, build: Callable[[], Call]) -> float:
    """Infinite where it cannot run: too much shared memory for this card, for example."""
    try:
        with using(op, **fields):
            with time_limit(COMPILE_BUDGET_S):
                call = build()
                call()
            return float(bench.time(call)["ms"])
    except Exception:  # noqa: BLE001 - a candidate, not what is shipped
        return math.inf


def spaces(device: torch.device) -> Iterator[Space]:
    """All that is tuned, most valuable first, for compiling takes seconds and time may run out."""

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).bfloat16().requires_grad_()

    targets = torch.randint(0, 50304, (16384,), device=device)
    ids = torch.zeros(1, dtype=torch.int64, device=device)
    for width, key in ((2048, 0), (768, 1024)):
        leaves = draw(16384, width), draw(50304, width)

        def train(leaves: tuple[torch.Tensor, torch.Tensor] = leaves) -> Call:
            return lambda: torch.autograd.grad(linear_cross_entropy(*leaves, targets, ids, 1)[0], leaves)

        if width == 2048:
            yield "softmax_gradient", 0, _each(block=(2048, 4096, 8192), warps=(4, 8, 16)), train
        yield "linear_cross_entropy", key, _each(rows=CHUNK_ROWS), train
    gate, up = (draw(16384, 5632).detach() for _ in range(2))
    yield "swiglu", 0, _each(warps=(2, 4, 8)), lambda: lambda: swiglu(gate, up)
    table = torch.rand(1024, 128, device=device)
    for width in (64, 128, 256):
        inputs = draw(16, 1024, 768 // width, width), draw(width), *[table[:, : width // 2]] * 2
        yield from _norm_spaces("rms_norm_rope", rms_norm_rope, inputs)
    for width in (2048, 4096, 1024, 8192, 512, 256, 16384, 128, 64):
        yield from _norm_spaces("rms_norm", rms_norm, (draw((1 << 25) // width, width), draw(width)))


def _norm_spaces(op: str, function: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> Iterator[Space]:
    """Forward: tiles of 1,024 to 8,192 elements, or of one row. Backward: stages, the rest decides bits."""
    width = inputs[0].shape[-1]
    rows = [rows for rows in (1, 2, 4, 8, 16, 32, 64) if rows == 1 or 1024 <= rows * width <= 8192]
    yield op, width, _each(rows=rows, warps=(4, 8, 16)), lambda: lambda: function(*inputs)

    def backward() -> Call:
        y = function(*inputs)
        dy = torch.randn_like(y)
        return lambda: torch.autograd.grad(y, inputs[0], dy, retain_graph=True)

    yield f"{op}_backward", width, _each(stages=(1, 2, 3, 4)), backward


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
