"""Chooses launches for the GPU at hand and writes its rows into the table that ado_kernels.ops.launch reads.

    python -m benchmarks.kernels --tune

A row is written where a candidate beats the present entry by more than the noise of timing, or where that cannot run
here; what decides the bits of a sum over rows is no candidate (launch.SAME_BITS), nor is what the launcher refuses on
this architecture. Time alone decides: of linear_cross_entropy's rows per chunk, weigh the memory that they take before
the row is kept (predictions.md). Kernels inside a larger operation are chosen before it, and stay so while it is tuned.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ado_kernels import linear_cross_entropy, rms_norm, rms_norm_rope, swiglu
from ado_kernels.ops import launch_table
from ado_kernels.ops.launch import Key, device_architecture, read_table, using
from benchmarks.kernels.harness import Alarm, Bench, Call
from benchmarks.kernels.linear_cross_entropy import CHUNK_ROWS
from benchmarks.kernels.linear_cross_entropy_baselines import methods

GAIN = 0.02  # a smaller one is noise
VOCABULARY = 50304
COMPILE_BUDGET_S = 60  # of one candidate
TABLE_PATH = Path(launch_table.__file__)
Fields = dict[str, Any]
STAGES: tuple[Fields, ...] = tuple({"stages": stages} for stages in (1, 2, 3, 4))


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
            if bench.out_of_time():
                bench.emit("tune", f"{space.op} {space.key}", skipped="out of time")
                continue
            fields = _choose(bench, space)
            if fields:
                chosen[space.op, space.key] = fields
                if space.within:
                    kept.enter_context(using(space.op, **fields))
    return chosen


def _choose(bench: Bench, space: Space) -> Fields:
    """The fastest candidate; none if the entry as it is comes within `GAIN` of it, or if nothing runs."""
    with using("linear_cross_entropy", **(space.within or {})):
        as_it_is_ms, *milliseconds = [_time_ms(bench, space, fields) for fields in ({}, *space.candidates)]
    best_ms = min(milliseconds, default=math.inf)
    fields = space.candidates[milliseconds.index(best_ms)] if best_ms < (1 - GAIN) * as_it_is_ms else {}
    bench.emit(
        "tune",
        f"{space.op} {space.key}",
        ms=_finite(as_it_is_ms),
        best_ms=_finite(best_ms),
        chosen=fields,
        candidates_ms=[_finite(each) for each in milliseconds],
    )
    return fields


def _time_ms(bench: Bench, space: Space, fields: Fields) -> float:
    """Infinite where it cannot run: too much shared memory for this card, for example."""
    with using(space.op, **fields):
        try:
            with Alarm(COMPILE_BUDGET_S):
                call = space.build()
                call()
            return bench.time_ms(call)
        except Exception:  # noqa: BLE001
            return math.inf


def _finite(milliseconds: float) -> float | None:
    """None for infinite, which JSON does not know."""
    return milliseconds if math.isfinite(milliseconds) else None


def spaces(device: torch.device) -> Iterator[Space]:
    """All that is tuned, most valuable first, for compiling takes seconds and time may run out."""
    yield from _cross_entropy_spaces(device)
    gate, up = (_draw(device, 16384, 5632).detach() for _ in range(2))
    yield Space("swiglu", 0, _each(warps=(2, 4, 8)), lambda: lambda: swiglu(gate, up))
    yield from _rope_spaces(device)
    yield from _norm_spaces(device)


def _cross_entropy_spaces(device: torch.device) -> Iterator[Space]:
    """The kernels inside first, each under its own method."""
    targets = torch.randint(0, VOCABULARY, (16384,), device=device)
    ids = torch.zeros(1, dtype=torch.int64, device=device)
    for width, key in ((2048, 0), (768, 1024)):
        leaves = _draw(device, 16384, width), _draw(device, VOCABULARY, width)

        def train(leaves=leaves) -> Call:
            return lambda: torch.autograd.grad(linear_cross_entropy(*leaves, targets, ids, 1)[0], leaves)

        if width == 2048:
            by_row = _each(block=(2048, 4096, 8192), warps=(4, 8, 16))
            yield Space("softmax_gradient", 0, by_row, train, {"method": "softmax_pass"})
            if "exponentials" in methods(device):
                yield Space("exponentials", 0, _each(stages=(2, 3, 4)), train, {"method": "exponentials"})
        yield Space("linear_cross_entropy", key, _each(rows=CHUNK_ROWS, method=methods(device)), train)


def _rope_spaces(device: torch.device) -> Iterator[Space]:
    table = torch.rand(1024, 128, device=device)
    for width in (64, 128, 256):
        x, weight = _draw(device, 16, 1024, 768 // width, width), _draw(device, width)

        def turn(x=x, weight=weight, table=table[:, : width // 2]) -> torch.Tensor:
            return rms_norm_rope(x, weight, table, table)

        yield Space("rms_norm_rope", width, _tiles(width), lambda turn=turn: turn)
        yield Space("rms_norm_rope_backward", width, STAGES, lambda turn=turn, x=x: _backward(turn(), x))


def _norm_spaces(device: torch.device) -> Iterator[Space]:
    for width in (2048, 4096, 1024, 8192, 512, 256, 16384, 128, 64):
        x, weight = _draw(device, (1 << 25) // width, width), _draw(device, width)

        def norm(x=x, weight=weight) -> torch.Tensor:
            return rms_norm(x, weight)

        yield Space("rms_norm", width, _tiles(width), lambda norm=norm: norm)
        yield Space("rms_norm_backward", width, STAGES, lambda norm=norm, x=x: _backward(norm(), x))


def _draw(device: torch.device, *shape: int) -> torch.Tensor:
    return torch.randn(shape, device=device).bfloat16().requires_grad_()


def _each(**values: Sequence[Any]) -> tuple[Fields, ...]:
    """All combinations of the fields' values."""
    return tuple(dict(zip(values, each, strict=True)) for each in product(*values.values()))


def _tiles(width: int) -> tuple[Fields, ...]:
    """Rows and warps of tiles of 1,024 to 8,192 elements, or one row."""
    rows = [rows for rows in (1, 2, 4, 8, 16, 32, 64) if rows == 1 or 1024 <= rows * width <= 8192]
    return _each(rows=rows, warps=(4, 8, 16))


def _backward(y: torch.Tensor, x: torch.Tensor) -> Call:
    dy = torch.randn_like(y)
    return lambda: torch.autograd.grad(y, x, dy, retain_graph=True)


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

    def literal(value: Any) -> str:
        return f'"{value}"' if isinstance(value, str) else str(value)

    lines = []
    for (op, key, architecture), fields in table.items():
        pairs = ", ".join(f'"{name}": {literal(value)}' for name, value in fields.items())
        lines.append(f'    ("{op}", {key}, "{architecture}"): {{{pairs}}},\n')
    return opening + "= {\n" + "".join(lines) + "}\n"


def write_table(path: Path, table: Mapping[Key, Mapping[str, Any]]) -> None:
    """Checks the rows as the launcher will, then writes them to a temporary file and renames it."""
    read_table(table)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(table_text(table))
    os.replace(temporary, path)
