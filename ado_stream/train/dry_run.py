"""The plan of a run, without running it: sizes, memory, time, and epochs of each domain if no loss moves the shares.

Memory is estimated from sizes alone, term by term. Activations are what the model's operations save for the backward
pass (ado_model/layers.py): per layer ten tensors of the model's width (norms, queries, keys, values, attention,
projections) and three of the MLP's. Not included: fragmentation, buffers of the communication library, and what
torch.compile saves or recomputes.
"""

import dataclasses
import math
import time
from typing import NamedTuple

import numpy as np
import torch

from ado_kernels.ops.launch_table import TABLE
from ado_model import ModelConfig, Transformer
from ado_stream.corpus.manifest import missing_validation
from ado_stream.errors import ConfigError
from ado_stream.policy.planned_draws import planned_samples
from ado_stream.train.components import RunComponents, build_components
from ado_stream.train.distributed import DistributedContext
from ado_stream.train.parallel import ParallelModel, compute_dtype
from ado_stream.train.run_config import TrainConfig, TrainSection
from ado_stream.train.stages import run_stages
from ado_stream.train.train_step import TrainStep, make_optimizer

_STATE_BYTES = 16  # a parameter's float32 value, gradient and two moments
_FLOAT32_BYTES = 4
_MAX_EPOCHS = 4  # up to here repeated text is worth about as much as new text (arXiv 2305.16264)
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


