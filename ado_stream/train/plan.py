"""What a run would be, without running it: sizes, memory, and how often each domain would be read under the prior."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from ado_model import ModelConfig
from ado_stream.train.assemble import make_dataset, make_run_policy, make_schedule, model_config, open_split
from ado_stream.train.config import TrainConfig
from ado_stream.train.parallel import compute_dtype

_OPTIMIZER_BYTES = 16  # a parameter's float32 value, gradient and two moments


@dataclass(frozen=True)
class Plan:
    """The facts of a planned run on `world_size` ranks. Arrays over domains; bytes are estimates for one rank."""

    parameters: int
    flops_per_token: int
    tokens_per_step: int
    total_tokens: int
    peak_learning_rate: float
    state_bytes: int
    activation_bytes: int
    names: list[str]
    prior_K: np.ndarray
    epochs_K: np.ndarray
    repeats_after_K: np.ndarray  # steps under the prior until the domain was read once; inf when never drawn


def plan_run(config: TrainConfig, world_size: int = 1) -> Plan:
    """The plan of `config`. Everything is checked that `run_training` would check before its first step."""
    corpus = open_split(config, "train")
    model = model_config(config, corpus)
    dataset = make_dataset(config, corpus)
    make_run_policy(config, dataset)
    batch, steps = config.data.global_batch_size, config.train.steps
    prior_K, size_K = dataset.prior_K, dataset.num_samples_K
    with np.errstate(divide="ignore"):
        repeats_after_K = size_K / (batch * prior_K)
    shards = world_size if config.train.strategy == "fsdp" else 1
    return Plan(
        parameters=model.num_parameters,
        flops_per_token=model.flops_per_token(dataset.seq_len),
        tokens_per_step=batch * dataset.seq_len,
        total_tokens=batch * dataset.seq_len * steps,
        peak_learning_rate=make_schedule(config, model.width).peak,
        state_bytes=_OPTIMIZER_BYTES * model.num_parameters // shards,
        activation_bytes=_activation_bytes(config, model, dataset.seq_len, max(1, batch // world_size)),
        names=dataset.names,
        prior_K=prior_K,
        epochs_K=steps * batch * prior_K / size_K,
        repeats_after_K=repeats_after_K,
    )


def plan_text(plan: Plan) -> str:
    """The plan as lines for a terminal."""
    lines = [
        f"parameters        {plan.parameters:,}",
        f"tokens per step   {plan.tokens_per_step:,}; {plan.total_tokens:,} in all "
        f"({plan.total_tokens / plan.parameters:.1f} per parameter)",
        f"operations        {plan.flops_per_token * plan.total_tokens:.3g} FLOP",
        f"learning rate     {plan.peak_learning_rate:.3g} at its peak",
        f"memory, one rank  {plan.state_bytes / 1e9:.2f} GB parameters, gradients, AdamW; "
        f"about {plan.activation_bytes / 1e9:.2f} GB activations",
        "",
        f"{'domain':<24} {'prior':>7} {'epochs':>8}  repeats after",
    ]
    for name, share, epochs, after in zip(plan.names, plan.prior_K, plan.epochs_K, plan.repeats_after_K, strict=True):
        when = "never drawn" if math.isinf(after) else f"step {math.ceil(after):,}"
        lines.append(f"{name:<24} {share:>7.3%} {epochs:>8.3f}  {when}")
    return "\n".join(lines)


def _activation_bytes(config: TrainConfig, model: ModelConfig, num_tokens: int, rank_rows: int) -> int:
    """Tensors kept for the backward pass of one micro-batch: per token and layer about 10 of the width (norms, q, k, v,
    attention, residuals) and 3 of the MLP's; one of the width where blocks are recomputed."""
    rows = min(config.train.micro_batch_size or rank_rows, rank_rows)
    device = torch.device("cuda" if torch.cuda.is_available() and config.train.device != "cpu" else "cpu")
    itemsize = compute_dtype(config.train.dtype, device).itemsize
    kept = model.width if config.train.activation_checkpointing else 10 * model.width + 3 * model.mlp_width
    return rows * num_tokens * itemsize * (model.num_layers * kept + 2 * model.width)
