"""The run record: RUN/record.jsonl, one JSON object a line, written by training and read by reports.

Schema version 1; every line has "kind". Lists over domains are
in the order of the run line's "domains"; null is NaN (a domain absent from the batch). Units: nats, seconds,
tokens, samples.

    run    version, run_id, created, domains [K], prior [K], policy, policy_options, floor (least share of any
           domain under the policy and its guards; 0: none), global_batch_size, seq_len (of samples), batch_seq_len (of
           a batch's rows), stages (the config's, with samples a step), canonical_nodes, mixture_lag, steps, seed,
           model {preset, parameters}, tokenizer, tokenizer_fingerprint, vocab_size, world_size, device,
           versions {package: version}, corpus {path, fingerprint, domains {name: {tokens, samples, bytes,
           val_samples}}}, first_step (of this start: a run that was resumed has several such lines), replication
    step   step, loss (mean over the batch's tokens), domain_loss [K], domain_tokens [K], samples [K] (of the global
           batch), mixture [K] (in force at this step), lr, grad_norm, tokens_per_s,
           time_s {data, forward_backward, optimizer, policy, checkpoint, total} (on a GPU forward_backward and
           optimizer are device seconds, the others host seconds that overlap them; total: until the next step starts,
           and the time that a save delayed the step); with log.sample_losses also sample_losses [[slot, mean loss],
           ...]: the highest of the global batch, highest first, null before all others
    fit    step, n (samples drawn so far, all domains; a list [K] when domains count their own), log_beta [K],
           log_eps [K], alpha [K], objective [K], valid [K] (false: the law is of an earlier refit, null: no law),
           at_bound [K][3] (log_beta, log_eps, alpha), residual_scale [K] (median |log loss - log law|), num_points [K]
    health step (of a refit, failed ones too), health {} (the policy's health() after it)
    eval   step, split, loss (mean over tokens), domain_loss [K], domain_tokens [K], domain_bytes [K] or null,
           domain_text [K] (what identifies the text: {tokens: hash of its tokens, head: hash of its first bytes})
    event  step, name (resume {checkpoint, changes {setting: [saved, now]}}, stage {number, end, ...: one begins},
           checkpoint {directory, seconds}, policy
           {text: what its last refit changed, for an operator}, control {order, drawn_from: the first step that is
           drawn under it}, skip, stop, done, ...), detail {}

A resumed run drops the step, fit, health, eval and event lines from its first step on, then appends, so a record never
holds a step twice. A torn last line (power cut) is ignored.
"""

import contextlib
import json
import math
import os
import threading
from pathlib import Path
from typing import Any, cast

from ado_stream.durable import write_durably
from ado_stream.errors import DataError, NotFound, StorageError
from ado_stream.json_files import check_type
from ado_stream.record_types import LINES, Line, RunLine
from ado_stream.redact import plain
from ado_stream.regular_files import open_regular
from ado_stream.value_types import JsonObject

VERSION = 1
FILE_NAME = "record.jsonl"
KINDS = ("run", "step", "fit", "health", "eval", "event")


class RunRecord:
    """Appends lines to RUN/record.jsonl, from any thread; a line is written whole or not at all."""

    def __init__(self, run_dir: str | os.PathLike[str]):
        self.path = Path(run_dir) / FILE_NAME
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open_regular(self.path, "ab", buffering=0)  # lives as long as the run
        self._lock = threading.Lock()

    def write(self, kind: str, **fields: object) -> None:
        """Appends one line of `kind`; NumPy arrays become lists, NaN becomes null. Raises StorageError: disk full."""
        assert kind in KINDS, kind
        line = json.dumps(plain({"kind": kind, **fields}), separators=(",", ":"), allow_nan=False)
        with self._lock:
            self._append(line.encode() + b"\n")

    def _append(self, line: bytes) -> None:
        """Writes `line`; a write may be partial and is continued, and truncated away if a later part fails."""
        begin = self._file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            with contextlib.suppress(OSError):  # the first error is the one to report
                self._file.truncate(begin)
            raise StorageError(f"{self.path}: a line cannot be written: {error.strerror}.") from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> "RunRecord":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def rewind(run_dir: str | os.PathLike[str], step: int) -> None:
    """Drops every line of `step` or later, so that a run resumed at `step` can append.

    The new file replaces the old one by rename. Without a record this does nothing.
    """
    path = Path(run_dir) / FILE_NAME
    if not path.exists():
        return
    kept = [line for line in read_lines(path) if line["kind"] == "run" or line["step"] < step]
    write_durably(path, "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in kept))


def read_lines(path: str | os.PathLike[str]) -> list[JsonObject]:
    """All whole lines of a record file, in order. Raises NotFound, DataError (with the line's number)."""
    try:
        with open_regular(path) as file:
            raw = file.read()
    except FileNotFoundError:
        raise NotFound(f"{path}: no run record here. Name the directory of a run, or of a demo.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    lines = raw.split(b"\n")
    found = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # without a newline: the writer was killed in it
                break
            raise DataError(f"{path}:{number}: not JSON ({error}).") from None
        check_type(value, Line, f"{path}:{number}", DataError)
        check_type(value, LINES.get(value["kind"], Line), f"{path}:{number}", DataError)
        if value["kind"] != "run" and "step" not in value:
            raise DataError(f"{path}:{number}: no step in a line of kind {value['kind']!r:.80}.")
        found.append(value)
    return found


def read_run(run_dir: str | os.PathLike[str]) -> tuple[RunLine, dict[str, list[JsonObject]]]:
    """(the newest run line, {kind: its lines in order}) of RUN/record.jsonl.

    Raises NotFound, and DataError when no run line is there or its version is unknown.
    """
    path = Path(run_dir) / FILE_NAME
    by_kind: dict[str, list[JsonObject]] = {kind: [] for kind in KINDS}
    for line in read_lines(path):
        by_kind.setdefault(line["kind"], []).append(line)
    if not by_kind["run"]:
        raise DataError(f"{path}: no line of kind 'run'; the file is no run record, or its first lines are missing.")
    run = cast(RunLine, by_kind["run"][-1])  # read_lines checked it
    if run["version"] != VERSION:
        raise DataError(f"{path}: record version {run['version']}; this ado-stream reads version {VERSION}.")
    return run, by_kind


def with_nan(value: Any) -> Any:
    """`value` of a line with null turned to NaN, in lists too."""
    if value is None:
        return math.nan
    return [with_nan(item) for item in value] if isinstance(value, list) else value
