"""The plan of a run, without running it: sizes, memory, and the epochs of each domain under the prior.

Memory is estimated from sizes alone, term by term. Activations are what the model's operations save for the backward
pass (ado_model/layers.py): per layer ten tensors of the model's width (norms, queries, keys, values, attention,
projections) and three of the MLP's. Not included: fragmentation, buffers of the communication library, and what
torch.compile saves or recomputes.
"""

import math
from typing import NamedTuple

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


class MemoryEstimate(NamedTuple):
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
        return sum(self)


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


def plan_run(config: TrainConfig, context: DistributedContext) -> str:
    """The plan of `config` on `context`'s ranks, as text. Raises what `run_training` would before its first step."""
    components = build_components(config, context)
    dataset, model = components.loader.dataset, components.model
    batch, steps, seq_len = config.data.global_batch_size, config.train.steps, dataset.seq_len
    memory = estimate_memory(model, config.train, context.device, components.micro_rows, seq_len, context.size)
    num_tokens = steps * batch * seq_len
    lines = [
        f"parameters        {model.num_parameters:,}",
        f"tokens per step   {batch * seq_len:,}; {num_tokens:,} in all "
        f"({num_tokens / model.num_parameters:.1f} per parameter)",
        f"operations        {model.flops_per_token(seq_len) * num_tokens:.3g} FLOP",
        f"learning rate     {components.schedule.peak:.3g} at its peak",
        f"memory, one rank  about {memory.total / 1e9:.2f} GB: {memory.state / 1e9:.2f} parameters, gradients, AdamW; "
        f"{memory.copies / 1e9:.2f} copies of weights;",
        f"                  {memory.activations / 1e9:.2f} activations; {memory.loss / 1e9:.2f} loss",
        "",
        f"{'domain':<24} {'prior':>7} {'epochs':>8}  repeats after",
    ]
    for name, share, size in zip(dataset.names, dataset.prior.tolist(), dataset.num_samples.tolist(), strict=True):
        repeats = f"step {math.ceil(size / (batch * share)):,}" if share else "never drawn"
        lines.append(f"{name:<24} {share:>7.3%} {steps * batch * share / size:>8.3f}  {repeats}")
    return visible("\n".join(lines))
