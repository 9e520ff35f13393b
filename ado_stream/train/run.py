"""`run_training`: from a config to a trained run, resumable at any step.

Invariant: what a run does at step s follows from the config, the corpus and s alone; so a run that was killed and
resumed equals one that was not (to the bit on one CPU process). A checkpoint of s finished steps holds all that step s
needs: parameters, AdamW's moments, the loader's cursors and mixtures, the policy, torch's generator.
"""

import dataclasses
import functools
import os
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from ado_kernels.numba_cache import compile_in_background
from ado_model import Transformer
from ado_stream.errors import ResumeError, StorageError
from ado_stream.record import RunRecord
from ado_stream.train import commit
from ado_stream.train.assemble import assemble, open_split
from ado_stream.train.checkpoint import Checkpointer, TrainingState, load_training
from ado_stream.train.clock import StepClock
from ado_stream.train.config import TrainConfig, save_config
from ado_stream.train.describe import fit_line, run_line
from ado_stream.train.distributed import World, join_world, on_main, told_at_once
from ado_stream.train.host import keep_freed_memory
from ado_stream.train.parallel import ParallelModel
from ado_stream.train.resume import CHECKPOINTS, Beginning, find_beginning, make_ready
from ado_stream.train.sinks import make_sinks
from ado_stream.train.step import TrainStep, make_optimizer
from ado_stream.train.steplog import LogOptions, Sink, StepFacts, StepLog
from ado_stream.train.stop import StopRequest
from ado_stream.train.validation import Validator

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
    "none" starts anew; a path names a checkpoint directory, of this run or of another one. What an earlier run left
    beyond that is renamed, not removed. Call on every rank, under torchrun or alone. Raises ConfigError, ResumeError,
    CheckpointError, DataError, StorageError.
    """
    with join_world(config.train.device, config.train.collective_timeout_s) as world:
        if world.device.type == "cpu":
            keep_freed_memory()
        if world.is_main:
            compile_in_background("fit")  # seconds, once a machine; the first refit would have every rank wait for it
        with Training(config, world) as training, told_at_once(world):
            training.start(os.fspath(resume))
            with StopRequest(world) as stop:
                return training.loop(stop)


class Training:
    """One run on one rank: its parts, its loop."""

    def __init__(self, config: TrainConfig, world: World):
        self._config, self._world = config, world
        self._run_dir = Path(config.run_dir)
        self._checkpoints = self._run_dir / CHECKPOINTS
        self._parts = assemble(config, world)
        self._loader = self._parts.loader
        self._names = self._loader.dataset.names
        torch.manual_seed(config.seed)
        self._parallel = ParallelModel(Transformer(self._parts.model), world, config.train)
        self._optimizer = make_optimizer(self._parallel.model, config.train)
        self._step = TrainStep(self._parallel, self._optimizer, config.train, len(self._names), config.data.replication)
        self._saver = Checkpointer(self._checkpoints, world, config.checkpoint.keep, config.checkpoint.asynchronous)
        self._validator: Validator | None = None
        self._record: RunRecord | None = None
        self._sinks: list[Sink] = []
        self._run_id = uuid.uuid4().hex[:12]
        self._finished = self._saved = 0  # steps
        self._drawn_K = np.zeros(len(self._names), np.int64)  # samples
        self._attempt_step: int | None = None  # of the last refit in the record
        self._save_s = 0.0

    def start(self, resume: str) -> None:
        """Goes to where `resume` says, and opens the record there."""
        beginning = on_main(self._world, find_beginning, self._run_dir, resume)
        if beginning.directory is not None:
            self._restore(beginning)
        on_main(self._world, self._make_ready, beginning)
        self._log = self._open_log(num_skipped=beginning.facts.get("skipped", 0))
        line = run_line(self._config, self._parts.corpus, self._loader, self._parts.model, self._world, self._run_id)
        self._write("run", **line)
        for fault in beginning.passed_over:
            self._event("checkpoint passed over", fault=fault)
            if self._world.is_main:
                print(f"passed over {fault}", flush=True)
        if beginning.directory is not None:
            self._event("resume", checkpoint=str(beginning.directory))

    def loop(self, stop: StopRequest) -> RunResult:
        """Steps until the end or a signal; saves; returns how far it came."""
        steps, every = self._config.train.steps, self._config.checkpoint.every_steps
        batches = iter(self._loader)
        while self._finished < steps and not stop.agreed():
            if self._due(self._config.evaluate.every_steps) and not self.evaluate(stop):
                break
            self._train_one(batches)
            if every and self._finished % every == 0:
                self._save()
        if self._saved != self._finished:
            self._save()
        self._log.flush()
        self._note_fit()
        stopped = self._finished < steps or not self.evaluate(stop)
        self._saver.wait()
        self._event("stop" if stopped else "done")
        return RunResult(self._run_dir, self._finished, stopped)

    def evaluate(self, stop: StopRequest) -> bool:
        """Validation losses now, into the record, if the corpus has a val split; False: given up, asked to stop."""
        self._log.flush()  # first: what follows is in no step's time
        if self._validator is None:
            self._validator = self._make_validator()
        if self._validator is None:
            return True
        found = self._validator(self._parallel.loss, stop.agreed)
        if found is None:
            return False
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
        return True

    def __enter__(self) -> "Training":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends what runs behind: the save of a run that failed is finished first, the newest that it can go on from."""
        try:
            self._saver.wait()
        except Exception as unsaved:  # only after a failure, which is the one to raise
            print(unsaved, file=sys.stderr, flush=True)
        self._loader.close()
        for sink in self._sinks:
            sink.close(failed=error is not None)
        if self._record is not None:
            self._record.close()

    def _train_one(self, batches: Any) -> None:
        clock = StepClock(self._world.device, self._save_s)
        self._save_s = 0.0
        with clock.host("data"):
            batch = next(batches)
        with clock.device("forward_backward"):
            sums_K, counts_K = self._step.forward_backward(batch["tokens"], batch["domain"])
        rate = self._parts.schedule(self._finished)
        with clock.device("optimizer"):
            outcome = self._step.update(sums_K, counts_K, rate)
        samples_K = self._loader.dataset.sample_counts(batch["step"])
        self._drawn_K += samples_K
        facts = StepFacts(batch["step"], self._loader.mixture, samples_K, self._drawn_K.copy(), rate, clock)
        self._log.push(facts, outcome)  # waits for the device's step before, so that telling the policy does not
        with clock.host("policy"):
            self._loader.observe(*outcome.for_policy(), reduced=True)
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
            "model": dataclasses.asdict(self._parts.model),
            "tokenizer": self._parts.corpus.tokenizer.fingerprint,
            "loader": loader_state,
        }
        directory = commit.directory_of(self._checkpoints, self._finished)
        note = functools.partial(self._note_checkpoint, self._finished, directory, started)
        self._saver.save(self._finished, TrainingState(self._parallel.model, self._optimizer, facts), note)
        self._saved = self._finished
        self._save_s = time.perf_counter() - started

    def _note_checkpoint(self, step: int, directory: Path, started: float) -> None:
        """Writes that a checkpoint counts, and how long that took; in the thread that saved it."""
        detail = {"directory": str(directory), "seconds": time.perf_counter() - started}
        self._write("event", step=step, name="checkpoint", detail=detail)

    def _restore(self, beginning: Beginning) -> None:
        directory, facts = beginning.directory, beginning.facts
        assert directory is not None
        saved, wanted = facts["model"], dataclasses.asdict(self._parts.model)
        differing = [
            f"{key} {saved.get(key)} there, {wanted[key]} here" for key in wanted if saved.get(key) != wanted[key]
        ]
        if differing:
            raise ResumeError(f"{directory} is of another model: {'; '.join(differing)}.")
        self._finished = beginning.step
        self._saved = self._finished if beginning.is_saved else 0
        self._run_id = str(facts["run_id"]) if beginning.goes_on else self._run_id
        self._loader.load_state_dict(facts["loader"])
        load_training(directory, self._world, TrainingState(self._parallel.model, self._optimizer, {}))
        self._attempt_step = self._loader.policy.attempt_step
        self._drawn_K = np.array([facts["drawn"].get(name, 0) for name in self._names], np.int64)

    def _make_ready(self, beginning: Beginning) -> None:
        try:
            make_ready(self._run_dir, beginning)
            save_config(self._config, self._run_dir / CONFIG_FILE)
        except OSError as error:
            raise StorageError(f"'run_dir' is {self._run_dir}: no run can be kept there: {error.strerror}.") from error

    def _open_log(self, num_skipped: int) -> StepLog:
        options = self._config.log
        if self._world.is_main:
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
        )
        return StepLog(self._world, self._record, self._sinks, log_options, num_skipped)

    def _make_validator(self) -> Validator | None:
        if not self._parts.corpus.has("val"):
            return None
        limit = self._config.evaluate.max_samples_per_domain
        return Validator(open_split(self._config, "val"), self._names, limit, self._world, self._parts.micro_rows)

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
