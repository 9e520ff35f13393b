"""What a training step's options do inside it: what the tests run on each rank. Rank 0 writes its findings as JSON."""

import json
from collections import Counter
from pathlib import Path

import torch
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from ado_model import ModelConfig, Transformer
from ado_stream.train.checkpoint import TrainingState
from ado_stream.train.config import TrainSection
from ado_stream.train.distributed import join_world
from ado_stream.train.parallel import ParallelModel
from ado_stream.train.step import TrainStep, make_optimizer

CONFIG = ModelConfig(num_layers=2, width=32, num_heads=2, vocab_size=97, context_length=16)
NUM_MICRO = 3


def main(changes: dict, out: str) -> None:
    """One step of NUM_MICRO micro-batches under `changes` of TrainSection: what ran, in which dtype, how often."""
    options = TrainSection(**{"micro_batch_size": 1, **changes})
    seen: Counter[str] = Counter()
    with join_world("cpu", 60) as world:
        parallel = ParallelModel(Transformer(CONFIG), world, options)
        step = TrainStep(parallel, make_optimizer(parallel.model, options), options, 1)

        def look(module, inputs, output):
            seen.update(["blocks", f"computed {output.dtype}", f"weight {module.weight.dtype}"])
            if isinstance(parallel._shared, DistributedDataParallel):
                seen["exchanges"] += parallel._shared.require_backward_grad_sync

        parallel.model.layers[0].mlp.gate_proj.register_forward_hook(look)
        with _CountReduceScatters(seen):
            step.forward_backward(torch.randint(97, (NUM_MICRO, 17)), torch.zeros(NUM_MICRO, dtype=torch.int64))
        seen["units"] = sum(isinstance(module, FSDPModule) for module in parallel.model.modules())
        if world.is_main:
            Path(out).write_text(json.dumps(seen))


class _CountReduceScatters(TorchDispatchMode):
    def __init__(self, seen: Counter[str]):
        super().__init__()
        self._seen = seen

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self._seen["reduce scatters"] += "reduce_scatter" in str(function)
        return function(*args, **(kwargs or {}))


def state_after_validation(out: str) -> None:
    """[whether every tensor of an FSDP run's state is the same before and after losses without gradients]."""
    options = TrainSection(strategy="fsdp")
    with join_world("cpu", 60) as world:
        parallel = ParallelModel(Transformer(CONFIG), world, options)
        optimizer = make_optimizer(parallel.model, options)
        step = TrainStep(parallel, optimizer, options, 1)
        tokens, domains = torch.randint(97, (2, 17)), torch.zeros(2, dtype=torch.int64)
        step.update(*step.forward_backward(tokens, domains), 1e-2)
        state = TrainingState(parallel.model, optimizer, {})
        before = {name: tensor.clone() for name, tensor in state.tensors().items()}
        with torch.no_grad():
            parallel.loss(tokens[:, :-1], tokens[:, 1:], domains, 1)
        after = state.tensors()
        same = [type(after[name]) is type(before[name]) and torch.equal(after[name], before[name]) for name in before]
        if world.is_main:
            Path(out).write_text(json.dumps([all(same) and after.keys() == before.keys()]))
