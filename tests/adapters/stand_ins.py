"""Small modules with the interfaces of torchtitan, OLMo-core and megatron-core that the adapters use.

The trainers are heavy, and none is a requirement of this project. What holds against these modules holds against the
real ones by test_real_trainers.py, where those are installed.
"""

import contextlib
import importlib
import importlib.machinery
import importlib.util
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch._dynamo  # looks for spmd_types once, when it is imported, and would use the stand-in
import torch.nn.functional as F


def import_adapter(patch, name: str, modules: dict[str, dict[str, Any]]) -> ModuleType:
    """The adapter `name`, imported with `modules`, {dotted name: its attributes}; forgotten when `patch` ends."""
    made: dict[str, ModuleType] = {}
    for dotted, attributes in modules.items():
        parts = dotted.split(".")
        for package in (".".join(parts[:end]) for end in range(1, len(parts) + 1)):
            if package not in made:
                spec = importlib.machinery.ModuleSpec(package, None, is_package=True)
                made[package] = importlib.util.module_from_spec(spec)
                patch.setitem(sys.modules, package, made[package])
        vars(made[dotted]).update(attributes)
    dotted = f"ado_stream.adapters.{name}"
    patch.setitem(sys.modules, dotted, None)  # what stood there before comes back at the end
    del sys.modules[dotted]
    return importlib.import_module(dotted)


# torchtitan -----------------------------------------------------------------------------------------------------------


class Configurable:
    @dataclass(kw_only=True, slots=True)
    class Config:
        def build(self, **options):
            return self._owner(self, **options)

    def __init_subclass__(cls):
        if "Config" in cls.__dict__:
            cls.Config._owner = cls


class BaseDataLoader(Configurable):
    @dataclass(kw_only=True, slots=True)
    class Config(Configurable.Config):
        dataset: str = ""


class BaseLoss(Configurable):
    @dataclass(kw_only=True, slots=True)
    class Config(Configurable.Config):
        pass


class CrossEntropyLoss(BaseLoss):
    @dataclass(kw_only=True, slots=True)
    class Config(BaseLoss.Config):
        pass

    def __init__(self, config, *, compile_config=None):
        pass

    def __call__(self, pred, labels, global_valid_tokens=None):
        loss = F.cross_entropy(pred.flatten(0, 1).float(), labels.flatten(0, 1), reduction="sum")
        return loss if global_valid_tokens is None else loss / global_valid_tokens, {}


class ChunkedLossWrapper(BaseLoss):
    """Calls its inner loss for two chunks of the sequence; the real one takes hidden states and applies the LM head."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseLoss.Config):
        loss_fn: BaseLoss.Config

    def __init__(self, config, *, compile_config=None):
        self.loss_fn = config.loss_fn.build(compile_config=compile_config)

    def __call__(self, pred, labels, global_valid_tokens=None):
        chunks = zip(pred.chunk(2, dim=1), labels.chunk(2, dim=1), strict=True)
        return sum(self.loss_fn(*chunk, global_valid_tokens)[0] for chunk in chunks), {}


class TitanTrainer:
    @dataclass
    class Config:
        loss: BaseLoss.Config
        dataloader: BaseDataLoader.Config


def compute_logprobs(logits, labels):
    return -F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none")


TORCHTITAN = {
    "spmd_types": {"no_typecheck": contextlib.nullcontext},
    "tyro": {"conf": SimpleNamespace(Suppress=None)},
    "torchtitan.components.dataloader": {"BaseDataLoader": BaseDataLoader},
    "torchtitan.components.loss": {
        "BaseLoss": BaseLoss,
        "ChunkedLossWrapper": ChunkedLossWrapper,
        "compute_logprobs": compute_logprobs,
    },
    "torchtitan.tools.utils": {"get_local_device": lambda: torch.device("cpu")},
    "torchtitan.trainer": {"Trainer": TitanTrainer},
}

# OLMo-core ------------------------------------------------------------------------------------------------------------


class TextDataLoaderBase:
    def __init__(self, *, collator, work_dir, global_batch_size, dp_world_size=1, dp_rank=0):
        self._global_batch_size, self.dp_world_size, self.dp_rank = global_batch_size, dp_world_size, dp_rank
        self.batches_processed = self.tokens_processed = 0
        self._epoch = None

    @property
    def rank_batch_size(self):
        return self.global_batch_size // self.dp_world_size

    def __iter__(self):
        for batch in self._iter_batches():
            self.batches_processed += 1
            assert batch["input_ids"].numel() == self.rank_batch_size
            self.tokens_processed += self.global_batch_size
            yield batch


class LMOutputWithLoss(NamedTuple):
    logits: torch.Tensor | None
    loss: torch.Tensor
    ce_loss: torch.Tensor
    z_loss: torch.Tensor | None


class LMHead(torch.nn.Module):
    def __init__(self, width, vocab_size, loss_implementation="default"):
        super().__init__()
        self.w_out = torch.nn.Linear(width, vocab_size)
        self.loss_implementation = loss_implementation

    def forward(self, x, *, labels=None, ignore_index=-100, return_logits=None, loss_div_factor=1.0):
        logits = self.w_out(x)
        if labels is None:
            return logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=ignore_index, reduction="sum")
        loss = loss / loss_div_factor
        return LMOutputWithLoss(None if return_logits is False else logits, loss, loss.detach(), None)


class Callback:
    trainer: Any


OLMO_CORE = {
    "olmo_core.data.collator": {"DataCollator": SimpleNamespace},
    "olmo_core.data.data_loader": {"TextDataLoaderBase": TextDataLoaderBase},
    "olmo_core.distributed.utils": {"get_local_tensor": lambda tensor: tensor},
    "olmo_core.nn.lm_head": {
        "LMHead": LMHead,
        "LMLossImplementation": SimpleNamespace(default="default"),
        "LMOutputWithLoss": LMOutputWithLoss,
    },
    "olmo_core.train.callbacks": {"Callback": Callback},
}

# megatron-core --------------------------------------------------------------------------------------------------------


def megatron_core(
    num_parts: int, tensor: tuple[int, int] = (0, 1), pipeline: tuple[int, int] = (0, 1), tensor_group=None, **other
) -> dict[str, dict[str, Any]]:
    """Its modules on a rank. tensor, pipeline: (rank, number of ranks), tensor ranks numbered first."""
    state = {
        "get_virtual_pipeline_model_parallel_world_size": lambda: None,
        "is_pipeline_first_stage": lambda: pipeline[0] == 0,
        "is_pipeline_last_stage": lambda: pipeline[0] == pipeline[1] - 1,
        "get_tensor_model_parallel_rank": lambda: tensor[0],
        "get_tensor_model_parallel_src_rank": lambda: pipeline[0] * tensor[1],
        "get_tensor_model_parallel_group": lambda: tensor_group,
        "get_data_parallel_rank": lambda: 0,
        "get_data_parallel_world_size": lambda: 1,
        "get_context_parallel_rank": lambda: 0,
        "get_context_parallel_world_size": lambda: 1,
        **other,
    }
    return {
        "megatron.core": {"parallel_state": SimpleNamespace(**state)},
        "megatron.core.num_microbatches_calculator": {"get_num_microbatches": lambda: num_parts},
    }
