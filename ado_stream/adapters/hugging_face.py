"""Hugging Face Trainer on an adaptive stream: `AdaptiveTrainer(model=..., args=..., loader=..., num_domains=...)`.

The loader's batch is already this rank's part of the global batch, so `gradient_accumulation_steps` must be 1 and the
batch size of `args` is not used. Losses per domain are taken from the model's logits, without a second forward pass.
Resuming: `loader_state` rides in each of Trainer's checkpoints and is loaded with it.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import Trainer

from ado_stream.errors import ConfigError
from ado_stream.loader import AdaptiveLoader

STATE_FILE = "adaptive_loader.json"


class _Batches:
    """The loader as what Trainer iterates: model inputs, the domain under "labels_domain"."""

    def __init__(self, loader: AdaptiveLoader):
        self.dataset = loader.dataset
        self._loader = loader

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in self._loader:
            yield {"input_ids": batch["tokens"], "domain": batch["domain"]}


class AdaptiveTrainer(Trainer):
    """Trainer that reads from `loader` and tells it what each batch taught; set `max_steps` in its arguments."""

    def __init__(self, *arguments: Any, loader: AdaptiveLoader, **options: Any):
        super().__init__(*arguments, **options)
        if self.args.gradient_accumulation_steps != 1 or self.args.max_steps < 1:
            raise ConfigError("AdaptiveTrainer needs gradient_accumulation_steps=1 and max_steps of at least 1.")
        self.args.ignore_data_skip = True  # the loader knows where it stands, and must not be read ahead to there again
        self._loader, self._num_domains = loader, len(loader.dataset.names)

    def get_train_dataloader(self) -> Any:
        """The adaptive loader; each rank of it serves its own part."""
        return _Batches(self._loader)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> torch.Tensor:
        """Mean next-token loss; the per-domain sums go to the loader, but in evaluation."""
        tokens_BT, domain_B = inputs["input_ids"], inputs["domain"]
        targets_BT = tokens_BT[:, 1:]
        logits_BTV = model(input_ids=tokens_BT[:, :-1]).logits
        loss_BT = F.cross_entropy(logits_BTV.float().transpose(1, 2), targets_BT, reduction="none")
        sums_K = torch.zeros(self._num_domains, dtype=torch.float64, device=loss_BT.device)
        sums_K.index_add_(0, domain_B, loss_BT.detach().double().sum(1))
        counts_K = torch.bincount(domain_B, minlength=self._num_domains) * targets_BT.shape[1]
        if model.training:
            self._loader.observe(sums_K, counts_K)
        return loss_BT.mean()

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
