"""Hugging Face's Trainer with an AdaptiveLoader: `AdaptiveTrainer(model=..., args=..., loader=...)`.

The loss is Trainer's own: the model's with its auxiliary losses, `compute_loss_func` or label smoothing. Per-domain
sums come from the logits of the same forward pass. The loader's batch is this rank's part of the global batch:
`gradient_accumulation_steps` splits it, and the batch size in `args` is not used for training.

Samples go to the model whole, T + 1 tokens; it drops the last logits itself. The loader's state is in each of Trainer's
checkpoints. It is written first: a folder with it and with trainer_state.json, which Trainer writes last, is complete.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from ado_kernels import domain_loss
from ado_stream.adapters.micro_batches import MicroBatches, SizedBatches, refuse
from ado_stream.durable import write_durably
from ado_stream.errors import CheckpointError, ConfigError, ResumeError
from ado_stream.loader import AdaptiveLoader

STATE_FILE = "adaptive_loader.json"
_TRAINER_STATE, _SCHEDULER = "trainer_state.json", "scheduler.pt"
_IGNORED, _NO_DOMAIN = -100, -1
_log = logging.getLogger(__name__)


class _Inputs(SizedBatches):
    """Micro-batches as Trainer's inputs: "input_ids" and "labels" (b, T + 1), "domain" (b,), "weight"."""

    def __iter__(self) -> Iterator[dict[str, torch.Tensor | float]]:
        for batch in self._micro_batches:
            labels_BT = F.pad(batch["targets"], (1, 0), value=_IGNORED)  # the first is no target, but Trainer counts it
            inputs = {"input_ids": batch["tokens"], "labels": labels_BT, "domain": batch["domain"]}
            yield {**inputs, "weight": batch["weight"]}


