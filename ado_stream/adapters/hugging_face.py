"""Hugging Face's Trainer with an AdaptiveLoader: `AdaptiveTrainer(model=..., args=..., loader=...)`.

The loader's batch is already this rank's part of the global batch, so `gradient_accumulation_steps` must be 1 and the
batch size in `args` is not used for training. Per-domain losses come from the model's logits, without a second forward
pass. Evaluation accepts what Trainer accepts, and samples with a domain. The loader's state is saved in each of
Trainer's checkpoints and loaded with it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import Trainer

from ado_kernels import domain_loss
from ado_stream.errors import ConfigError
from ado_stream.loader import AdaptiveLoader

STATE_FILE = "adaptive_loader.json"
_IGNORED, _NO_DOMAIN = -100, -1


class _Batches:
    """The loader's batches as Trainer's inputs: "input_ids" (b, T + 1) and "domain" (b,)."""

    def __init__(self, loader: AdaptiveLoader):
        self.dataset = loader.dataset
        self._loader = loader

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in self._loader:
            yield {"input_ids": batch["tokens"], "domain": batch["domain"]}


class AdaptiveTrainer(Trainer):
    """A Trainer that reads from `loader` and passes it the per-domain losses; `max_steps` must be set."""

    def __init__(self, *arguments: Any, loader: AdaptiveLoader, **options: Any):
        super().__init__(*arguments, **options)
        if self.args.gradient_accumulation_steps != 1 or self.args.max_steps < 1:
            raise ConfigError("AdaptiveTrainer needs gradient_accumulation_steps=1 and max_steps of at least 1.")
        if self.is_deepspeed_enabled:  # it resumes without `_load_from_checkpoint`: the loader would restart
            raise ConfigError("AdaptiveTrainer cannot resume under DeepSpeed; use DDP or FSDP.")
        self.args.ignore_data_skip = True  # the loader's state includes its position; Trainer must not skip batches too
        self._loader, self._num_domains = loader, len(loader.dataset.names)

    def get_train_dataloader(self) -> Any:
        """The loader, which yields this rank's part of each batch."""
        return _Batches(self._loader)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean next-token loss; in training the per-domain sums go to the loader. Without "domain", Trainer's own loss.

        labels, if given: the targets as Hugging Face's models take them; -100 is not counted.
        """
        if "domain" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        tokens_BT = inputs["input_ids"]
        targets_BT = inputs.get("labels", tokens_BT)[:, 1:]
        outputs = model(input_ids=tokens_BT[:, :-1])
        loss_BT = F.cross_entropy(outputs.logits.float().transpose(1, 2), targets_BT, reduction="none")
        kept_BT = targets_BT != _IGNORED
        if model.training:
            domain_BT = torch.where(kept_BT, inputs["domain"][:, None], _NO_DOMAIN)
            self._loader.observe(*domain_loss(loss_BT, domain_BT, self._num_domains))
        loss = loss_BT.sum() / kept_BT.sum()
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """Trainer's, which computes a loss only with labels; samples with a domain are their own labels."""
        if "domain" in inputs:
            inputs = {"labels": inputs["input_ids"], **inputs}
        return super().prediction_step(model, inputs, *arguments, **options)

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        super()._save_checkpoint(*arguments, **options)
        state = self._loader.state_dict()
        assert self.args.output_dir is not None, "Trainer sets it"
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.args.process_index == 0:
            (folder / STATE_FILE).write_text(json.dumps(state))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *arguments: Any, **options: Any) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, *arguments, **options)
        self._loader.load_state_dict(json.loads((Path(resume_from_checkpoint) / STATE_FILE).read_text()))
