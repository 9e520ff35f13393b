"""The model on all ranks: DDP (a copy on each) or FSDP2 (`fully_shard`, a shard on each).

Invariant: with either strategy and any number of ranks, the gradient is that of the mean loss over the global batch.
Matrices may be multiplied in bfloat16; parameters, gradient reductions and the optimizer stay float32.
"""

import contextlib
import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from ado_model import Transformer
from ado_model.transformer import Losses
from ado_stream.train.distributed import DistributedContext
from ado_stream.train.run_config import TrainSection


class ParallelModel:
    """A transformer on the ranks' devices; its `loss` is `Transformer.loss` under DDP or FSDP and autocast.

    `model` is the transformer itself; with FSDP its parameters are DTensors.
    """

    def __init__(self, model: Transformer, context: DistributedContext, options: TrainSection):
        self.context = context
        self.dtype = compute_dtype(options.dtype, context.device)
        self.model = model.to(context.device)
        self.model.recompute_blocks = options.activation_checkpointing
        if options.compile:
            torch._dynamo.config.optimize_ddp = False  # DDP's buckets would cut a block's graph in two
            for block in self.model.layers:
                block.compile()
        if context.size == 1:
            self._wrapped: nn.Module = model
        elif options.strategy == "fsdp":
            self._wrapped = _by_fsdp(model, context, self.dtype)
        else:
            self._wrapped = _by_ddp(model, context)

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor, domain_ids_B: Tensor, num_domains: int) -> Losses:
        """(mean loss of this rank's rows, per-domain sums (K,), per-domain counts (K,)); see `Transformer.loss`."""
        with torch.autocast(self.context.device.type, self.dtype, enabled=self.dtype != torch.float32):
            loss, sums_K, counts_K = self._wrapped(tokens_BT, targets_BT, domain_ids_B, num_domains)
        if isinstance(self.model, FSDPModule) and not torch.is_grad_enabled():
            # Otherwise the backward pass reshards. Until then the root's parameters are gathered ones, which the
            # optimizer does not have: a checkpoint would find no moments for them.
            self.model.reshard()
        return loss, sums_K, counts_K

    def gradient_sync(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """A context for the backward pass of a micro-batch: DDP all-reduces gradients only in the `last` of a step.

        FSDP reduce-scatters in each; deferring it would keep the whole model's gradients on every rank.
        """
        if isinstance(self._wrapped, DistributedDataParallel) and not last:
            return self._wrapped.no_sync()
        return contextlib.nullcontext()


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix multiplications: "auto" is bfloat16 on a GPU, float32 on a CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def _by_ddp(model: Transformer, context: DistributedContext) -> nn.Module:
    known = inspect.signature(DistributedDataParallel).parameters
    sync_buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # torch < 2.14
    options: dict[str, Any] = {sync_buffers: False}  # the only buffers, rotary tables, are equal on all ranks
    device_ids = [context.device] if context.device.type == "cuda" else None
    # gradient_as_bucket_view: gradients live in the buckets that are reduced, without a copy of each.
    return DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True, **options)


def _by_fsdp(model: Transformer, context: DistributedContext, dtype: torch.dtype) -> nn.Module:
    """Each block is an FSDP unit, gathered for its own computation; the embedding and the last norm are another."""
    mesh = init_device_mesh(context.device.type, (context.size,))
    # The warning is about in-place writes to such a view; the operations after a block make none.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in model.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model
