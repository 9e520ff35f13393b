"""Twenty training steps of a small model on this rank's rows of fixed batches; rank 0 writes the results as JSON."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch

from ado_model import ModelConfig, Transformer
from ado_stream.train.distributed import join_process_group
from ado_stream.train.run_config import TrainSection
from tests.train.hot_loop import build_step

CONFIG = ModelConfig(num_layers=2, width=32, num_heads=2, vocab_size=97, context_length=16)
NUM_DOMAINS = 3
GLOBAL_ROWS = 8
NUM_STEPS = 20


def weights(model: torch.nn.Module) -> float:
    """A checksum of all parameters."""
    total = torch.zeros((), dtype=torch.float64)
    for parameter in model.parameters():
        full = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        total += full.detach().double().abs().sum()
    return total.item()


def main(changes: dict, poisoned: dict[str, int], perturbed: tuple[float, int], out: str) -> None:
    """changes: TrainSection's. poisoned: the steps at which the last rank's "loss" or "gradient" is NaN.

    perturbed: how far parameters are moved before the first step, and a seed (tests/rounding.py).
    """
    options = TrainSection(**{"micro_batch_size": 2, "grad_clip": 1.0, **changes})
    found = []
    with join_process_group("cpu", 60) as context:
        torch.manual_seed(0)
        step, parallel, _ = build_step(CONFIG, options, NUM_DOMAINS, context, perturbed=perturbed)
        generator = torch.Generator().manual_seed(1)
        rows = GLOBAL_ROWS // context.size
        last = context.rank == context.size - 1
        for number in range(NUM_STEPS):
            domains = torch.randint(NUM_DOMAINS, (GLOBAL_ROWS,), generator=generator)
            first = torch.randint(CONFIG.vocab_size, (GLOBAL_ROWS, 1), generator=generator)
            tokens = (first + torch.arange(17) * (1 + domains[:, None])) % CONFIG.vocab_size  # learnable
            mine = slice(context.rank * rows, (context.rank + 1) * rows)
            with poisoned_gradient(parallel.model, last and number == poisoned.get("gradient")):
                sums, counts = step.forward_backward(tokens[mine], domains[mine])
            if last and number == poisoned.get("loss"):
                sums[0] = float("nan")
            outcome = step.update(sums, counts, learning_rate=3e-3)
            loss = (outcome.sums_K.sum() / outcome.counts_K.sum()).item()
            found.append(
                {
                    "loss": loss if outcome.finite else None,
                    "finite": bool(outcome.finite),
                    "grad_norm": outcome.grad_norm.item(),
                    "policy_tokens": int(outcome.for_policy()[1].sum()),
                    "weights": weights(parallel.model),
                }
            )
        if context.is_main:
            Path(out).write_text(json.dumps(found))


def same_rows(replication: int, out: str) -> None:
    """[sums and counts of one step in which every rank gets all rows]."""
    with join_process_group("cpu", 60) as context:
        torch.manual_seed(0)
        step, _, _ = build_step(CONFIG, TrainSection(), NUM_DOMAINS, context, replication)
        tokens, domains = torch.randint(CONFIG.vocab_size, (6, 17)), torch.tensor([0, 1, 2, 2, 2, 0])
        outcome = step.update(*step.forward_backward(tokens, domains), learning_rate=1e-3)
        if context.is_main:
            Path(out).write_text(json.dumps([[outcome.sums_K.tolist(), outcome.counts_K.tolist()]]))


@contextlib.contextmanager
def poisoned_gradient(model: Transformer, poisoned: bool) -> Iterator[None]:
    """Makes this rank's gradient of the embedding NaN before the all-reduce; its losses stay as they are."""
    if not poisoned:
        yield
        return
    hook = model.embed_tokens.register_forward_hook(
        lambda module, inputs, output: output.register_hook(lambda gradient: gradient * float("nan")) and None
    )
    yield
    hook.remove()
