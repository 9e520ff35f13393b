"""What a training step's options do inside it: what the tests run on each rank. Rank 0 writes its findings as JSON."""

import json
from collections import Counter
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel

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
        projection = parallel.model.layers[0].mlp.gate_proj
        projection.register_forward_hook(lambda module, inputs, output: seen.update(blocks=1))
        projection.register_forward_hook(lambda module, inputs, output: seen.update({f"computed {output.dtype}": 1}))
        projection.register_forward_hook(lambda module, *_: seen.update({f"weight {module.weight.dtype}": 1}))
        _count_reductions_of_ddp(parallel, seen)
        with CommDebugMode() as communication:
            step.forward_backward(torch.randint(97, (NUM_MICRO, 17)), torch.zeros(NUM_MICRO, dtype=torch.int64))
        for operation, count in communication.get_comm_counts().items():
            seen["reduce scatters"] += count if "reduce_scatter" in str(operation) else 0
        seen["units"] = sum(isinstance(module, FSDPModule) for module in parallel.model.modules())
        if world.is_main:
            Path(out).write_text(json.dumps(seen))


def _count_reductions_of_ddp(parallel: ParallelModel, seen: Counter[str]) -> None:
    def counted(state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        seen.update(buckets=1)
        return allreduce_hook(state, bucket)

    if isinstance(parallel._shared, DistributedDataParallel):
        parallel._shared.register_comm_hook(None, counted)


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
