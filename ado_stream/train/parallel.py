"""One model over all ranks: DDP (a copy on each) or FSDP2 (`fully_shard`: a part on each).

Invariant: whatever the strategy and the world, the gradient is that of the mean loss over the global batch. Matrices
are multiplied in bfloat16 where asked; parameters, gradients' sums and the optimiser stay float32.
"""

import contextlib
import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from ado_model import Transformer
from ado_stream.train.config import TrainSection
from ado_stream.train.distributed import World


class ParallelModel:
    """A transformer placed on the world's devices; its `loss` is `Transformer.loss` with all that the world needs.

    `model` is the bare transformer: with FSDP its parameters are DTensors.
    """

    def __init__(self, model: Transformer, world: World, options: TrainSection):
        self.world = world
        self.dtype = compute_dtype(options.dtype, world.device)
        self.model = model.to(world.device)
        self.model.recompute_blocks = options.activation_checkpointing
        if options.compile:
            torch._dynamo.config.optimize_ddp = False  # a block is a unit already; DDP's buckets would cut its graph
            for block in self.model.layers:
                block.compile()
        if world.size == 1:
            self._shared: nn.Module = _Loss(model)
        elif options.strategy == "fsdp":
            self._shared = _by_fsdp(model, world, self.dtype)
        else:
            self._shared = _by_ddp(model, world)

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor, domain_ids_B: Tensor, num_domains: int):
        """(mean loss of this rank's rows, per-domain sums (K,), per-domain counts (K,)); see `Transformer.loss`."""
        with torch.autocast(self.world.device.type, self.dtype, enabled=self.dtype != torch.float32):
            found = self._shared(tokens_BT, targets_BT, domain_ids_B, num_domains)
        if isinstance(self.model, FSDPModule) and not torch.is_grad_enabled():
            self.model.reshard()  # what a backward pass does else; until then its parameters are not the optimizer's
        return found

    def accumulating(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """With DDP ranks exchange gradients only in the backward of the `last` micro-batch of a step.

        With FSDP in every one: to wait would keep the whole model's gradients on each rank.
        """
        if isinstance(self._shared, DistributedDataParallel) and not last:
            return self._shared.no_sync()
        return contextlib.nullcontext()


class _Loss(nn.Module):
    """`Transformer.loss` as a forward, which is what DDP and FSDP hook into."""

    def __init__(self, model: Transformer):
        super().__init__()
        self.model = model

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor, domain_ids_B: Tensor, num_domains: int):
        return self.model.loss(tokens_BT, targets_BT, domain_ids_B, num_domains)


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype that matrices are multiplied in: "auto" is bfloat16 on a GPU, float32 elsewhere."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def _by_ddp(model: Transformer, world: World) -> nn.Module:
    known = inspect.signature(DistributedDataParallel).parameters
    sync_buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # torch < 2.14
    options: dict[str, Any] = {sync_buffers: False}  # the rotary tables are the same everywhere
    device_ids = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(_Loss(model), device_ids=device_ids, gradient_as_bucket_view=True, **options)


def _by_fsdp(model: Transformer, world: World, dtype: torch.dtype) -> nn.Module:
    """Each block is one unit that is gathered for its own computation; the embedding and the last norm another."""
    mesh = init_device_mesh(world.device.type, (world.size,))
    # What a block returns goes into operations that write nothing in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view", category=UserWarning)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in model.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    register_fsdp_forward_method(model, "loss")
    return _Loss(model)
