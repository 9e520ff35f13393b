"""The plan of a run, without running it: sizes, memory, and the epochs of each domain under the prior.

Memory is estimated from sizes alone, term by term. Activations are what the model's operations save for the backward
pass (ado_model/layers.py): per layer ten tensors of the model's width (norms, queries, keys, values, attention,
projections) and three of the MLP's. Not included: fragmentation, buffers of the communication library, and what
torch.compile saves or recomputes.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from ado_kernels.ops.launch_table import TABLE
from ado_model import ModelConfig
from ado_stream.train.components import build_components
from ado_stream.train.config import TrainConfig, TrainSection
from ado_stream.train.distributed import DistributedContext
from ado_stream.train.parallel import compute_dtype
from ado_stream.visible import visible

_STATE_BYTES = 16  # a parameter's float32 value, gradient and two moments
_FLOAT32_BYTES = 4
# linear_cross_entropy holds the logits of a chunk: rows by its launch table on a GPU, at most so many bytes on a CPU.
_GPU_LOGITS_ROWS = max(row["rows"] for (operation, *_), row in TABLE.items() if operation == "linear_cross_entropy")
_CPU_LOGITS_BYTES = 256 << 20


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak bytes of each part on one rank.

    state: parameters, gradients, AdamW's moments. copies: weights in the compute dtype, and with FSDP the gathered
    ones. activations: saved for the backward pass of one micro-batch. loss: logits of a chunk, and gradients of the
    last hidden states and of the output weight.
    """

    state: int
    copies: int
    activations: int
    loss: int

    @property
    def total(self) -> int:
        """The sum: the parts peak within the same backward pass."""
        return self.state + self.copies + self.activations + self.loss


def estimate_memory(
    model: ModelConfig, options: TrainSection, device: torch.device, rows: int, num_tokens: int, num_ranks: int
) -> MemoryEstimate:
    """The memory of each of `num_ranks` ranks, for micro-batches of `rows` samples of `num_tokens` tokens."""
    sharded = options.strategy == "fsdp" and num_ranks > 1
    dtype = compute_dtype(options.dtype, device)
    return MemoryEstimate(
        state=_STATE_BYTES * model.num_parameters // (num_ranks if sharded else 1),
        copies=_gathered(model, dtype) if sharded else _copies(model, dtype),
        activations=_activations(model, options, dtype) * rows * num_tokens,
        loss=_loss(model, device, dtype, rows * num_tokens),
    )


def _block_weights(model: ModelConfig) -> int:
    return 4 * model.width**2 + 3 * model.width * model.mlp_width


def _copies(model: ModelConfig, dtype: torch.dtype) -> int:
    """Autocast's copies of the blocks' matrices, kept for the backward pass; none in float32."""
    return 0 if dtype == torch.float32 else dtype.itemsize * model.num_layers * _block_weights(model)


def _gathered(model: ModelConfig, dtype: torch.dtype) -> int:
    """FSDP's gathered embedding and two blocks (the current and the prefetched one), and their unreduced gradients."""
    numbers = model.vocab_size * model.width + 2 * _block_weights(model)
    return numbers * (dtype.itemsize + _FLOAT32_BYTES)


def _activations(model: ModelConfig, options: TrainSection, dtype: torch.dtype) -> int:
    """Bytes of one token. With activation checkpointing a block saves its two inputs, and one block at a time all."""
    block = 10 * model.width + 3 * model.mlp_width
    if options.activation_checkpointing:
        return dtype.itemsize * (model.num_layers * 2 * model.width + block)
    return dtype.itemsize * (model.num_layers * block + 2 * model.width)


def _loss(model: ModelConfig, device: torch.device, dtype: torch.dtype, num_rows: int) -> int:
    weight = model.vocab_size * model.width
    if device.type == "cpu":  # the CPU's operation computes in float32 for any input
        logits = min(num_rows * model.vocab_size * _FLOAT32_BYTES, _CPU_LOGITS_BYTES)
        return logits + _FLOAT32_BYTES * (weight + num_rows * model.width)
    logits = min(num_rows, _GPU_LOGITS_ROWS) * model.vocab_size * dtype.itemsize
    copy = 0 if dtype == torch.float32 else dtype.itemsize * weight
    return logits + copy + _FLOAT32_BYTES * (weight + num_rows * model.width)


@dataclass(frozen=True)
class RunPlan:
    """What a run would do; memory is an estimate for one rank."""

    parameters: int
    flops_per_token: int
    tokens_per_step: int
    total_tokens: int
    peak_learning_rate: float
    memory: MemoryEstimate
    names: list[str]
    prior_K: np.ndarray
    epochs_K: np.ndarray
    repeats_after_K: np.ndarray  # steps of one epoch under the prior; inf: never drawn


def plan_run(config: TrainConfig, context: DistributedContext) -> RunPlan:
    """The plan of `config` on `context`'s ranks. Raises what `run_training` would raise before its first step."""
    components = build_components(config, context)
    dataset, model = components.loader.dataset, components.model
    batch, steps = config.data.global_batch_size, config.train.steps
    prior_K, size_K = dataset.prior, dataset.num_samples
    with np.errstate(divide="ignore"):
        repeats_after_K = size_K / (batch * prior_K)
    return RunPlan(
        parameters=model.num_parameters,
        flops_per_token=model.flops_per_token(dataset.seq_len),
        tokens_per_step=batch * dataset.seq_len,
        total_tokens=batch * dataset.seq_len * steps,
        peak_learning_rate=components.schedule.peak,
        memory=estimate_memory(
            model, config.train, context.device, components.micro_rows, dataset.seq_len, num_ranks=context.size
        ),
        names=dataset.names,
        prior_K=prior_K,
        epochs_K=steps * batch * prior_K / size_K,
        repeats_after_K=repeats_after_K,
    )


def plan_text(plan: RunPlan) -> str:
    """The plan as text for a terminal."""
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
    return visible("\n".join(lines))