class _Progress(TrainerCallback):
    """Notes which step the loader was at when training began, and where in the run each step is.

    Trainer counts from the batch at which a resumed process began.
    """

    def __init__(self, loader: AdaptiveLoader):
        self._loader = loader
        self._first_step: int | None = None  # of the loader

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """After the checkpoint was loaded, before the first batch is asked for."""
        self._first_step = self._loader.step - state.global_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Before Trainer logs the epoch."""
        state.epoch = state.global_step / state.max_steps

    def check_whole_step(self, num_steps: int) -> None:
        """Raises CheckpointError unless the model has been trained on every batch that was handed out."""
        if self._first_step not in (None, self._loader.step - num_steps):
            raise CheckpointError(
                f"a checkpoint in the middle of step {num_steps + 1}: a resume would leave its batch out.\n"
                "  Let Trainer save, after a step: `control.should_save = True`."
            )


class AdaptiveTrainer(Trainer):
    """A Trainer that reads from `loader` and passes it the per-domain losses; `max_steps` must be set."""

    def __init__(self, *arguments: Any, loader: AdaptiveLoader, **options: Any):
        super().__init__(*arguments, **options)
        args, config = self.args, getattr(self.model, "config", None)
        refusals = {
            "needs max_steps of at least 1": args.max_steps < 1,
            "cannot resume under DeepSpeed; use DDP or FSDP": self.is_deepspeed_enabled,
            "takes its samples from `loader`; leave train_dataset out": self.train_dataset is not None,
            "runs one process for each GPU; start it by torchrun or accelerate launch": args.n_gpu > 1,
            "cannot repeat steps with another batch size; unset auto_find_batch_size": args.auto_find_batch_size,
            "cannot count tokens by reading ahead; unset include_tokens_per_second": (
                getattr(args, "include_tokens_per_second", False)  # not in transformers 5, which does not read ahead
            ),
            "cannot save in the middle of a step; unset enable_jit_checkpoint": (
                getattr(args, "enable_jit_checkpoint", False)  # of transformers 5
            ),
            "needs logits, which Liger's loss does not return; unset use_liger_kernel": args.use_liger_kernel,
            # Trainer does not divide the smoothed loss by the number of parts, and multiplies it by that of ranks
            "cannot smooth labels with accumulation or several ranks; unset label_smoothing_factor": (
                args.label_smoothing_factor != 0 and (args.gradient_accumulation_steps, args.world_size) != (1, 1)
            ),
            "cannot smooth labels of a model with a router's loss, which Trainer leaves out; unset one of them": (
                args.label_smoothing_factor != 0 and getattr(config, "output_router_logits", False)
            ),
            "needs a model that predicts the next token, not an encoder's": (
                getattr(config, "is_encoder_decoder", False)
                or type(self.model).__name__ in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()
            ),
        }
        refuse("AdaptiveTrainer", refusals)
        check_positions(config, loader.dataset.batch_seq_len + 1)
        if self.label_smoother is not None:  # Trainer shifts labels only for names that it knows, no compiled model's
            shifting: Any = partial(self.label_smoother, shift_labels=True)
            self.label_smoother = shifting
        args.ignore_data_skip = True  # the loader's state includes its position; Trainer must not skip batches too
        self._loader, self._num_domains = loader, len(loader.dataset.names)
        self._progress = _Progress(loader)
        self.add_callback(self._progress)  # type: ignore[no-untyped-call]
        self._micro_batches = self._make_micro_batches()

    def _make_micro_batches(self) -> MicroBatches:
        return MicroBatches(self._loader, self.args.gradient_accumulation_steps, "gradient_accumulation_steps")

    def get_train_dataloader(self) -> SizedBatches:  # type: ignore[override]
        """The loader, which yields this rank's part of each batch in `gradient_accumulation_steps` parts."""
        self._micro_batches = self._make_micro_batches()  # `args` may have changed
        return _Inputs(self._micro_batches, self.args.max_steps * self.args.gradient_accumulation_steps)

    def get_total_train_batch_size(self, args: TrainingArguments) -> int:
        """The loader's, from which Trainer computes samples per second."""
        return self._loader.dataset.settings.global_batch_size

    def compute_loss(
        self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Trainer's loss; in training the per-domain sums of samples with a "domain" go to the loader.

        labels, if given: the targets as Hugging Face's models take them; -100 is not counted.
        """
        inputs = dict(inputs)
        domain_B, scale = inputs.pop("domain", None), inputs.pop("weight", 1.0)
        if domain_B is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels_BT = inputs.setdefault("labels", make_labels(inputs["input_ids"]))
        if num_items_in_batch is not None:  # otherwise the loss is a part's mean, which Trainer divides by the parts
            num_shares = self._num_shares(model)
            scale = 1 / num_shares
            if num_shares > 1:
                num_items_in_batch = num_items_in_batch / num_shares
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = loss * scale
        if model.training:
            logits_BTV = logits_of(outputs, labels_BT)
            self._micro_batches.observe(*domain_sums(logits_BTV, labels_BT, domain_B, self._num_domains))
        return (loss, outputs) if return_outputs else loss

    def _num_shares(self, model: torch.nn.Module) -> int:
        """How often a step adds up the model's auxiliary losses: once for each part, times Trainer's factor of ranks.

        With so small a share of the count of targets, and the loss divided by as much, targets weigh as they should and
        auxiliary losses are averaged.
        """
        if not model.training or self.compute_loss_func is not None:
            return 1
        num_ranks = self.args.world_size if self.args.average_tokens_across_devices else 1
        return self.args.gradient_accumulation_steps * num_ranks

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[no-untyped-call]
        columns: list[str] = self._signature_columns or []
        if "domain" not in columns:
            columns.append("domain")  # or evaluation would lose the column, and with it its loss

    def prediction_step(self, model: Any, inputs: dict[str, torch.Tensor], *arguments: Any, **options: Any) -> Any:
        """Trainer's, which computes a loss only with labels; samples with a domain are their own labels."""
        if "domain" in inputs:
            inputs = {**inputs, "labels": make_labels(inputs.get("labels", inputs["input_ids"]))}
        return super().prediction_step(model, inputs, *arguments, **options)

    def train(self, resume_from_checkpoint: str | bool | None = None, *arguments: Any, **options: Any) -> Any:
        """Trainer's. True resumes from the newest complete checkpoint; Trainer would take an incomplete one."""
        new_model = self.model_init is not None and not resume_from_checkpoint and self._loader.step > 0
        refusals = {
            "cannot search hyperparameters: all trials would share one loader and its policy": bool(
                options.get("trial")
            ),
            "cannot train a new model of model_init on a loader and a policy that are not new; make others": new_model,
        }
        refuse("AdaptiveTrainer", refusals)
        if resume_from_checkpoint is True:
            assert self.args.output_dir is not None, "Trainer sets it"
            resume_from_checkpoint = str(newest_complete(Path(self.args.output_dir)))
        elif resume_from_checkpoint and (fault := find_fault(Path(resume_from_checkpoint))):
            raise ResumeError(
                f"{resume_from_checkpoint}: {fault}: not saved by AdaptiveTrainer, or the save did not finish.\n"
                "  Resume from another checkpoint, or with True from the newest complete one."
            )
        return super().train(resume_from_checkpoint, *arguments, **options)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._progress.check_whole_step(self.state.global_step)
        state = self._loader.state_dict()  # on every rank: they update the policy together
        if self.args.should_save:
            run_dir = Path(self._get_output_dir(trial=trial))  # type: ignore[no-untyped-call]
            folder = run_dir / f"checkpoint-{self.state.global_step}"
            (folder / _TRAINER_STATE).unlink(missing_ok=True)  # an earlier run's: the folder is incomplete from here on
            write_durably(folder / STATE_FILE, json.dumps(state))
        super()._save_checkpoint(model, trial)  # type: ignore[no-untyped-call]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *arguments: Any, **options: Any) -> None:
        super()._load_from_checkpoint(  # type: ignore[no-untyped-call]
            resume_from_checkpoint, *arguments, **options
        )
        self._loader.load_state_dict(json.loads((Path(resume_from_checkpoint) / STATE_FILE).read_text()))


def make_labels(tokens_BT: torch.Tensor) -> torch.Tensor:
    """Tokens or labels without the first: it is no target, but Trainer counts it among those that it divides by."""
    labels_BT = tokens_BT.clone()
    labels_BT[:, 0] = _IGNORED
    return labels_BT


def logits_of(outputs: object, labels_BT: torch.Tensor) -> torch.Tensor:
    """A model's logits (b, T + 1, V). Raises ConfigError where its outputs have none, or of other positions."""
    logits_BTV = outputs.get("logits") if isinstance(outputs, Mapping) else None
    if not isinstance(logits_BTV, torch.Tensor) or logits_BTV.shape[:2] != labels_BT.shape:
        found = list(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__
        raise ConfigError(
            f"AdaptiveTrainer needs 'logits' of {labels_BT.shape[1]} positions in the model's outputs, got {found}.\n"
            "  Set return_dict=True, and leave out what fuses the loss, such as Liger's patches."
        )
    return logits_BTV


@torch.no_grad()
def domain_sums(
    logits_BTV: torch.Tensor, labels_BT: torch.Tensor, domain_B: torch.Tensor, num_domains: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-domain sums (K,) of the targets' losses and their counts (K,). logits t are of label t + 1."""
    targets_BT = labels_BT[:, 1:]
    # row by row: float32 logits of the whole batch, and their softmax, would be the largest tensors of the step
    rows = zip(logits_BTV[:, :-1], targets_BT, strict=True)
    loss_BT = torch.stack([F.cross_entropy(row.float(), targets, reduction="none") for row, targets in rows])
    return domain_loss(loss_BT, torch.where(targets_BT != _IGNORED, domain_B[:, None], _NO_DOMAIN), num_domains)


def check_positions(config: object, num_tokens: int) -> None:
    """Raises ConfigError for a model with a learned embedding of fewer positions than a sample has tokens."""
    num_positions = getattr(config, "max_position_embeddings", None)
    rotary = any(hasattr(config, name) for name in ("rope_theta", "rope_parameters", "rope_scaling"))
    if num_positions is not None and not rotary and num_positions < num_tokens:
        raise ConfigError(
            f"samples have {num_tokens} tokens, the model {num_positions} positions; prepare the corpus with "
            f"--seq-len {num_positions - 1} or less."
        )


def newest_complete(output_dir: Path) -> Path:
    """The complete checkpoint of the most steps. Raises ResumeError when there is none."""
    folders = [each for each in output_dir.glob("checkpoint-*") if each.name.removeprefix("checkpoint-").isdigit()]
    for folder in sorted(folders, key=lambda each: int(each.name.removeprefix("checkpoint-")), reverse=True):
        fault = find_fault(folder)
        if fault is None:
            return folder
        _log.warning("skipped %s: %s; the save did not finish", folder, fault)
    raise ResumeError(f"{output_dir}: no complete checkpoint to resume from; train without resume_from_checkpoint.")


def find_fault(folder: Path) -> str | None:
    """Why a checkpoint of AdaptiveTrainer is incomplete, or None."""
    for name in (STATE_FILE, _TRAINER_STATE):
        try:
            json.loads((folder / name).read_text())
        except FileNotFoundError:
            return f"{name} is missing"
        except ValueError:
            return f"{name} is not JSON"
    if not (folder / _SCHEDULER).exists():
        return f"{_SCHEDULER} is missing (save_only_model?)"  # the optimizer and its learning rate would begin anew
    return None
