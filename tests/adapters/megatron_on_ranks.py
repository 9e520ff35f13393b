"""The Megatron adapter on four ranks, two pipeline stages of two tensor parallel ranks each: what each observes.

The first stage takes all of its micro-batches before the last has any, as a pipeline does while it fills.
"""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ado_stream.corpus import open_corpus
from ado_stream.loader import AdaptiveLoader
from ado_stream.stream.dataset import AdaptiveStreamingDataset
from tests.adapters import stand_ins

MICRO_BATCH_SIZE, NUM_PARTS = 2, 4


def main(corpus: str, steps: int, saved_at: int, state: dict | None, out: str) -> None:
    """Trains to `steps`, from `state` on if given; rank 0 writes what is asserted on, and the state of `saved_at`."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    stage, tensor_rank = divmod(rank, 2)
    tensor_group = [dist.new_group([0, 1]), dist.new_group([2, 3])][stage]
    with pytest.MonkeyPatch.context() as patch:
        modules = stand_ins.megatron_core(NUM_PARTS, (tensor_rank, 2), (stage, 2), tensor_group)
        adapter = stand_ins.import_adapter(patch, "megatron", modules)

        def make_loader(*, rank, world_size, group):
            dataset = AdaptiveStreamingDataset(
                open_corpus(corpus), global_batch_size=8, mixture_lag=2, rank=rank, world_size=world_size
            )
            learning = {"start_step": 4, "ignore_steps": 0, "interval": 2, "total_steps": 20}
            policy = {"name": "ado", "options": learning}
            return AdaptiveLoader(dataset, policy, prefetch=2, io_threads=1, group=group)

        data = adapter.MegatronData(make_loader, MICRO_BATCH_SIZE, 32)
        assert (data.loader is None) == (tensor_rank == 1)
        if state is not None:
            data.load_state(state)
        found = run(data, stage, state, steps, saved_at)
    every: list = [None] * 4
    dist.all_gather_object(every, found)
    if rank == 0:
        Path(out).write_text(json.dumps(every))
    if data.loader is not None:
        data.loader.close()
    dist.barrier()
    os._exit(0)


def run(data, stage: int, state: dict | None, steps: int, saved_at: int) -> dict:
    found: dict = {"tokens": [], "mixtures": [], "losses": []}
    for step in range(0 if state is None else saved_at, steps):
        batches = []
        for _ in range(NUM_PARTS):
            if stage == 1:
                dist.recv(torch.empty(1), dist.get_rank() - 2)  # activations
            batches.append(data.get_batch(data))
            if stage == 0:
                dist.send(torch.zeros(1), dist.get_rank() + 2)
        if stage == 1:
            for batch in batches:
                output = (batch["labels"] / 7.0).requires_grad_()  # a loss that is known
                loss, num_tokens, _ = data.loss(batch, output)
                found["losses"].append([loss.item(), num_tokens.item()])
        found["tokens"].append([[*batch["tokens"].tolist(), batch["domain"][:, 0].tolist()] for batch in batches])
        if data.loader is not None:
            found["mixtures"].append(data.loader.mixture.tolist())
        if step + 1 == saved_at and stage == 0 and data.loader is not None:
            found["state"] = data.save_state()
    return found
