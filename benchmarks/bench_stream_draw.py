"""What does a step cost before a byte is read? Draw, cursors and order, whole and for one node of a thousand.

Bar: under 1 ms a step at B = 4096, K = 22, for the draw and the cursors of the whole global batch and the sample ids of
one rank of 1,000. Also: size of the state and time to load it at K = 1000, C = 64, step 1,000,000.
"""

import json
import time

import numpy as np

from ado_stream.stream.batch_draw import DrawSettings, StepDraw, draw_step
from ado_stream.stream.mds_index import MdsIndex
from ado_stream.stream.sample_order import DomainOrder, UpcomingIds
from ado_stream.stream.stream_state import decode_state, encode_state
from benchmarks.common import median_s, write_result


def step_ms(batch: int, domains: int, lanes: int, ranks: int) -> dict[str, float]:
    """Milliseconds a step: draw and cursors of all slots; ids of one rank's slots."""
    mixture_K = np.random.default_rng(0).dirichlet(np.ones(domains))
    orders = [DomainOrder(str(k), np.full(200, 8000), 1, lanes) for k in range(domains)]
    cursors_KC = np.full((domains, lanes), 10_000, np.int64)
    settings = DrawSettings(batch, lanes, 1, "systematic")
    slots = slice(0, max(1, batch // ranks))
    lane_N = (np.arange(batch) * lanes // batch)[slots]
    upcoming = UpcomingIds(orders, range(int(lane_N[-1]) + 1), batch // lanes)
    draws: list[StepDraw] = []

    def draw() -> None:
        draws.append(draw_step(settings, len(draws), mixture_K, cursors_KC))

    def ids() -> None:  # of the next step each time, as a run asks
        nonlocal asked
        step = draws[asked]
        upcoming.at(step.domain_B[slots].astype(np.int64), lane_N, step.position_B[slots])
        asked += 1

    asked = 0
    return {"draw_ms": median_s(draw, 50, 5) * 1e3, "rank_ids_ms": median_s(ids, 50, 5) * 1e3}


def state_cost(domains: int, lanes: int) -> dict[str, float]:
    """Bytes of the state as JSON and milliseconds to load it, a million steps in."""
    indexes = [_index(f"domain{k}") for k in range(domains)]
    identity = {"seed": 1, "canonical_nodes": lanes}
    cursors_KC = np.full((domains, lanes), 1_000_000 * 4096 // (domains * lanes), np.int64)
    pending = {step: np.random.default_rng(step).dirichlet(np.ones(domains)) for step in range(9)}
    text = json.dumps(encode_state(identity, indexes, 1_000_000, cursors_KC, pending))
    load_s = median_s(lambda: decode_state(json.loads(text), identity, indexes), 9)
    return {"state_bytes": len(text), "load_ms": load_s * 1e3}


def first_ids_ms(step: int) -> float:
    """Milliseconds from nothing to the first sample ids of a domain of 10^9 samples at `step`."""
    samples_S = np.full(100_000, 10_000)
    started = time.perf_counter()
    DomainOrder("web", samples_S, 1, 1).ids(0, step * 256, 256)
    return (time.perf_counter() - started) * 1e3


def _index(name: str) -> MdsIndex:
    index = object.__new__(MdsIndex)
    fields = {"name": name, "fingerprint": "0" * 32, "first_id_S": np.array([0, 10**6])}
    for key, value in fields.items():
        object.__setattr__(index, key, value)
    return index


def main() -> None:
    """Prints and writes the table."""
    first_ids_ms(0)  # compiles
    cases = {
        f"B={b} K={k} C={c}, rank of {r}": step_ms(b, k, c, r)
        for b in (256, 4096)
        for k in (22, 1000)
        for c in (1, 64)
        for r in (1, 1000 if b == 4096 else 64)
    }
    write_result(
        "stream_draw",
        {
            "step": cases,
            "state": {"K=1000 C=64": state_cost(1000, 64)},
            "first_ids_of_1e9_samples_ms": {"step 0": first_ids_ms(0), "step 1,000,000": first_ids_ms(1_000_000)},
            "bars": {"B=4096 K=22: draw_ms + rank_ids_ms": 1.0, "state_bytes": 1_000_000, "load_ms": 50},
        },
    )


if __name__ == "__main__":
    main()
