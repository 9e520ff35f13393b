"""Twenty training steps of a small model on this process's part of fixed batches; rank 0 writes what it saw as JSON."""

import json
from pathlib import Path

import torch

from ado_model import ModelConfig, Transformer
from ado_stream.train.config import TrainSection
from ado_stream.train.distributed import join_world
from ado_stream.train.parallel import ParallelModel
from ado_stream.train.step import TrainStep, make_optimizer

CONFIG = ModelConfig(num_layers=2, width=32, num_heads=2, vocab_size=97, context_length=16)
NUM_DOMAINS = 3
GLOBAL_ROWS = 8
NUM_STEPS = 20


def weights(model: torch.nn.Module) -> float:
    """One number that any change of any parameter changes."""
    total = torch.zeros((), dtype=torch.float64)
    for parameter in model.parameters():
        full = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        total += full.detach().double().abs().sum()
    return total.item()


def main(strategy: str, poisoned_step: int, out: str) -> None:
    options = TrainSection(strategy=strategy, micro_batch_size=2, grad_clip=1.0)
    found = []
    with join_world("cpu", 60) as world:
        torch.manual_seed(0)
        parallel = ParallelModel(Transformer(CONFIG), world, options)
        step = TrainStep(parallel, make_optimizer(parallel.model, options), options, NUM_DOMAINS)
        generator = torch.Generator().manual_seed(1)
        rows = GLOBAL_ROWS // world.size
        for number in range(NUM_STEPS):
            domains = torch.randint(NUM_DOMAINS, (GLOBAL_ROWS,), generator=generator)
            first = torch.randint(CONFIG.vocab_size, (GLOBAL_ROWS, 1), generator=generator)
            tokens = (first + torch.arange(17) * (1 + domains[:, None])) % CONFIG.vocab_size  # counting: can be learned
            mine = slice(world.rank * rows, (world.rank + 1) * rows)
            sums, counts = step.forward_backward(tokens[mine], domains[mine])
            if number == poisoned_step and world.rank == world.size - 1:
                sums[0] = float("nan")
            outcome = step.update(sums, counts, learning_rate=3e-3)
            loss = (outcome.total_sums_K.sum() / outcome.total_counts_K.sum()).item()
            found.append(
                {
                    "loss": loss if outcome.finite else None,
                    "finite": bool(outcome.finite),
                    "grad_norm": outcome.grad_norm.item(),
                    "policy_tokens": int(outcome.counts_K.sum()),
                    "weights": weights(parallel.model),
                }
            )
        if world.is_main:
            Path(out).write_text(json.dumps(found))
