"""What the options of ParallelModel do inside a step; run on each rank, rank 0 writes the results as JSON."""

import json
from collections import Counter
from pathlib import Path

import torch
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from ado_model import ModelConfig, Transformer
from ado_stream.train.checkpoint import TrainingState
from ado_stream.train.distributed import join_process_group
from ado_stream.train.run_config import TrainSection
from tests.train.hot_loop import build_step

CONFIG = ModelConfig(num_layers=2, width=32, num_heads=2, vocab_size=97, context_length=16)
NUM_MICRO = 3


def main(changes: dict, out: str) -> None:
    """One step of NUM_MICRO micro-batches with `changes` of TrainSection: which operations ran, in which dtype."""
    options = TrainSection(**{"micro_batch_size": 1, **changes})
    counts: Counter[str] = Counter()
    with join_process_group("cpu", 60) as context:
        step, parallel, _ = build_step(CONFIG, options, 1, context)

        def count(module, inputs, output):
            counts.update(["blocks", f"computed {output.dtype}", f"weight {module.weight.dtype}"])
            if isinstance(parallel._wrapped, DistributedDataParallel):
                counts["exchanges"] += parallel._wrapped.require_backward_grad_sync

        parallel.model.layers[0].mlp.gate_proj.register_forward_hook(count)
        with _CountReduceScatters(counts):
            step.forward_backward(torch.randint(97, (NUM_MICRO, 17)), torch.zeros(NUM_MICRO, dtype=torch.int64))
        counts["units"] = sum(isinstance(module, FSDPModule) for module in parallel.model.modules())
        if context.is_main:
            Path(out).write_text(json.dumps(counts))


class _CountReduceScatters(TorchDispatchMode):
    def __init__(self, counts: Counter[str]):
        super().__init__()
        self._counts = counts

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self._counts["reduce scatters"] += "reduce_scatter" in str(function)
        return function(*args, **(kwargs or {}))


def state_after_validation(out: str) -> None:
    """[whether an FSDP run's state has the same tensors before and after a forward pass without gradients]."""
    options = TrainSection(strategy="fsdp")
    with join_process_group("cpu", 60) as context:
        step, parallel, optimizer = build_step(CONFIG, options, 1, context)
        tokens, domains = torch.randint(97, (2, 17)), torch.zeros(2, dtype=torch.int64)
        step.update(*step.forward_backward(tokens, domains), 1e-2)
        state = TrainingState(parallel.model, optimizer)
        before = {name: tensor.clone() for name, tensor in state.tensors().items()}
        with torch.no_grad():
            parallel.loss(tokens[:, :-1], tokens[:, 1:], domains, 1)
        after = state.tensors()
        same = [type(after[name]) is type(before[name]) and torch.equal(after[name], before[name]) for name in before]
        if context.is_main:
            Path(out).write_text(json.dumps([all(same) and after.keys() == before.keys()]))


def initialised_on_meta(out: str) -> None:
    """[parameters of a model sharded on meta and then initialised that are not those of an unsharded one].

    Each rank has another seed; the vocabulary is odd, so shards are of unequal size.
    """
    with join_process_group("cpu", 60) as context:
        with torch.device("meta"):
            model = Transformer(CONFIG)
        for each in (*model.layers, model):
            fully_shard(each)
        model.to_empty(device="cpu")
        torch.manual_seed(context.rank)
        model.initialise()
        found = {name: value.full_tensor() for name, value in model.named_parameters()}
        plain = Transformer(CONFIG)
        torch.manual_seed(0)
        plain.initialise()
        other = [name for name, value in plain.named_parameters() if not torch.equal(found[name], value)]
        if context.is_main:
            Path(out).write_text(json.dumps(other))
