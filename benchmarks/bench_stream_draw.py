"""What does a step cost before a byte is read? Draw, cursors and order, whole and for one node of a thousand.

Prints milliseconds of the draw and the cursors of the whole global batch, and of one rank's sample ids, by batch B,
domains K and lanes C; size of the state and time to load it at K = 1000, C = 64, step 1,000,000. Bars, in times that
NumPy takes to permute 4,096 numbers: 20 for draw and ids at B = 4096, K = 22, one rank of 1,000; 150 for all ids at
B = 8192, K = 1000, C = 64 (5 ms, at 33 us a permutation), and 600 for the worst step, which is the first. The state has
at most 1,000,000 bytes and is loaded in at most 5 times what JSON takes to read it. Milliseconds are the processor's in
this thread alone, which other work on the machine lengthens least.
"""

import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ado_stream.stream.batch_draw import DrawSettings, StepDraw, draw_step
from ado_stream.stream.index_content import IndexContent
from ado_stream.stream.mds_index import MdsIndex, make_index
from ado_stream.stream.sample_order import DomainOrder, UpcomingIds
from ado_stream.stream.stream_state import decode_state, encode_state
from benchmarks.common import bar, seconds_in_turn, write_result


def step_ms(batch: int, domains: int, lanes: int, ranks: int) -> dict[str, float]:
    """Milliseconds a step: draw and cursors of all slots; ids of one rank's slots."""
    mixture_K = np.random.default_rng(0).dirichlet(np.ones(domains))
    orders = [DomainOrder(str(k), np.full(200, 8000), 1, lanes) for k in range(domains)]
    cursors_KC = np.full((domains, lanes), 10_000, np.int64)
    settings = DrawSettings(batch, lanes, 1, "systematic")
    slots = slice(0, max(1, batch // ranks))
    lane_N = (np.arange(batch) * lanes // batch)[slots]
    upcoming = UpcomingIds(orders, range(int(lane_N[-1]) + 1))
    draws: list[StepDraw] = []
    asked = itertools.count()

    def draw() -> None:
        draws.append(draw_step(settings, len(draws), mixture_K, cursors_KC))

    def ids() -> None:  # of the next step each time, as a run asks
        step = draws[next(asked)]
        upcoming.at(step.domain_B[slots].astype(np.int64), lane_N, step.position_B[slots])

    draw_ms = thread_ms(draw, 150, 5)
    ids_s = seconds_in_turn([ids], 150, 0, time.thread_time)[0]  # the first steps plan epochs of every domain and lane
    steady_ms = statistics.median(ids_s[-50:]) * 1e3
    return {"draw_ms": draw_ms, "rank_ids_ms": steady_ms, "worst_ids_ms": max(ids_s) * 1e3}


def state_cost(domains: int, lanes: int) -> dict[str, float]:
    """Bytes of the state as JSON and milliseconds to load it, a million steps in."""
    indexes = [_index(f"domain{k}") for k in range(domains)]
    identity = {"seed": 1, "canonical_nodes": lanes, "global_batch_size": 4096, "batch_seq_len": None}
    cursors_KC = np.full((domains, lanes), 1_000_000 * 4096 // (domains * lanes), np.int64)
    pending = {step: np.random.default_rng(step).dirichlet(np.ones(domains)) for step in range(9)}
    text = json.dumps(encode_state(identity, indexes, {}, 1_000_000, cursors_KC, pending))
    calls = [lambda: decode_state(json.loads(text), identity, indexes, {}), lambda: json.loads(text)]
    load_s, json_s = map(statistics.median, seconds_in_turn(calls, 9, clock=time.thread_time))
    return {"state_bytes": len(text), "load_ms": load_s * 1e3, "load_over_json": load_s / json_s}


def first_ids_ms(step: int) -> float:
    """Milliseconds from nothing to the first sample ids of a domain of 10^9 samples at `step`."""
    samples_S = np.full(100_000, 10_000)
    return thread_ms(lambda: DomainOrder("web", samples_S, 1, 1).ids(0, step * 256, 256), 5)


def thread_ms(call: Callable[[], Any], repeats: int, warmup: int = 1) -> float:
    """Median milliseconds of the processor in this thread."""
    return statistics.median(seconds_in_turn([call], repeats, warmup, time.thread_time)[0]) * 1e3


def _index(name: str) -> MdsIndex:
    file = np.array([(b"shard.mds", 1)], [("basename", "S9"), ("bytes", "<i8")])
    layout = (("tokens", "bytes", None),)
    content = IndexContent(np.array([10**6]), file, file, None, layout, "0" * 32, "0" * 32)
    return make_index(content, name, None, Path("/"))


def main() -> None:
    """Prints and writes the table."""
    cases = {
        f"B={b} K={k} C={c}, rank of {r}": step_ms(b, k, c, r)
        for b in (256, 4096)
        for k in (22, 1000)
        for c in (1, 64)
        for r in (1, 1000 if b == 4096 else 64)
    }
    permutation_ms = thread_ms(lambda: np.random.default_rng(0).permutation(4096), 200, 5)
    many = step_ms(8192, 1000, 64, 1)
    one = cases["B=4096 K=22 C=1, rank of 1000"]
    whole_ms = one["draw_ms"] + one["rank_ids_ms"]
    state = state_cost(1000, 64)
    first_ids = {"step 0": first_ids_ms(0), "step 1,000,000": first_ids_ms(1_000_000)}
    payload = {
        "step": {**cases, "B=8192 K=1000 C=64, rank of 1": many},
        "permutation_ms": permutation_ms,
        "state": {"K=1000 C=64": state},
    }
    bars = [
        bar("draw and ids over a permutation of 4,096 numbers", whole_ms / permutation_ms, 20),
        bar("ids at B = 8192, K = 1000, C = 64, in such permutations", many["rank_ids_ms"] / permutation_ms, 150),
        bar("their worst step, in such permutations", many["worst_ids_ms"] / permutation_ms, 600),
        bar("bytes of the state", state["state_bytes"], 1_000_000),
        bar("loading the state over json.loads", state["load_over_json"], 5),
    ]
    write_result("stream_draw", {**payload, "first_ids_of_1e9_samples_ms": first_ids}, bars)


if __name__ == "__main__":
    main()
