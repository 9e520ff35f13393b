"""What each step did: from tensors on the device to the run record, the console and the loggers.

Invariant: nothing here waits for the device in the step that it describes; a step's numbers are copied to the host
behind it and read when the next step has been launched. Every rank reads, because every rank counts the skipped steps;
rank 0 writes. Speed on the console is of training alone: without start-up, the first step (it compiles), validation.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from ado_stream.errors import AdoStreamError
from ado_stream.record import RunRecord
from ado_stream.reduction import to_host_later
from ado_stream.train.clock import StepClock
from ado_stream.train.distributed import World
from ado_stream.train.step import StepOutcome


class Sink(Protocol):
    """Where numbers of a step go besides the record."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Takes named numbers of one step."""

    def close(self, failed: bool) -> None:
        """Writes out what is still held. failed: the run ends by an exception."""


@dataclass(frozen=True)
class StepFacts:
    """What the host knows of a step when it launches it; its clock runs on."""

    step: int
    mixture_K: np.ndarray
    samples_K: np.ndarray
    drawn_K: np.ndarray  # samples so far, this step's included
    learning_rate: float
    clock: StepClock


Held = tuple[StepFacts, Callable[[], np.ndarray]]  # a launched step, and what waits for its numbers


@dataclass(frozen=True)
class LogOptions:
    """Console distance, when a run of bad steps ends, and what turns samples into tokens and epochs."""

    names: Sequence[str]
    num_samples_K: np.ndarray  # of an epoch
    seq_len: int
    total_steps: int
    every_steps: int
    max_nonfinite: int


class StepLog:
    """Collects outcomes one step behind. `num_skipped` is of the whole run, resumes included."""

    def __init__(
        self,
        world: World,
        record: RunRecord | None,
        sinks: Sequence[Sink],
        options: LogOptions,
        num_skipped: int = 0,
    ):
        self._world, self._record, self._sinks, self._options = world, record, sinks, options
        self._held: Held | None = None
        self._started_up = False
        self._console_tokens = self._console_s = 0.0
        self._mixture_K: np.ndarray | None = None
        self.num_skipped = num_skipped

    def push(self, facts: StepFacts, outcome: StepOutcome) -> None:
        """Takes a launched step and writes the one before. Raises AdoStreamError after too many skipped steps."""
        packed = torch.cat(
            [
                outcome.sums_K,
                outcome.counts_K,
                outcome.grad_norm.double().reshape(1),
                outcome.finite.double().reshape(1),
            ]
        )
        before, self._held = self._held, (facts, to_host_later(packed))
        self._write(before, facts.clock.started)

    def flush(self) -> None:
        """Writes the step still held; waits for it. To be called before anything else than the next step is done."""
        before, self._held = self._held, None
        self._write(before, None)

    def _write(self, held: Held | None, ended: float | None) -> None:
        """ended: the start of the next step; None: as soon as the device is through."""
        if held is None:
            return
        facts, read = held
        values = read()
        ended = time.perf_counter() if ended is None else ended
        num_domains = len(self._options.names)
        sums_K, counts_K = values[:num_domains], values[num_domains : 2 * num_domains]
        grad_norm, finite = float(values[-2]), bool(values[-1])
        with np.errstate(invalid="ignore", divide="ignore"):
            domain_loss_K = sums_K / counts_K
            loss = float(sums_K.sum() / counts_K.sum())
        if self._world.is_main:
            seconds = facts.clock.seconds(ended)
            line = {
                "loss": loss,
                "domain_loss": domain_loss_K,
                "domain_tokens": counts_K.astype(np.int64),
                "samples": facts.samples_K,
                "mixture": facts.mixture_K,
                "lr": facts.learning_rate,
                "grad_norm": grad_norm,
                "tokens_per_s": float(counts_K.sum()) / seconds["total"],
                "time_s": seconds,
            }
            self._tell(facts, line)
        if not finite:
            self._count_skipped(facts.step, loss, grad_norm)

    def _tell(self, facts: StepFacts, line: dict[str, Any]) -> None:
        if self._record is not None:
            self._record.write("step", step=facts.step, **line)
        if self._started_up:  # the first step of a process compiles
            self._console_tokens += float(line["domain_tokens"].sum())
            self._console_s += line["time_s"]["total"]
        self._started_up = True
        last = facts.step + 1 == self._options.total_steps
        if facts.step % self._options.every_steps and not last:
            return
        speed = {"tokens_per_s": self._console_tokens / self._console_s} if self._console_s else {}
        self._console_tokens = self._console_s = 0.0
        moves = largest_moves(self._options.names, self._mixture_K, facts.mixture_K)
        self._mixture_K = facts.mixture_K
        parts = [
            f"step {facts.step + 1:>6}/{self._options.total_steps}",
            f"loss {line['loss']:.4f}",
            f"lr {facts.learning_rate:.2e}",
            *(f"{rate:,.0f} tokens/s" for rate in speed.values()),
            *moves,
        ]
        print("  ".join(parts), flush=True)
        scalars = {"loss": line["loss"], "lr": facts.learning_rate, "grad_norm": line["grad_norm"], **speed}
        self.scalars(
            facts.step,
            scalars,
            mixture=facts.mixture_K,
            domain_loss=line["domain_loss"],
            tokens=facts.drawn_K * self._options.seq_len,
            epochs=facts.drawn_K / self._options.num_samples_K,
        )

    def scalars(self, step: int, values: dict[str, float], **values_K: np.ndarray) -> None:
        """Numbers to the loggers: `values` as they are, those of domains as "KEY/DOMAIN"; NaN is left out."""
        named = {
            f"{key}/{name}": float(value)
            for key, value_K in values_K.items()
            for name, value in zip(self._options.names, value_K, strict=True)
            if np.isfinite(value)
        }
        for sink in self._sinks:
            sink.scalars(step, {**values, **named})

    def _count_skipped(self, step: int, loss: float, grad_norm: float) -> None:
        self.num_skipped += 1
        if self._record is not None:
            self._record.write("event", step=step, name="skip", detail={"loss": loss, "grad_norm": grad_norm})
        if self.num_skipped > self._options.max_nonfinite:
            raise AdoStreamError(
                f"step {step}: loss {loss}, gradient norm {grad_norm}; {self.num_skipped} steps of this run were not "
                f"finite, 'train.max_nonfinite' is {self._options.max_nonfinite}.\n"
                f"  Lower train.learning_rate or train.grad_clip, and resume from an earlier checkpoint."
            )


def largest_moves(names: Sequence[str], before_K: np.ndarray | None, now_K: np.ndarray, num: int = 3) -> list[str]:
    """The domains whose share moved most since `before_K`, in percentage points; none that moved by less than 0.1."""
    if before_K is None:
        return []
    move_K = 100 * (now_K - before_K)
    largest = np.argsort(-np.abs(move_K), kind="stable")[:num]
    return [f"{names[k]} {move_K[k]:+.1f}" for k in largest if abs(move_K[k]) >= 0.1]
