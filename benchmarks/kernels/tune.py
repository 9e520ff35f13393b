"""Chooses launches for the GPU at hand and writes its rows into the table that ado_kernels.ops.launch reads.

    python -m benchmarks.kernels --tune

A row is written where a candidate beats the present entry by more than the noise of timing; what decides the bits of
a sum over rows is no candidate (launch.SAME_BITS). Kernels inside a larger operation are chosen before it, and stay
so while it is tuned.
"""

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ado_kernels import linear_cross_entropy, rms_norm, rms_norm_rope, swiglu
from ado_kernels.ops import launch_table
from ado_kernels.ops.launch import METHODS, Key, architecture_of, read_table, using
from benchmarks.kernels.harness import Bench, Call

GAIN = 0.02  # a smaller one is noise
ROPE_WIDTHS = (64, 128, 256)
NORM_WIDTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
TABLE_PATH = Path(launch_table.__file__)
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
    architecture = architecture_of(bench.device)
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
    """The fastest candidate; none if the entry as it is comes within `GAIN` of it."""
    call = space.build()
    with using("linear_cross_entropy", **(space.within or {})):
        as_it_is_ms = bench.time_ms(call)
        milliseconds = [_time_ms(bench, call, space.op, fields) for fields in space.candidates]
    best_ms = min(milliseconds)
    fields = space.candidates[milliseconds.index(best_ms)] if best_ms < (1 - GAIN) * as_it_is_ms else {}
    bench.emit(
        "tune", f"{space.op} {space.key}", ms=as_it_is_ms, best_ms=best_ms, chosen=fields, candidates_ms=milliseconds
    )
    return fields


def _time_ms(bench: Bench, call: Call, op: str, fields: Fields) -> float:
    with using(op, **fields):
        try:
            return bench.time_ms(call)
        except Exception:  # noqa: BLE001 - too much shared memory for this card, for example: no candidate
            return float("inf")


def spaces(device: torch.device) -> Iterator[Space]:
    """All that is tuned: widths of the norm, one size of the others, the kernels inside linear_cross_entropy first."""

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).bfloat16().requires_grad_()

    for width in NORM_WIDTHS:
        x, weight, dy = draw((1 << 25) // width, width), draw(width), draw((1 << 25) // width, width).detach()
        norm = [{"rows": rows, "warps": warps} for rows, warps in product((1, 2, 4, 8, 16), (4, 8, 16))]
        yield Space("rms_norm", width, tuple(norm), lambda x=x, w=weight: lambda: rms_norm(x.detach(), w.detach()))
        stages = tuple({"stages": stages} for stages in (1, 2, 3, 4))
        yield Space("rms_norm_backward", width, stages, lambda x=x, w=weight, dy=dy: _backward(rms_norm(x, w), x, dy))
    for width in ROPE_WIDTHS:
        x, weight = draw(16, 1024, 768 // width, width), draw(width)
        table, dy = torch.rand(1024, width // 2, device=device), torch.empty_like(x).detach()
        norm = [{"rows": rows, "warps": warps} for rows, warps in product((4, 8, 16, 32, 64), (2, 4, 8))]
        call = functools.partial(rms_norm_rope, x.detach(), weight.detach(), table, table)
        yield Space("rms_norm_rope", width, tuple(norm), lambda call=call: call)
        y = rms_norm_rope(x, weight, table, table)
        yield Space("rms_norm_rope_backward", width, stages, lambda y=y, x=x, dy=dy: _backward(y, x, dy))
    gate, up = draw(16384, 5632), draw(16384, 5632)
    warps = tuple({"warps": warps} for warps in (2, 4, 8))
    yield Space("swiglu", 0, warps, lambda: lambda: swiglu(gate.detach(), up.detach()))
    for width in (2048, 768):
        hidden, weight = draw(16384, width), draw(50304, width)
        targets, ids = (
            torch.randint(0, 50304, (16384,), device=device),
            torch.zeros(1, dtype=torch.int64, device=device),
        )

        def train(hidden=hidden, weight=weight, targets=targets, ids=ids) -> Call:
            return lambda: torch.autograd.grad(
                linear_cross_entropy(hidden, weight, targets, ids, 1)[0], (hidden, weight)
            )

        if width == 2048:
            warps = tuple({"warps": warps} for warps in (4, 8, 16))
            yield Space("softmax_gradient", 0, warps, train, {"method": "softmax_pass"})
            stages = tuple({"stages": stages} for stages in (2, 3, 4))
            yield Space("exponentials", 0, stages, train, {"method": "exponentials"})
        chunks = [{"rows": r, "method": m} for r, m in product((2048, 4096, 5632, 8192, 16384), METHODS)]
        yield Space("linear_cross_entropy", 1024 if width <= 1024 else 0, tuple(chunks), train)


def _backward(y: torch.Tensor, x: torch.Tensor, dy: torch.Tensor) -> Call:
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