def check_memory(model: ModelConfig, options: TrainSection, context: DistributedContext) -> None:
    """Raises ConfigError where a model's state alone needs more memory than there is on the device."""
    state_bytes = estimate_memory(model, options, context.device, 1, 1, context.size).state
    total_bytes = _memory(context.device)[1]
    if state_bytes > total_bytes:
        raise ConfigError(
            f"the model's parameters, gradients and AdamW's moments need {state_bytes / 1e9:.1f} GB a rank, "
            f"{context.device} has {total_bytes / 1e9:.1f} GB.\n"
            "  Choose a smaller 'model', or on several GPUs train.strategy=fsdp; --dry-run shows the plan."
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
    return int(logits + copy + _FLOAT32_BYTES * (weight + num_rows * model.width))


def plan_run(config: TrainConfig, context: DistributedContext) -> str:
    """The plan of `config` on `context`'s ranks, as text. Raises what `run_training` would before its first step."""
    stages = run_stages(config)
    of_stages = [build_components(stage.config, context) for stage in stages]
    components = max(of_stages, key=lambda each: each.micro_rows * each.loader.dataset.batch_seq_len)
    dataset, model, steps = components.loader.dataset, components.model, config.train.steps
    memory, alone = (
        estimate_memory(model, config.train, context.device, components.micro_rows, dataset.batch_seq_len, num_ranks)
        for num_ranks in (context.size, 1)
    )
    free_bytes, _ = _memory(context.device)
    time_text = "not measured: the memory does not suffice"
    if alone.total < free_bytes:
        seconds = (measure_step_s(stage.config, each, context) for stage, each in zip(stages, of_stages, strict=True))
        total_s = sum(stage.num_steps * step_s for stage, step_s in zip(stages, seconds, strict=True))
        time_text = _time_text(total_s / steps, steps)
    num_samples = [each.loader.dataset.settings.num_samples for each in of_stages]
    step_tokens = [samples * dataset.seq_len for samples in num_samples]
    num_tokens, operations = 0, 0.0
    for stage, each, tokens in zip(stages, of_stages, step_tokens, strict=True):
        num_tokens += stage.num_steps * tokens
        operations += stage.num_steps * tokens * model.flops_per_token(each.loader.dataset.batch_seq_len)
    lines = [
        f"parameters        {model.num_parameters:,}",
        f"tokens per step   {', then '.join(f'{tokens:,}' for tokens in step_tokens)}; {num_tokens:,} in all "
        f"({num_tokens / model.num_parameters:.1f} per parameter)",
        f"operations        {operations:.3g} FLOP",
        f"learning rate     {components.schedule.peak:.3g} at its peak",
        f"memory, one rank  about {memory.total / 1e9:.2f} GB: {memory.state / 1e9:.2f} parameters, gradients, AdamW; "
        f"{memory.copies / 1e9:.2f} copies of weights;",
        f"                  {memory.activations / 1e9:.2f} activations; {memory.loss / 1e9:.2f} loss",
        f"time              {time_text}",
        "",
        f"{'domain':<24} {'prior':>7} {'epochs':>8}  repeats after",
    ]
    size_S = np.repeat(num_samples, [stage.num_steps for stage in stages])
    drawn_K = planned_samples(components.loader.policy, steps, size_S, config.data.mixture_lag)
    epochs_K = drawn_K / dataset.num_samples  # while no loss moves the policy
    for name, share, epochs in zip(dataset.names, dataset.prior.tolist(), epochs_K.tolist(), strict=True):
        repeats = f"step {math.ceil(steps / epochs):,}" if epochs else "never drawn"
        lines.append(f"{name:<24} {share:>7.3%} {epochs:>8.3f}  {repeats}")
    entries = components.corpus.manifest["domains"]
    warnings = [
        missing_validation({name: entries[name] for name in dataset.names}),
        *(_repeated(name, epochs) for name, epochs in zip(dataset.names, epochs_K.tolist(), strict=True)),
        _too_large(memory.total, free_bytes, context.device),
    ]
    return "\n".join([*lines, *(f"warning: {warning}" for warning in warnings if warning)])


def measure_step_s(config: TrainConfig, components: RunComponents, context: DistributedContext) -> float:
    """Seconds of one rank's part of a step, by timing one forward and backward pass and one update of this model.

    On a CPU one row is timed and multiplied: a small part of a large model's step.
    """
    on_cpu = context.device.type == "cpu"
    rows = 1 if on_cpu else components.micro_rows
    dataset = components.loader.dataset
    rank_rows = config.data.global_batch_size // dataset.rank_slots.num_parts
    options = dataclasses.replace(config.train, micro_batch_size=rows, compile=False)
    parallel = ParallelModel(Transformer(components.model), DistributedContext(0, 1, context.device), options)
    step = TrainStep(parallel, make_optimizer(parallel.model, options), options, len(dataset.names))
    tokens_BT = torch.randint(
        components.corpus.tokenizer.vocab_size, (rows, dataset.batch_seq_len + 1), device=context.device
    )
    domain_B = torch.zeros(rows, dtype=torch.int64, device=context.device)
    marks = []
    for num_tokens in (33 if on_cpu else None, None):  # the first time compiles kernels and fills caches
        marks = [_now_s(context.device)]
        sums_K, counts_K = step.forward_backward(tokens_BT[:, :num_tokens], domain_B)
        marks.append(_now_s(context.device))
        step.update(sums_K, counts_K, 0.0)
        marks.append(_now_s(context.device))
    pass_s, update_s = np.diff(marks).tolist()
    return float(rank_rows / rows * pass_s + update_s)


def _now_s(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _memory(device: torch.device) -> tuple[int, int]:
    """Bytes that a process may still take on the device, and all that there are."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    with open("/proc/meminfo") as file:
        size = {name: 1024 * int(number.split()[0]) for name, number in (line.split(":") for line in file)}
    return size["MemAvailable"], size["MemTotal"] + size["SwapTotal"]


def _repeated(name: str, epochs: float) -> str:
    if epochs <= _MAX_EPOCHS:
        return ""
    return (
        f"{name} would be read {epochs:.1f} times; past {_MAX_EPOCHS} passes repeated text is worth little. Lower its "
        "share or train.steps, or bound it: policy.guards=[{name: repetition}]"
    )


def _too_large(num_bytes: int, free_bytes: int, device: torch.device) -> str:
    if num_bytes <= free_bytes:
        return ""
    return (
        f"about {num_bytes / 1e9:.1f} GB a rank, but {device} has {free_bytes / 1e9:.1f} GB free: lower "
        "train.micro_batch_size, or set train.activation_checkpointing=true; on several GPUs train.strategy=fsdp"
    )


def _time_text(step_s: float, steps: int) -> str:
    total_s = step_s * steps
    units = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))
    size, unit = next(((size, unit) for size, unit in units if total_s >= 2 * size), units[-1])
    return (
        f"about {total_s / size:.1f} {unit}: {step_s:.3g} s a step, from one pass and update measured here, "
        "without reading, communication and validation"
    )
