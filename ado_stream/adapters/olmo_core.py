"""OLMo-core's Trainer with an AdaptiveLoader: `AdaptiveDataLoader(loader, work_dir=...)` and `AdaptiveCallback()`.

The data loader's state is in the trainer's checkpoints. The callback adds up the losses at the model's LM head, whose
loss and gradient stay its own, and observes each batch before the checkpointer saves.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from olmo_core.data.collator import DataCollator
from olmo_core.data.data_loader import TextDataLoaderBase
from olmo_core.distributed.utils import get_local_tensor
from olmo_core.nn.lm_head import LMHead, LMLossImplementation, LMOutputWithLoss
from olmo_core.train.callbacks import Callback

from ado_stream.adapters.domain_sums import DomainSums, tag_labels, untag_labels
from ado_stream.adapters.micro_batches import refuse_targets
from ado_stream.errors import ConfigError
from ado_stream.loader import AdaptiveLoader
from ado_stream.value_types import JsonObject


class AdaptiveDataLoader(TextDataLoaderBase):
    """Batches of `loader` in one endless epoch: give the trainer a `max_duration` in steps or tokens.

    loader: its data set has the rank and world_size of the data-parallel group. options: of TextDataLoaderBase.
    """

    def __init__(self, loader: AdaptiveLoader, **options: Any):
        refuse_targets(loader, "OLMo-core")
        dataset = loader.dataset
        super().__init__(
            collator=DataCollator(pad_token_id=0),
            global_batch_size=dataset.settings.global_batch_size * dataset.batch_seq_len,
            dp_world_size=dataset.rank_slots.world_size,
            dp_rank=dataset.rank_slots.rank,
            **options,
        )
        self.loader = loader

    @property
    def global_batch_size(self) -> int:
        """In tokens."""
        return self._global_batch_size

    @global_batch_size.setter
    def global_batch_size(self, new_global_batch_size: int) -> None:
        raise ConfigError("the batch size of an AdaptiveStreamingDataset is part of a run; remove BatchSizeScheduler.")

    @property
    def total_batches(self) -> None:
        """Unknown: the stream does not end."""

    def reshuffle(self, epoch: int | None = None, **options: Any) -> None:
        """Sets the epoch only; the loader continues at its step."""
        self._epoch = epoch or 1

    def _iter_batches(self) -> Iterable[dict[str, torch.Tensor]]:
        for batch in self.loader:
            tokens_BT = batch["tokens"]
            yield {"input_ids": tokens_BT[:, :-1], "labels": tag_labels(tokens_BT[:, 1:], batch["domain"])}

    def get_mock_batch(self) -> dict[str, torch.Tensor]:
        """Zeros in the shape of a batch; its labels have no domain, so that it is not observed."""
        seq_len = self.loader.dataset.batch_seq_len
        tokens_BT = torch.zeros(self.rank_batch_size // seq_len, seq_len, dtype=torch.int64, device="cpu")
        return {"input_ids": tokens_BT, "labels": tokens_BT}

    def state_dict(self) -> JsonObject:
        """Of the step last trained, the same on every rank."""
        counts = {"batches_processed": self.batches_processed, "tokens_processed": self.tokens_processed}
        return {"adaptive_loader": self.loader.state_dict(), **counts}

    def load_state_dict(self, state_dict: JsonObject) -> None:
        """Continues from `state_dict`, saved with any number of ranks."""
        self.loader.load_state_dict(state_dict["adaptive_loader"])
        self.batches_processed, self.tokens_processed = (
            state_dict[f"{unit}_processed"] for unit in ("batches", "tokens")
        )


@dataclass
class AdaptiveCallback(Callback):
    """Passes the per-domain losses of each step to the AdaptiveDataLoader's loader."""

    priority: ClassVar[int] = 100  # before the checkpointer, whose save includes what was observed

    def post_attach(self) -> None:
        """Prepares the LM head of this rank, where there is one."""
        data_loader, module = self.trainer.data_loader, self.trainer.train_module
        if not isinstance(data_loader, AdaptiveDataLoader):
            raise ConfigError(
                f"AdaptiveCallback needs an AdaptiveDataLoader; the trainer has {type(data_loader).__name__}."
            )
        self._loader = data_loader.loader
        self._sums = DomainSums(len(self._loader.dataset.names), module.device)
        for part in getattr(module, "model_parts", None) or [module.model]:
            for head in (each for each in part.modules() if isinstance(each, LMHead)):
                if head.loss_implementation != LMLossImplementation.default:
                    raise ConfigError(
                        "AdaptiveCallback needs logits; set the LM head's loss_implementation to 'default'."
                    )
                head.register_forward_pre_hook(self._before_head, with_kwargs=True)
                head.register_forward_hook(self._after_head, with_kwargs=True)

    def post_train_batch(self) -> None:
        """Observes the batch, all of its micro-batches added up."""
        self._loader.observe(*self._sums.take())

    def _before_head(self, head: LMHead, inputs: Any, options: dict[str, Any]) -> Any:
        labels = options.get("labels")
        if labels is None:
            return None
        tokens_BT, self._domain_BT = untag_labels(labels)
        logits = {"return_logits": True} if head.training else {}
        return inputs, {**options, "labels": tokens_BT, **logits}

    @torch.no_grad()
    def _after_head(self, head: LMHead, inputs: Any, options: dict[str, Any], output: Any) -> Any:
        if not (head.training and isinstance(output, LMOutputWithLoss)):
            return output
        logits, tokens, domains = (
            get_local_tensor(each) for each in (output.logits, options["labels"], self._domain_BT)
        )
        loss_N = F.cross_entropy(logits.flatten(0, -2).float(), tokens.flatten(), reduction="none")
        self._sums.add(loss_N, domains.flatten())
        return output._replace(logits=None)
