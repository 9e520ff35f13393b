"""`run_training`: from a config to a trained run, resumable at any step.

Invariant: what a run does at step s follows from the config, the corpus and s alone; so a run that was killed and
resumed equals one that was not (to the bit on one CPU process). A checkpoint of s finished steps holds all that step s
needs: parameters, AdamW's moments, the loader's cursors and mixtures, the policy, torch's generator.
"""

import contextlib
import dataclasses
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ado_model import Transformer
from ado_stream.errors import CheckpointError, ResumeError
from ado_stream.evaluate.validation import Validation, Validator
from ado_stream.loader import AdaptiveLoader
from ado_stream.record import RunRecord, rewind
from ado_stream.train import commit
from ado_stream.train.assemble import (
    make_dataset,
    make_run_policy,
    make_schedule,
    model_config,
    open_split,
)
from ado_stream.train.checkpoint import Checkpointer, TrainingState, load_facts, load_training
from ado_stream.train.config import TrainConfig, save_config
from ado_stream.train.describe import fit_line, run_line
from ado_stream.train.distributed import World, join_world, on_main
from ado_stream.train.host import keep_freed_memory
from ado_stream.train.parallel import ParallelModel
from ado_stream.train.sinks import make_sinks
from ado_stream.train.step import TrainStep, make_optimizer
from ado_stream.train.steplog import LogOptions, Sink, StepFacts, StepLog
from ado_stream.train.stop import StopRequest

CHECKPOINTS = "checkpoints"
CONFIG_FILE = "config.yaml"


@dataclass(frozen=True)
class RunResult:
    """How far a run came: its directory, finished steps, and whether a signal stopped it before the end."""

    run_dir: Path
    step: int
    stopped: bool


def run_training(config: TrainConfig, resume: str | os.PathLike[str] = "auto") -> RunResult:
    """Trains to the config's last step, or until SIGTERM or SIGINT, and leaves a checkpoint and a record.

    resume: "auto" goes on from the newest complete checkpoint of the run directory, or starts anew when there is none;
    "none" starts anew; a path names a checkpoint directory. Checkpoints beyond the point of resuming are renamed, not
    removed. Call on every rank, under torchrun or alone. Raises ConfigError, ResumeError, CheckpointError, DataError.
    """
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(join_world(config.train.device, config.train.collective_timeout_s))
        if world.device.type == "cpu":
            keep_freed_memory()
        training = Training(config, world)
        stack.callback(training.close)
        training.start(os.fspath(resume))
        with StopRequest(world) as stop:
            return training.loop(stop)


