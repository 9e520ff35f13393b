"""`run_training`: from a config to a trained run, resumable at any step.

Invariant: step s follows from the config, the corpus and s alone, so a run that was killed and resumed equals one that
was not (to the bit on one CPU process). A checkpoint of s finished steps holds all that step s needs: parameters,
AdamW's moments, the loader's cursors and pending mixtures, the policy, torch's generator. Each stage of a run is a
Trainer of its own that resumes from the last one's checkpoint.
"""

import dataclasses
import gc
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch

from ado_kernels.numba_cache import compile_in_background
from ado_model import Transformer
from ado_stream.corpus.manifest import missing_validation
from ado_stream.errors import ResumeError
from ado_stream.policy.operator_control import Control
from ado_stream.record import RunRecord
from ado_stream.stream.device_copies import TokenBatch
from ado_stream.train.changed_settings import changed_settings, changes_table, saved_settings
from ado_stream.train.checkpoint import (
    Checkpointer,
    CheckpointMetadata,
    ModelSizes,
    TrainingState,
    check_same_model,
    load_training_state,
)
from ado_stream.train.checkpoint_commit import checkpoint_dir
from ado_stream.train.components import build_components, make_validator
from ado_stream.train.cpu_tuning import keep_freed_memory
from ado_stream.train.distributed import DistributedContext, call_on_main, join_process_group, log_rank_errors
from ado_stream.train.dry_run import check_memory
from ado_stream.train.metric_sinks import make_sinks
from ado_stream.train.parallel import ParallelModel
from ado_stream.train.record_lines import fit_line, run_line
from ado_stream.train.resume import CHECKPOINTS, ResumePoint, begin_run, find_resume_point, prepare_run_dir
from ado_stream.train.run_config import TrainConfig
from ado_stream.train.run_control import RunControl
from ado_stream.train.stages import Stage, stage_at
from ado_stream.train.step_log import LaunchedStep, LogOptions, MetricSink, StepLog
from ado_stream.train.step_timer import StepTimer
from ado_stream.train.stop_request import StopRequest
from ado_stream.train.torch_defaults import torch_defaults
from ado_stream.train.train_step import TrainStep, make_optimizer
from ado_stream.train.validation import Validator
from ado_stream.value_types import JsonObject
from ado_stream.visible import show


@dataclass(frozen=True)
class RunResult:
    """A run's directory, its finished steps, and whether a signal stopped it before the last step."""

    run_dir: Path
    step: int
    stopped: bool


@torch_defaults()
def run_training(config: TrainConfig, resume: str | os.PathLike[str] = "auto") -> RunResult:
    """Trains to the config's last step, or until SIGTERM or SIGINT; writes checkpoints and the run record.

    resume: "auto" resumes from the newest valid checkpoint of the run directory, or starts from step 0 when there is
    none; "none" starts from step 0; a path names a checkpoint directory, of this run or of another one. What an earlier
    run wrote after that step is renamed, not removed. Call on every rank, with or without torchrun. Raises ConfigError,
    ResumeError, CheckpointError, DataError, StorageError.
    """
    wait_s = config.train.collective_timeout_s
    with join_process_group(config.train.device, wait_s) as context, log_rank_errors(context):
        if context.device.type == "cpu":
            keep_freed_memory()
        with ExitStack() as held:
            resume_point = begin_run(config, os.fspath(resume), context, held)
            if resume_point is None:
                return RunResult(Path(config.run_dir), config.train.steps, stopped=False)
            if context.is_main:
                compile_in_background("fit")  # seconds, once a machine; else all ranks would wait at the first refit
            stop: StopRequest | None = None
            while True:
                with Trainer(config, stage_at(config, resume_point.step), context) as trainer, log_rank_errors(context):
                    trainer.start(resume_point)
                    stop = stop or held.enter_context(StopRequest(context))  # once: no signal falls between stages
                    result = trainer.loop(stop)
                if result.stopped or result.step >= config.train.steps:
                    return result
                resume_point = call_on_main(context, lambda: find_resume_point(Path(config.run_dir), "auto"))
                del trainer
                gc.collect()  # its cycles hold the model, and the next stage's needs the memory


