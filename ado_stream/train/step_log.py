"""Writes each step's results, which are tensors on the device, to the run record, the console and the metric sinks.

Invariant: nothing here waits for the device's current step; its results are copied to the host asynchronously and read
when the next step has been launched. Every rank reads them, because every rank counts the skipped steps; rank 0 writes.
Tokens per second on the console leave out start-up, the first step (it compiles) and validation.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from ado_stream.errors import AdoStreamError
from ado_stream.record import RunRecord
from ado_stream.reduction import to_host_later
from ado_stream.train.distributed import DistributedContext
from ado_stream.train.step_timer import StepTimer
from ado_stream.train.train_step import StepOutcome
from ado_stream.value_types import Array, Floats, Ints, JsonObject
from ado_stream.visible import one_line, show


class MetricSink(Protocol):
    """A destination of metrics besides the run record."""

    def write_scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes named values of one step."""

    def close(self, failed: bool) -> None:
        """Writes what is still buffered. failed: the run ends with an exception."""


@dataclass(frozen=True)
class LaunchedStep:
    """A step launched on the device: what the host has before its results arrive."""

    step: int
    mixture_K: Floats
    samples_K: Ints
    drawn_K: Ints  # samples so far, this step's included
    learning_rate: float
    timer: StepTimer


PendingStep = tuple[LaunchedStep, Callable[[], Floats]]  # and the call that waits for its results


@dataclass(frozen=True)
class LogOptions:
    """every_steps: between console lines. max_nonfinite: skipped steps before the run fails.

    sample_losses: how many of a step's are written.
    """

    names: Sequence[str]
    num_samples_K: Ints  # of an epoch
    seq_len: int
    total_steps: int
    every_steps: int
    max_nonfinite: int
    sample_losses: int = 0


class StepLog:
    """Writes outcomes one step late. `num_skipped` counts over the whole run, resumes included."""

    def __init__(
        self,
        context: DistributedContext,
        record: RunRecord | None,
        sinks: Sequence[MetricSink],
        options: LogOptions,
        num_skipped: int = 0,
    ):
        self._context, self._record, self._sinks, self._options = context, record, sinks, options
        self._pending: PendingStep | None = None
        self._past_first_step = False
        self._console_tokens = self._console_s = 0.0
        self._mixture_K: Floats | None = None
        self.num_skipped = num_skipped

    def push(self, launched: LaunchedStep, outcome: StepOutcome) -> None:
        """Adds a launched step and writes the previous one. Raises AdoStreamError after too many skipped steps."""
        parts = [
            outcome.sums_K,
            outcome.counts_K,
            *(each.double().reshape(1) for each in (outcome.grad_norm, outcome.finite)),
        ]
        packed = torch.cat(parts if outcome.sample_losses_B is None else [*parts, outcome.sample_losses_B])
        previous, self._pending = self._pending, (launched, to_host_later(packed))
        self._write(previous, launched.timer.started)

    def flush(self) -> None:
        """Waits for the pending step and writes it. Call before any work that is not a training step."""
        previous, self._pending = self._pending, None
        self._write(previous, None)

    def _write(self, pending: PendingStep | None, ended: float | None) -> None:
        """ended: when the next step started; None: now, once the device has finished."""
        if pending is None:
            return
        launched, read = pending
        values = read()
        ended = time.perf_counter() if ended is None else ended
        num_domains = len(self._options.names)
        sums_K, counts_K = values[:num_domains], values[num_domains : 2 * num_domains]
        grad_norm, finite = float(values[2 * num_domains]), bool(values[2 * num_domains + 1])
        with np.errstate(invalid="ignore", divide="ignore"):
            domain_loss_K = sums_K / counts_K
            loss = float(sums_K.sum() / counts_K.sum())
        if self._context.is_main:
            seconds = launched.timer.seconds(ended)
            line = {
                "loss": loss,
                "domain_loss": domain_loss_K,
                "domain_tokens": counts_K.astype(np.int64),
                "samples": launched.samples_K,
                "mixture": launched.mixture_K,
                "lr": launched.learning_rate,
                "grad_norm": grad_norm,
                "tokens_per_s": float(counts_K.sum()) / seconds["total"],
                "time_s": seconds,
            }
            if self._options.sample_losses:
                line["sample_losses"] = highest_losses(values[2 * num_domains + 2 :], self._options.sample_losses)
            self._write_line(launched, line)
        if not finite:
            self._count_skipped(launched.step, loss, grad_norm)

    def _write_line(self, launched: LaunchedStep, line: JsonObject) -> None:
        if self._record is not None:
            self._record.write("step", step=launched.step, **line)
        if self._past_first_step:
            self._console_tokens += float(line["domain_tokens"].sum())
            self._console_s += line["time_s"]["total"]
        self._past_first_step = True
        last = launched.step + 1 == self._options.total_steps
        if launched.step % self._options.every_steps and not last:
            return
        speed = {"tokens_per_s": self._console_tokens / self._console_s} if self._console_s else {}
        self._console_tokens = self._console_s = 0.0
        changes = largest_changes(self._options.names, self._mixture_K, launched.mixture_K)
        self._mixture_K = launched.mixture_K
        parts = [
            f"step {launched.step + 1:>6}/{self._options.total_steps}",
            f"loss {line['loss']:.4f}",
            f"lr {launched.learning_rate:.2e}",
            *(f"{rate:,.0f} tokens/s" for rate in speed.values()),
            *changes,
        ]
        show("  ".join(parts))
        scalars = {"loss": line["loss"], "lr": launched.learning_rate, "grad_norm": line["grad_norm"], **speed}
        self.write_scalars(
            launched.step,
            scalars,
            mixture=launched.mixture_K,
            domain_loss=line["domain_loss"],
            tokens=launched.drawn_K * self._options.seq_len,
            epochs=launched.drawn_K / self._options.num_samples_K,
        )

    def write_scalars(self, step: int, values: dict[str, float], **values_K: Array) -> None:
        """Writes to the metric sinks: `values` by their names, arrays over domains as "KEY/DOMAIN" without NaN."""
        named = {
            f"{key}/{one_line(name)}": float(value)  # a sink may print its names
            for key, value_K in values_K.items()
            for name, value in zip(self._options.names, value_K, strict=True)
            if np.isfinite(value)
        }
        for sink in self._sinks:
            sink.write_scalars(step, {**values, **named})

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


def highest_losses(loss_B: Floats, num: int) -> list[tuple[int, float]]:
    """(slot, loss) of the `num` highest of (B,) losses, highest first; one that is NaN is higher than all others."""
    slots = np.argsort(-np.nan_to_num(loss_B, nan=np.inf), kind="stable")[:num].tolist()
    return [(slot, float(loss_B[slot])) for slot in slots]


def largest_changes(names: Sequence[str], before_K: Floats | None, now_K: Floats) -> list[str]:
    """`NAME CHANGE` of the three domains whose shares changed most, in percentage points; none below 0.1."""
    if before_K is None:
        return []
    change_K = 100 * (now_K - before_K)
    largest = np.argsort(-np.abs(change_K), kind="stable")[:3]
    return [f"{names[k]} {change_K[k]:+.1f}" for k in largest if abs(change_K[k]) >= 0.1]
