"""How many samples repeat too early when proportions change at a resume? StreamingDataset against ours.

Theirs: a quarter of an epoch, state saved, loaded with other proportions, the next 1,000 samples compared with those
already served. Ours: the mixture changed at random at every step, a resume every 1,000 steps, over a million draws; a
repeat is a sample that comes again before all of its lane's share came once. Prints both counts. Bar: none of ours.
"""

import itertools
import tempfile
from pathlib import Path

import numpy as np

import ado_stream as ado
from benchmarks.common import bar, size, write_result
from benchmarks.stream_data import BATCH, NUM_DOMAINS, our_domains, write_domains

SAMPLES, COMPARED, DRAWS, RESUME_STEPS, SEEDS = size((2000, 1000, 1_000_000, 1000, 4), (64, 20, 3000, 5, 1))


def their_repeats(local: Path, names: list[str], seed: int) -> int:
    """Of the 1,000 samples after the change, how many had been served before it."""
    from streaming import Stream, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    def served(proportions: np.ndarray, state: dict | None, count: int) -> tuple[list[tuple[int, ...]], dict]:
        clean_stale_shared_memory()
        streams = [Stream(local=str(local / n), proportion=float(p)) for n, p in zip(names, proportions, strict=True)]
        dataset = StreamingDataset(
            streams=streams, batch_size=1, shuffle=True, shuffle_seed=seed, num_canonical_nodes=1
        )
        if state is not None:
            dataset.load_state_dict(state)
        rows = [tuple(int(t) for t in row["tokens"][:2]) for row in itertools.islice(dataset, count)]
        return rows, dataset.state_dict(num_samples=count, from_beginning=False)

    rng = np.random.default_rng(seed)
    before, state = served(rng.dirichlet(np.ones(NUM_DOMAINS)), None, SAMPLES * NUM_DOMAINS // 4)
    after, _ = served(rng.dirichlet(np.ones(NUM_DOMAINS)), state, COMPARED)
    return sum(row in set(before) for row in after)


def our_repeats(local: Path, names: list[str], draws: int) -> dict[str, int]:
    """Repeats within a lane's share, over `draws` samples of the real data set's ids."""
    domains, lanes, batch = our_domains(local, names), 4, 4 * BATCH

    def fresh() -> ado.AdaptiveStreamingDataset:
        return ado.AdaptiveStreamingDataset(domains, global_batch_size=batch, canonical_nodes=lanes, mixture_lag=0)

    rng = np.random.default_rng(0)
    dataset = fresh()
    served: dict[tuple[int, int], list[int]] = {}
    for step in range(draws // batch + 1):
        dataset.publish(step, rng.dirichlet(np.full(NUM_DOMAINS, 0.5)))
        if step % RESUME_STEPS == RESUME_STEPS - 1:
            state = dataset.state_dict()
            dataset.close()
            dataset = fresh()
            dataset.load_state_dict(state)
        if not dataset.running:
            dataset.start(prefetch=0, io_threads=0)
        batch_rows = dataset.next_batch()
        ids = dataset.sample_ids(step)
        lane = np.arange(batch) * lanes // batch
        for domain, c, sample in zip(batch_rows["domain"].tolist(), lane.tolist(), ids.tolist(), strict=True):
            served.setdefault((domain, c), []).append(sample)
    dataset.close()
    share = SAMPLES // lanes
    epochs = [drawn[begin : begin + share] for drawn in served.values() for begin in range(0, len(drawn), share)]
    repeats = sum(len(epoch) - len(set(epoch)) for epoch in epochs)
    return {"draws": sum(map(len, epochs)), "repeats": repeats}


def main() -> None:
    """Prints and writes both counts."""
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder)
        names = write_domains(local, SAMPLES, None)
        theirs = [their_repeats(local, names, seed) for seed in range(SEEDS)]
        ours = our_repeats(local, names, DRAWS)
    held = [bar("repeats of ours", ours["repeats"], 0)]
    write_result("stream_repeats", {"streaming_of_next_1000": theirs, "ours": ours}, held)


if __name__ == "__main__":
    main()