class Trainer:
    """One stage of a run on one rank. run_config: as it was given, of all stages."""

    def __init__(self, run_config: TrainConfig, stage: Stage, context: DistributedContext):
        self._run_config, self._stage, self._context = run_config, stage, context
        self._config = config = stage.config
        self._run_dir = Path(config.run_dir)
        self._checkpoints = self._run_dir / CHECKPOINTS
        self._components = build_components(config, context)
        self._loader = self._components.loader
        self._names = self._loader.dataset.names
        check_memory(self._components.model, config.train, context)
        torch.manual_seed(config.seed)
        self._parallel = ParallelModel(Transformer(self._components.model), context, config.train)
        self._optimizer = make_optimizer(self._parallel.model, config.train)
        self._step = TrainStep(self._parallel, self._optimizer, config.train, len(self._names), config.data.replication)
        self._state = TrainingState(self._parallel.model, self._optimizer)
        self._checkpointer = Checkpointer(
            self._checkpoints, context, config.checkpoint.keep, config.checkpoint.asynchronous
        )
        self._validator: Validator | None = None
        self._record: RunRecord | None = None
        self._control: RunControl | None = None  # on rank 0, whose policy makes the mixtures of all
        self._sinks: list[MetricSink] = []
        self._run_id = uuid.uuid4().hex[:12]
        self._finished = self._saved = 0  # steps
        self._drawn_K = np.zeros(len(self._names), np.int64)  # samples
        self._refit_step: int | None = None  # of the last refit in the record, failed ones included
        self._save_s = 0.0

    def start(self, resume_point: ResumePoint) -> None:
        """Loads the checkpoint to resume from, if any, and opens the record at its step."""
        # In this order: a checkpoint that does not fit raises before anything in the run directory is renamed, and the
        # record is opened only after rank 0 has cut it at the resume point.
        if resume_point.directory is not None and resume_point.metadata is not None:
            self._restore(resume_point, resume_point.directory, resume_point.metadata)
        call_on_main(self._context, lambda: prepare_run_dir(self._run_config, resume_point))
        self._log = self._open_log(0 if resume_point.metadata is None else resume_point.metadata.get("skipped", 0))
        line = run_line(
            self._config, self._components.corpus, self._loader, self._components.model, self._context, self._run_id
        )
        self._write("run", **line)
        if self._finished == self._stage.begin and self._config.stages:
            self._report_stage()
        for fault in resume_point.skipped:
            self._write_event("checkpoint skipped", fault=fault)
            if self._context.is_main:
                show(f"skipped checkpoint {fault}")
        if resume_point.directory is not None and resume_point.metadata is not None:
            self._report_resume(resume_point.directory, resume_point.metadata)
        if self._context.is_main:
            self._control = RunControl(self._run_dir, self._loader, self._record_order)
            self._control.repeat()
        entries = self._components.corpus.manifest["domains"]
        if self._context.is_main and (missing := missing_validation({name: entries[name] for name in self._names})):
            show(missing)

    def loop(self, stop: StopRequest) -> RunResult:
        """Trains until the stage's last step or a signal, saves, and returns how far it came."""
        steps, every = self._stage.end, self._config.checkpoint.every_steps
        evaluate_every = self._config.evaluate.every_steps
        batches = iter(self._loader)
        while self._finished < steps and not stop.agreed():
            due = evaluate_every and self._finished and self._finished % evaluate_every == 0
            if due and not self.evaluate(stop):
                break
            self._train_step(batches)
            if every and self._finished % every == 0:
                self._save()
        if self._saved != self._finished:
            self._save()
        self._log.flush()
        self._record_refit()
        self._checkpointer.wait()
        if self._finished == steps < self._config.train.steps:  # the next stage validates when it is due
            return RunResult(self._run_dir, self._finished, stopped=False)
        stopped = self._finished < steps or not self.evaluate(stop)
        self._write_event("stop" if stopped else "done")
        if self._control is not None and not stopped:
            self._control.refuse(f"the run has ended at step {self._finished:,}.")
        return RunResult(self._run_dir, self._finished, stopped)

    def evaluate(self, stop: StopRequest) -> bool:
        """Records validation losses, if the corpus has a val split. False: a stop request interrupted it."""
        self._log.flush()  # before anything else, so that validation is not in the last step's time
        if self._validator is None:
            self._validator = make_validator(self._config, self._components, self._context)
        if self._validator is None:
            return True
        result = self._validator(self._parallel.loss, stop.agreed)
        if result is None:
            return False
        self._write(
            "eval",
            step=self._finished,
            split="val",
            loss=result.loss,
            domain_loss=result.domain_loss_K,
            domain_tokens=result.domain_tokens_K,
            domain_bytes=result.domain_bytes_K,
            domain_text=result.text_K,
        )
        num_samples_K = result.domain_tokens_K / self._loader.dataset.seq_len
        self._loader.observe_validation(result.domain_loss_K, num_samples_K)
        self._record_refit()  # the policy has seen every loss now
        self._log.write_scalars(self._finished, {"val_loss": result.loss}, val_domain_loss=result.domain_loss_K)
        if self._context.is_main:
            show(f"step {self._finished:>6}  validation loss {result.loss:.4f}")
        return True

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for a save in the background, also after a failure: it holds the newest state to resume from."""
        try:
            self._checkpointer.wait()
        except Exception as unsaved:  # `loop` waits too, so another exception is on its way: that one is raised
            show(str(unsaved), error=True)
        self._loader.close()
        for sink in self._sinks:
            sink.close(failed=kind is not None)
        if self._record is not None:
            self._record.close()

    def _train_step(self, batches: Iterator[TokenBatch]) -> None:
        timer = StepTimer(self._context.device, self._save_s)
        self._save_s = 0.0
        with timer.host("data"):
            batch = next(batches)
        with timer.device("forward_backward"):
            loss_B, own_B = self._new_sample_losses()
            sums_K, counts_K = self._step.forward_backward(
                batch["tokens"], batch["domain"], batch.get("targets"), own_B
            )
        learning_rate = self._components.schedule(self._finished)
        with timer.device("optimizer"):
            outcome = self._step.update(sums_K, counts_K, learning_rate, loss_B)
        samples_K = self._loader.dataset.sample_counts(batch["step"])
        self._drawn_K += samples_K
        launched = LaunchedStep(
            batch["step"], self._loader.mixture, samples_K, self._drawn_K.copy(), learning_rate, timer
        )
        # before `observe`: it waits for the device's previous step, `observe` then does not
        self._log.push(launched, outcome)
        with timer.host("policy"):
            if self._control is not None:
                self._control.read()
            self._loader.observe(*outcome.for_policy(), reduced=True)
        self._finished += 1
        self._record_refit()

    def _new_sample_losses(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """(B,) float64 zeros for the losses of a step's rows, and this rank's part; None if not recorded."""
        if not self._config.log.sample_losses:
            return None, None
        dataset = self._loader.dataset
        loss_B = torch.zeros(dataset.settings.global_batch_size, dtype=torch.float64, device=self._context.device)
        return loss_B, loss_B[dataset.rank_slots.rows(dataset.settings)]

    def _save(self) -> None:
        """Saves a checkpoint of the current step; the seconds it takes are added to the next step's line."""
        started = time.perf_counter()
        self._log.flush()
        loader_state = self._loader.state_dict()  # passes the last losses to the policy, which may refit
        self._record_refit()
        metadata: CheckpointMetadata = {
            "finished_steps": self._finished,
            "run_id": self._run_id,
            "drawn": dict(zip(self._names, self._drawn_K.tolist(), strict=True)),
            "skipped": self._log.num_skipped,
            "model": cast(ModelSizes, dataclasses.asdict(self._components.model)),
            "tokenizer": self._components.corpus.tokenizer.fingerprint,
            "settings": saved_settings(self._config, self._components, self._context),
            "loader": loader_state,
        }
        directory = checkpoint_dir(self._checkpoints, self._finished)

        def write_event(step: int = self._finished) -> None:  # in the saving thread: training may have advanced
            detail = {"directory": str(directory), "seconds": time.perf_counter() - started}
            self._write("event", step=step, name="checkpoint", detail=detail)

        self._checkpointer.save(self._state, metadata, write_event)
        self._saved = self._finished
        self._save_s = time.perf_counter() - started

    def _restore(self, resume_point: ResumePoint, directory: Path, metadata: CheckpointMetadata) -> None:
        """Loads a checkpoint: its model must be this one; then the loader and policy; then tensors and generator."""
        check_same_model(directory, metadata["model"], dataclasses.asdict(self._components.model))
        if resume_point.continues_run and list(metadata["drawn"]) != self._names:
            # lines of the record are lists in the order of the run's domains
            raise ResumeError(
                f"{directory} was saved with other domains; a run's record has one list of them.\n"
                f"  Set another 'run_dir' and use --resume {directory}."
            )
        self._finished = resume_point.step
        self._saved = self._finished if resume_point.already_saved else 0
        self._run_id = metadata["run_id"] if resume_point.continues_run else self._run_id
        # The loader first: it refuses a state before it changes anything; tensors are loaded in place.
        saved_policy = metadata["loader"].get("policy")
        if isinstance(saved_policy, dict) and saved_policy.get("policy") == Control.kind:  # orders were in force
            self._loader.policy = Control(self._loader.policy)
        self._loader.load_state_dict(metadata["loader"])
        load_training_state(directory, self._context, self._state)
        self._refit_step = self._loader.policy.attempt_step
        self._drawn_K = np.array([metadata["drawn"].get(name, 0) for name in self._names], np.int64)

    def _report_stage(self) -> None:
        """Records and prints that the stage begins; in the first one its mixture is drawn from the first step on."""
        stage, dataset = self._stage, self._loader.dataset
        self._write_event("stage", number=stage.number, end=stage.end, **dataclasses.asdict(stage.section))
        if stage.begin == 0 and stage.section.mixture is not None:
            for step in range(self._config.data.mixture_lag + 1):
                dataset.publish(step, self._loader.policy.mixture)
        if self._context.is_main:
            show(
                f"stage {stage.number} of {len(self._config.stages)}: steps {stage.begin:,} to {stage.end:,}, "
                f"{dataset.settings.global_batch_size} rows of {dataset.batch_seq_len} tokens"
            )

    def _report_resume(self, directory: Path, metadata: CheckpointMetadata) -> None:
        """Records the resume, and what differs from the settings that the checkpoint was saved with; prints that."""
        now = saved_settings(self._config, self._components, self._context)
        changes = changed_settings(metadata.get("settings"), list(metadata["drawn"]), now, self._names, self._finished)
        self._write_event("resume", checkpoint=str(directory), **({"changes": changes} if changes else {}))
        if not self._context.is_main:
            return
        show(f"resuming from step {self._finished:,}: {directory}")
        if changes:
            show(changes_table(changes))
        steps = self._config.train.steps
        if self._finished > steps:
            text = f"nothing to train: the checkpoint has {self._finished} finished steps, 'train.steps' is {steps}"
            show(text)

    def _open_log(self, num_skipped: int) -> StepLog:
        options = self._config.log
        if self._context.is_main:
            self._record = RunRecord(self._run_dir)
            config = dataclasses.asdict(self._config)
            self._sinks = make_sinks(options, self._run_dir, self._run_id, self._finished, config)
        log_options = LogOptions(
            names=self._names,
            num_samples_K=self._loader.dataset.num_samples,
            seq_len=self._loader.dataset.seq_len,
            total_steps=self._config.train.steps,
            every_steps=options.every_steps,
            max_nonfinite=self._config.train.max_nonfinite,
            sample_losses=options.sample_losses,
        )
        return StepLog(self._context, self._record, self._sinks, log_options, num_skipped)

    def _record_order(self, step: int, detail: JsonObject) -> None:
        self._write("event", step=step, name="control", detail=detail)
        show(f"order: {detail['order']}; drawn from step {detail['drawn_from']:,} on")

    def _record_refit(self) -> None:
        """Writes the policy's health once after each refit, and its laws unless the refit failed."""
        policy = self._loader.policy
        if policy.attempt_step == self._refit_step:
            return
        self._refit_step = policy.attempt_step
        self._write("health", step=policy.attempt_step, health=policy.health())
        for text in policy.take_notices():
            self._write("event", step=policy.attempt_step, name="policy", detail={"text": text})
            show(text)
        if policy.fit_step != policy.attempt_step:
            return
        later = range(policy.fit_step + 1, self._finished)  # losses reach the policy late: steps since are subtracted
        drawn_K = self._drawn_K - sum(self._loader.dataset.sample_counts(step) for step in later)
        self._write("fit", **fit_line(policy, drawn_K))
        fit = policy.fit
        laws = {"log_beta": fit.log_beta, "log_eps": fit.log_eps, "alpha": fit.alpha}
        self._log.write_scalars(policy.fit_step, {}, **laws)

    def _write_event(self, name: str, **detail: object) -> None:
        self._write("event", step=self._finished, name=name, detail=detail)

    def _write(self, kind: str, **fields: object) -> None:
        if self._record is not None:
            self._record.write(kind, **fields)
