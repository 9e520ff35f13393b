"""Losses whose sums round, observed in parts by several ranks; rank 0 writes the mixtures of all ranks as JSON."""

import itertools
import json
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

import ado_stream as ado
from ado_stream.train.distributed import join_process_group

NUM_STEPS, LAG, NUM_PARTS = 30, 2, 4
OPTIONS = {"start_step": 2, "ignore_steps": 0, "interval": 3, "fit": {"every": 1}}


def part(step: int, number: int, num_domains: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss sums, token counts) (K,) of a quarter of the step's batch."""
    generator = np.random.default_rng([step, number])
    counts = generator.integers(1, 90, num_domains)
    sums = counts * (2.0 + (step + 1.0) ** -np.linspace(0.2, 0.7, num_domains)) * generator.uniform(0.97, 1.03)
    return torch.from_numpy(sums), torch.from_numpy(counts)


def main(corpus: str, order: list[int], out: str) -> None:
    """order: the four parts in the order in which ranks take them, an equal number each."""
    with join_process_group("cpu", 60) as context:
        dataset = ado.AdaptiveStreamingDataset(
            ado.open_corpus(corpus).domains, global_batch_size=8, mixture_lag=LAG, seed=3
        )
        policy = ado.make_policy("ado", dict(zip(dataset.names, dataset.prior.tolist(), strict=True)), **OPTIONS)
        share = NUM_PARTS // context.size
        mine = order[context.rank * share : (context.rank + 1) * share]
        mixtures = []
        with ado.AdaptiveLoader(dataset, policy=policy, prefetch=0) as loader:
            for batch in itertools.islice(loader, NUM_STEPS):
                mixtures.append(loader.mixture.tobytes().hex())
                parts = [part(batch["step"], number, len(dataset.names)) for number in mine]
                loader.observe(sum(sums for sums, _ in parts), sum(counts for _, counts in parts))
        every = [mixtures]
        if context.size > 1:
            every = [None] * context.size
            dist.all_gather_object(every, mixtures)
        if context.is_main:
            Path(out).write_text(json.dumps(every))
