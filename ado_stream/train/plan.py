"""What a run would be, without running it: sizes, memory, and how often each domain would be read under the prior.

Memory is an estimate from sizes alone, term by term. What is kept for the backward pass is what the model's operations
save (ado_model/layers.py): per layer ten tensors of the width (norms, queries, keys, values, attention, projections)
and three of the MLP's. Not in it: the allocator's fragments, the communication library's buffers, what torch.compile
saves or spares.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from ado_kernels.ops.launch_table import TABLE
from ado_model import ModelConfig
from ado_stream.train.assemble import assemble
from ado_stream.train.config import TrainConfig, TrainSection
from ado_stream.train.distributed import World
from ado_stream.train.parallel import compute_dtype

_STATE_BYTES = 16  # a parameter's float32 value, gradient and two moments
_FLOAT32_BYTES = 4
# Rows of logits that linear_cross_entropy holds at once: on a GPU as its launch table says, on a CPU by bytes.
_GPU_LOGITS_ROWS = max(row["rows"] for (operation, *_), row in TABLE.items() if operation == "linear_cross_entropy")
_CPU_LOGITS_BYTES = 256 << 20


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one rank, at the peak of each part.

    state: parameters, gradients, AdamW's moments. copies: weights in the dtype that they are multiplied in, and with
    FSDP those gathered for their use. activations: kept for the backward pass of one micro-batch. loss: logits of a
    chunk, and gradients of the last hidden states and of the vocabulary's weight.
    """

    state: int
    copies: int
    activations: int
    loss: int

    @property
    def total(self) -> int:
        """Their sum: the parts' peaks lie within one backward pass of each other."""
        return self.state + self.copies + self.activations + self.loss


def estimate_memory(
    model: ModelConfig, options: TrainSection, device: torch.device, rows: int, num_tokens: int, num_ranks: int
) -> MemoryEstimate:
    """For micro-batches of `rows` samples of `num_tokens`, on each of `num_ranks` ranks."""
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
    """Autocast's copies of the blocks' matrices, kept for the backward pass; none of what is float32 already."""
    return 0 if dtype == torch.float32 else dtype.itemsize * model.num_layers * _block_weights(model)


def _gathered(model: ModelConfig, dtype: torch.dtype) -> int:
    """The embedding and two blocks, the one at work and the next, each whole; and their gradients, to be summed."""
    numbers = model.vocab_size * model.width + 2 * _block_weights(model)
    return numbers * (dtype.itemsize + _FLOAT32_BYTES)


def _activations(model: ModelConfig, options: TrainSection, dtype: torch.dtype) -> int:
    """Of one token. A block that is computed again keeps its two inputs; one at a time keeps everything."""
    block = 10 * model.width + 3 * model.mlp_width
    if options.activation_checkpointing:
        return dtype.itemsize * (model.num_layers * 2 * model.width + block)
    return dtype.itemsize * (model.num_layers * block + 2 * model.width)


def _loss(model: ModelConfig, device: torch.device, dtype: torch.dtype, num_rows: int) -> int:
    weight = model.vocab_size * model.width
    if device.type == "cpu":  # computes in float32, whatever it is given
        logits = min(num_rows * model.vocab_size * _FLOAT32_BYTES, _CPU_LOGITS_BYTES)
        return logits + _FLOAT32_BYTES * (weight + num_rows * model.width)
    logits = min(num_rows, _GPU_LOGITS_ROWS) * model.vocab_size * dtype.itemsize
    copy = 0 if dtype == torch.float32 else dtype.itemsize * weight
    return logits + copy + _FLOAT32_BYTES * (weight + num_rows * model.width)


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
    prior_K, size_K = dataset.prior, dataset.num_samples
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
