"""What does keeping freed memory, and letting idle threads sleep, do for the steps of a small model on a CPU?

Both are settings of a process, so each of the six combinations has its own; they are asked for a few steps in turn and
compared round by round with what training sets (ado_stream/train/cpu_tuning.py). Prints tokens/s and a step's time over
ours; no bar.
"""

import multiprocessing
import os
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

from ado_stream.train.cpu_tuning import SPIN_COUNT
from benchmarks.bench_train import CASES, Case, make_step
from benchmarks.common import write_result

SPINS = (0, SPIN_COUNT, 300_000)  # none, ours, the default of GNU's OpenMP


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """nano's speed by freed memory and idle threads: a process each, asked in turn, as ratios to ours."""
    workers = {
        f"memory {'kept' if keep else 'returned'}, {spins} spins": start_variant(case, keep, spins)
        for keep in (True, False)
        for spins in SPINS
    }
    for connection in workers.values():
        connection.recv()  # ready
    ours = f"memory kept, {SPIN_COUNT} spins"
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, connection in workers.items():
            connection.send(case.steps)
            seconds[name].append(connection.recv())
    for connection in workers.values():
        connection.send(0)
    return {
        name: {
            "tokens_per_s": case.rows * case.num_tokens / statistics.median(spent),
            "step_against_ours": statistics.median(a / b for a, b in zip(spent, seconds[ours], strict=True)),
        }
        for name, spent in seconds.items()
    }


def start_variant(case: Case, keep_memory: bool, spins: int) -> Connection:
    """Starts a process with these settings; the connection says when it is ready, see `_variant`."""
    here, there = multiprocessing.Pipe()
    os.environ["GOMP_SPINCOUNT"] = str(spins)  # read when the child imports torch
    multiprocessing.get_context("spawn").Process(target=_variant, args=(there, case, keep_memory), daemon=True).start()
    del os.environ["GOMP_SPINCOUNT"]
    there.close()  # so that a child that dies is noticed
    return here


def _variant(connection: Connection, case: Case, keep_memory: bool) -> None:
    """Says None when it is warm; then answers each number of steps with seconds a step; 0 ends it."""
    import torch

    from ado_stream.train.cpu_tuning import keep_freed_memory

    if keep_memory:
        keep_freed_memory()
    step, _ = make_step(case)
    tokens = torch.randint(case.vocabulary, (case.rows, case.num_tokens + 1))
    domains = torch.randint(case.num_domains, (case.rows,))

    def one() -> None:
        step.update(*step.forward_backward(tokens, domains), 1e-4)

    one()
    connection.send(None)
    while num_steps := connection.recv():
        started = time.perf_counter()
        for _ in range(num_steps):
            one()
        connection.send((time.perf_counter() - started) / num_steps)


def main() -> None:
    load = os.getloadavg()
    write_result("host", {"load_average": load, "variants": measure(CASES["cpu"][0], rounds=15)})


if __name__ == "__main__":
    main()
