"""What a run would be, without running it: sizes, memory, and how often each domain would be read under the prior."""

import math
from dataclasses import dataclass

import numpy as np

from ado_stream.train.assemble import assemble
from ado_stream.train.config import TrainConfig
from ado_stream.train.distributed import World
from ado_stream.train.memory import MemoryEstimate, estimate_memory


@dataclass(frozen=True)
class Plan:
    """The facts of a planned run. Arrays over domains; memory is an estimate for one rank."""

    parameters: int
    flops_per_token: int
    tokens_per_step: int
    total_tokens: int
    peak_learning_rate: float
    memory: MemoryEstimate
    names: list[str]
    prior_K: np.ndarray
    epochs_K: np.ndarray
    repeats_after_K: np.ndarray  # steps under the prior until the domain was read once; inf when never drawn


def plan_run(config: TrainConfig, world: World) -> Plan:
    """The plan of `config` on `world`. Raises what `run_training` would raise before its first step."""
    parts = assemble(config, world)
    dataset, model = parts.loader.dataset, parts.model
    batch, steps = config.data.global_batch_size, config.train.steps
    prior_K, size_K = dataset.prior_K, dataset.num_samples_K
    with np.errstate(divide="ignore"):
        repeats_after_K = size_K / (batch * prior_K)
    return Plan(
        parameters=model.num_parameters,
        flops_per_token=model.flops_per_token(dataset.seq_len),
        tokens_per_step=batch * dataset.seq_len,
        total_tokens=batch * dataset.seq_len * steps,
        peak_learning_rate=parts.schedule.peak,
        memory=estimate_memory(
            model, config.train, world.device, parts.micro_rows, dataset.seq_len, num_ranks=world.size
        ),
        names=dataset.names,
        prior_K=prior_K,
        epochs_K=steps * batch * prior_K / size_K,
        repeats_after_K=repeats_after_K,
    )


def plan_text(plan: Plan) -> str:
    """The plan as lines for a terminal."""
    memory = plan.memory
    lines = [
        f"parameters        {plan.parameters:,}",
        f"tokens per step   {plan.tokens_per_step:,}; {plan.total_tokens:,} in all "
        f"({plan.total_tokens / plan.parameters:.1f} per parameter)",
        f"operations        {plan.flops_per_token * plan.total_tokens:.3g} FLOP",
        f"learning rate     {plan.peak_learning_rate:.3g} at its peak",
        f"memory, one rank  about {memory.total / 1e9:.2f} GB: {memory.state / 1e9:.2f} parameters, gradients, AdamW; "
        f"{memory.copies / 1e9:.2f} copies of weights;",
        f"                  {memory.activations / 1e9:.2f} activations; {memory.loss / 1e9:.2f} loss",
        "",
        f"{'domain':<24} {'prior':>7} {'epochs':>8}  repeats after",
    ]
    for name, share, epochs, after in zip(plan.names, plan.prior_K, plan.epochs_K, plan.repeats_after_K, strict=True):
        when = "never drawn" if math.isinf(after) else f"step {math.ceil(after):,}"
        lines.append(f"{name:<24} {share:>7.3%} {epochs:>8.3f}  {when}")
    return "\n".join(lines)