class Training:
    """One run on one rank: its parts, its loop."""

    def __init__(self, config: TrainConfig, world: World):
        self._config, self._world = config, world
        self._run_dir = Path(config.run_dir)
        self._checkpoints = self._run_dir / CHECKPOINTS
        self._corpus = open_split(config, "train")
        self._model_config = model_config(config, self._corpus)
        dataset = make_dataset(config, self._corpus)
        self._names = dataset.names
        self._loader = AdaptiveLoader(
            dataset,
            make_run_policy(config, dataset),
            prefetch=config.data.prefetch,
            io_threads=config.data.io_threads,
            pin_memory=world.device.type == "cuda",
            timeout_s=world.timeout_s,
        )
        torch.manual_seed(config.seed)
        self._parallel = ParallelModel(Transformer(self._model_config), world, config.train)
        self._optimizer = make_optimizer(self._parallel.model, config.train)
        self._step = TrainStep(self._parallel, self._optimizer, config.train, len(self._names))
        self._schedule = make_schedule(config, self._model_config.width)
        self._saver = Checkpointer(self._checkpoints, world, config.checkpoint.keep, config.checkpoint.asynchronous)
        self._validator: Validator | None = None
        self._record: RunRecord | None = None
        self._sinks: list[Sink] = []
        self._run_id = uuid.uuid4().hex[:12]
        self._finished = 0  # steps
        self._drawn_K = np.zeros(len(self._names), np.int64)  # samples
        self._attempt_step: int | None = None  # of the last refit in the record
        self._save_s = 0.0

    def start(self, resume: str) -> None:
        """Goes to where `resume` says, and opens the record there."""
        directory, passed_over = on_main(self._world, self._find, resume)
        facts = None
        if directory is not None:
            facts = on_main(self._world, load_facts, directory)
            self._restore(directory, facts)
        on_main(self._world, self._open_run_dir)
        self._record = RunRecord(self._run_dir) if self._world.is_main else None
        config = dataclasses.asdict(self._config)
        options = self._config.log
        if self._world.is_main:
            self._sinks = make_sinks(options, self._run_dir, self._run_id, self._finished, config)
        self._log = StepLog(
            self._world,
            self._record,
            self._sinks,
            LogOptions(
                names=self._names,
                num_samples_K=self._loader.dataset.num_samples_K,
                seq_len=self._loader.dataset.seq_len,
                total_steps=self._config.train.steps,
                every_steps=options.every_steps,
                max_nonfinite=self._config.train.max_nonfinite,
            ),
        )
        if facts is not None:
            self._log.num_skipped = facts["skipped"]
        line = run_line(self._config, self._corpus, self._loader, self._model_config, self._world, self._run_id)
        self._write("run", **line)
        for fault in passed_over:
            self._event("checkpoint passed over", fault=fault)
            if self._world.is_main:
                print(f"passed over {fault}", flush=True)
        if directory is not None:
            self._event("resume", checkpoint=str(directory))

    def loop(self, stop: StopRequest) -> RunResult:
        """Steps until the end or a signal; saves; returns how far it came."""
        steps, every = self._config.train.steps, self._config.checkpoint.every_steps
        saved = self._finished
        batches = iter(self._loader)
        while self._finished < steps and not stop.agreed():
            if self._due(self._config.evaluate.every_steps):
                self.evaluate()
            self._train_one(batches)
            if every and self._finished % every == 0:
                self._save()
                saved = self._finished
        stopped = self._finished < steps
        if saved != self._finished:
            self._save()
        self._log.flush()
        self._note_fit()
        if not stopped:
            self.evaluate()
        self._saver.wait()
        self._event("stop" if stopped else "done")
        return RunResult(self._run_dir, self._finished, stopped)

    def evaluate(self) -> Validation | None:
        """Validation losses now, into the record; None when the corpus has no val split."""
        if self._validator is None:
            self._validator = self._make_validator()
        if self._validator is None:
            return None
        found = self._validator(self._parallel.loss)
        self._write(
            "eval",
            step=self._finished,
            split="val",
            loss=found.loss,
            domain_loss=found.domain_loss_K,
            domain_tokens=found.domain_tokens_K,
            domain_bytes=found.domain_bytes_K,
        )
        self._log.scalars(self._finished, {"val_loss": found.loss}, val_domain_loss=found.domain_loss_K)
        if self._world.is_main:
            print(f"step {self._finished:>6}  validation loss {found.loss:.4f}", flush=True)
        return found

    def close(self) -> None:
        """Stops threads and closes files."""
        self._loader.close()
        if self._record is not None:
            for sink in self._sinks:
                sink.close()
            self._record.close()

    def _train_one(self, batches: Any) -> None:
        started = time.perf_counter()
        batch = next(batches)
        have_data = time.perf_counter()
        sums_K, counts_K = self._step.forward_backward(batch["tokens"], batch["domain"])
        have_gradients = time.perf_counter()
        rate = self._schedule(self._finished)
        outcome = self._step.update(sums_K, counts_K, rate)
        have_updated = time.perf_counter()
        mixture_K = self._loader.mixture
        self._loader.observe(outcome.sums_K, outcome.counts_K)
        ended = time.perf_counter()
        seconds = {
            "data": have_data - started,
            "forward_backward": have_gradients - have_data,
            "optimizer": have_updated - have_gradients,
            "policy": ended - have_updated,
            "checkpoint": self._save_s,
            "total": ended - started + self._save_s,
        }
        self._save_s = 0.0
        samples_K = self._loader.dataset.sample_counts(batch["step"])
        self._drawn_K += samples_K
        self._log.push(StepFacts(batch["step"], mixture_K, samples_K, self._drawn_K.copy(), rate, seconds), outcome)
        self._finished += 1
        self._note_fit()

    def _save(self) -> None:
        """A checkpoint of now. Its seconds go to the next step's line."""
        started = time.perf_counter()
        self._log.flush()
        loader_state = self._loader.state_dict()
        self._note_fit()
        facts = {
            "finished_steps": self._finished,
            "run_id": self._run_id,
            "drawn": dict(zip(self._names, self._drawn_K.tolist(), strict=True)),
            "skipped": self._log.num_skipped,
            "model": dataclasses.asdict(self._model_config),
            "loader": loader_state,
        }
        directory = self._saver.save(self._finished, TrainingState(self._parallel.model, self._optimizer, facts))
        self._event("checkpoint", directory=str(directory))
        self._save_s = time.perf_counter() - started

    def _find(self, resume: str) -> tuple[Path | None, list[str]]:
        if resume == "none":
            return None, []
        if resume != "auto":
            return Path(resume), []
        directory, passed_over = commit.newest_sound(self._checkpoints)
        committed = [each for each in commit.newest_first(self._checkpoints) if (each / commit.MARKER).exists()]
        if directory is None and committed:
            raise CheckpointError(
                f"{self._checkpoints}: no checkpoint can be trusted: {'; '.join(passed_over)}.\n"
                f"  Start anew with --resume none."
            )
        return directory, passed_over

    def _restore(self, directory: Path, facts: dict[str, Any]) -> None:
        saved, wanted = facts["model"], dataclasses.asdict(self._model_config)
        differing = [
            f"{key} {saved.get(key)} there, {wanted[key]} here" for key in wanted if saved.get(key) != wanted[key]
        ]
        if differing:
            raise ResumeError(f"{directory} is of another model: {'; '.join(differing)}.")
        self._finished, self._run_id = int(facts["finished_steps"]), str(facts["run_id"])
        self._loader.load_state_dict(facts["loader"])
        load_training(directory, self._world, TrainingState(self._parallel.model, self._optimizer, {}))
        self._attempt_step = self._loader.policy.attempt_step
        self._drawn_K = np.array([facts["drawn"].get(name, 0) for name in self._names], np.int64)

    def _open_run_dir(self) -> None:
        self._run_dir.mkdir(parents=True, exist_ok=True)
        commit.set_aside_newer(self._checkpoints, self._finished)
        rewind(self._run_dir, self._finished)
        save_config(self._config, self._run_dir / CONFIG_FILE)

    def _make_validator(self) -> Validator | None:
        splits = [domain["splits"] for domain in self._corpus.manifest["domains"].values()]
        if not any(split.get("val", {}).get("samples") for split in splits):
            return None
        rows = self._config.train.micro_batch_size or max(1, self._config.data.global_batch_size // self._world.size)
        limit = self._config.evaluate.max_samples_per_domain
        return Validator(open_split(self._config, "val"), self._names, limit, self._world, rows)

    def _note_fit(self) -> None:
        """Writes the policy's health once after each refit, and its laws unless the refit failed."""
        policy = self._loader.policy
        if policy.attempt_step == self._attempt_step:
            return
        self._attempt_step = policy.attempt_step
        self._write("health", step=policy.attempt_step, health=policy.health())
        if policy.fit_step != policy.attempt_step:
            return
        later = range(policy.fit_step + 1, self._finished)
        drawn_K = self._drawn_K - sum(self._loader.dataset.sample_counts(step) for step in later)
        self._write("fit", **fit_line(policy, drawn_K))
        fit = policy.fit
        laws = {"log_beta": fit.log_beta, "log_eps": fit.log_eps, "alpha": fit.alpha}
        self._log.scalars(policy.fit_step, {}, **laws)

    def _due(self, every_steps: int) -> bool:
        return every_steps > 0 and self._finished > 0 and self._finished % every_steps == 0

    def _event(self, name: str, **detail: Any) -> None:
        self._write("event", step=self._finished, name=name, detail=detail)

    def _write(self, kind: str, **fields: Any) -> None:
        if self._record is not None:
            self._record.write(kind, **fields)
