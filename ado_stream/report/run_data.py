"""A run's record as arrays.

A record may be short, sparse or partly non-finite: a missing value is NaN, never zero, and a run without fits or
validations has empty tuples. The laws' n is the number of samples so far (docs/math.md section 1), of all domains, or
of each domain where the "fit" lines hold a list.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from ado_stream.errors import ConfigError, DataError, NotFound
from ado_stream.json_files import check_type
from ado_stream.record import FILE_NAME, read_run, with_nan
from ado_stream.record_types import RunLine, TextIdentity, corpus_domains
from ado_stream.value_types import Floats, Ints, JsonObject

PARTS = ("data", "forward_backward", "optimizer", "policy", "checkpoint")


@dataclass(frozen=True)
class RefitLaws:
    """The laws after one refit: L(n) = exp(log_eps) + exp(log_beta) n^-alpha, per domain; NaN where there was none yet.

    valid_K: whether the domain's law is of this refit; else it is of an earlier one. residual_scale_K: median
    |log loss - log law| of the points that it was fitted to.
    """

    step: int
    n_K: Floats
    log_beta_K: Floats
    log_eps_K: Floats
    alpha_K: Floats
    objective_K: Floats
    residual_scale_K: Floats
    valid_K: NDArray[np.bool_]

    def known(self, domain: int) -> bool:
        """Whether `domain` has a law, of this refit or an earlier one."""
        return bool(np.isfinite([self.log_beta_K[domain], self.log_eps_K[domain], self.alpha_K[domain]]).all())

    def predict(self, domain: int, n: Floats) -> Floats:
        """Loss of `domain` in nats per token after `n` samples; NaN where n <= 0 or there is no law."""
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            power = self.log_beta_K[domain] - self.alpha_K[domain] * np.log(n)
            loss: Floats = np.exp(np.logaddexp(power, self.log_eps_K[domain]))
        return loss


@dataclass(frozen=True)
class Evaluation:
    """One validation: mean loss over all tokens, and per domain, in nats per token.

    text_K: what identifies the text of each domain, or None where the record has none.
    """

    step: int
    split: str
    loss: float
    domain_loss_K: Floats
    domain_tokens_K: Floats
    domain_bytes_K: Floats
    text_K: tuple[TextIdentity | None, ...]

    @property
    def bits_per_byte_K(self) -> Floats:
        """(K,) bits per byte of text."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.domain_loss_K * self.domain_tokens_K / (math.log(2) * self.domain_bytes_K)


@dataclass(frozen=True)
class Run:
    """A run's record as arrays: S recorded steps, K domains. metadata: the record's last line of kind "run".

    prior_K: shares; NaN where the record has none.
    """

    path: Path
    label: str
    metadata: RunLine
    domains: tuple[str, ...]
    prior_K: Floats
    step_S: Ints
    loss_S: Floats
    domain_loss_SK: Floats
    samples_SK: Floats
    mixture_SK: Floats
    tokens_per_s_S: Floats
    time_s: dict[str, Floats]
    laws: tuple[RefitLaws, ...]
    health: JsonObject | None  # of the policy after its last refit
    evaluations: tuple[Evaluation, ...]
    events: tuple[JsonObject, ...]

    def train_sizes_K(self, unit: str) -> Floats:
        """Training "tokens" or "samples" of each domain in the corpus, or "bytes" of its text; NaN where unknown."""
        known = corpus_domains(self.metadata)
        sizes = [known[name].get(unit) if name in known else None for name in self.domains]
        return np.array([size or math.nan for size in sizes], dtype=np.float64)

    @property
    def num_steps(self) -> int:
        """Steps up to the last recorded one."""
        return int(self.step_S[-1]) + 1 if self.step_S.size else 0

    @property
    def planned_steps(self) -> int | None:
        """Steps of the config; None where the record has none."""
        return self.metadata.get("steps")

    @property
    def final(self) -> Evaluation | None:
        """The last validation, or None."""
        return self.evaluations[-1] if self.evaluations else None

    @cached_property
    def counts_SK(self) -> Floats:
        """(S, K) cumulative samples n, the argument of the laws, at each recorded step."""
        gap_S = np.diff(self.step_S, prepend=-1)  # of a sparse record, a line's counts stand for the steps before it
        if any(np.unique(law.n_K).size > 1 for law in self.laws):  # of each domain's own
            return np.asarray(np.cumsum(np.nan_to_num(self.samples_SK) * gap_S[:, None], axis=0))
        all_S = self.samples_SK.sum(axis=1)
        size_S = np.where(np.isnan(all_S), self.metadata.get("global_batch_size") or math.nan, all_S)
        return np.repeat(np.cumsum(size_S * gap_S)[:, None], len(self.domains), axis=1)


def load_runs(paths: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """Runs of the given directories, in order; a directory of runs (a demo's) is replaced by all of its runs.

    Raises NotFound without a record, DataError for a damaged one, ConfigError for no directories.
    """
    directories = list(dict.fromkeys(found for path in paths for found in _expand(Path(path))))
    if not directories:
        raise ConfigError("report: no run given. Name at least one run directory.")
    labels = _labels(directories)
    return [_load(directory, label) for directory, label in zip(directories, labels, strict=True)]


def _expand(path: Path) -> list[Path]:
    if (path / FILE_NAME).exists():
        return [path]
    found = sorted({*path.glob(f"*/{FILE_NAME}"), *path.glob(f"runs/*/{FILE_NAME}")})
    if not found:
        raise NotFound(f"{path}: no run record ({FILE_NAME}) here. Name the directory of a run, or of a demo.")
    return [file.parent for file in found]


def _labels(directories: list[Path]) -> list[str]:
    """The shortest tails of the paths that differ."""
    parts = [directory.resolve().parts for directory in directories]
    for depth in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(part[-depth:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [str(directory) for directory in directories]


def _load(directory: Path, label: str) -> Run:
    try:
        return _run(directory, label)
    except (TypeError, ValueError, OverflowError) as error:  # of NumPy: no numbers, or not one a domain
        raise DataError(f"{directory / FILE_NAME}: a line does not fit the run's domains: {error}.") from None


def _run(directory: Path, label: str) -> Run:
    metadata, lines = read_run(directory)
    domains = tuple(metadata["domains"])
    steps, num_domains = lines["step"], len(domains)
    times = [line.get("time_s") or {} for line in steps]
    return Run(
        path=directory,
        label=label,
        metadata=metadata,
        domains=domains,
        prior_K=_row(metadata.get("prior"), num_domains),
        step_S=np.array([line["step"] for line in steps], dtype=np.int64),
        loss_S=_matrix(steps, "loss", 1)[:, 0],
        domain_loss_SK=_matrix(steps, "domain_loss", num_domains),
        samples_SK=_matrix(steps, "samples", num_domains),
        mixture_SK=_matrix(steps, "mixture", num_domains),
        tokens_per_s_S=_matrix(steps, "tokens_per_s", 1)[:, 0],
        time_s={part: _matrix(times, part, 1)[:, 0] for part in (*PARTS, "total")},
        laws=tuple(_law(line, num_domains) for line in lines["fit"]),
        health=_health(lines["health"][-1], domains, f"{directory / FILE_NAME}: health") if lines["health"] else None,
        evaluations=tuple(_evaluation(line, num_domains) for line in lines["eval"]),
        events=tuple(lines["event"]),
    )


class _ForecastError(TypedDict):
    mean: float | None
    mean_abs: float | None


class _Moved(TypedDict):
    share_over_target: float
    since_step: int
    elasticity: float | None
    elasticity_sd: float | None


class Health(TypedDict, total=False):
    """What the report shows of a policy's health(), by domain where there is a dict."""

    refits: int
    failed_refits: int
    ignored_losses: dict[str, int]
    held_laws: dict[str, int]
    at_bound: dict[str, list[str]]
    forecast_error: dict[str, _ForecastError]
    moved: dict[str, _Moved]
    middle_elasticity: float | None


_ALWAYS: dict[str, tuple[str, ...]] = {  # keys that come together
    "forecast_error": ("refits", "failed_refits", "ignored_losses", "held_laws", "at_bound"),
    "moved": ("refits", "middle_elasticity"),
}


def _health(line: JsonObject, domains: tuple[str, ...], where: str) -> JsonObject:
    """The health of a line, checked: whole, and of these domains."""
    health = line.get("health")
    check_type(health, Health, where, DataError)
    assert isinstance(health, dict)
    missing = [key for mark, keys in _ALWAYS.items() if mark in health for key in keys if key not in health]
    by_all = [
        key for key in ("ignored_losses", "held_laws", "forecast_error") if set(health.get(key, domains)) != {*domains}
    ]
    by_some = [key for key in ("at_bound", "moved") if not {*domains}.issuperset(health.get(key, ()))]
    if missing or by_all or by_some:
        raise DataError(f"{where}: missing, or not of the run's domains: {', '.join((*missing, *by_all, *by_some))}.")
    return health


def _row(value: object, num_domains: int) -> Floats:
    """`value` as (K,) float64; a scalar or null is repeated for all domains."""
    return np.broadcast_to(np.array(with_nan(value), dtype=np.float64), (num_domains,)).copy()


def _matrix(lines: list[JsonObject], key: str, num_domains: int) -> Floats:
    return np.array([_row(line.get(key), num_domains) for line in lines]).reshape(len(lines), num_domains)


def _law(line: JsonObject, num_domains: int) -> RefitLaws:
    keys = ("n", "log_beta", "log_eps", "alpha", "objective", "residual_scale")
    rows = {f"{key}_K": _row(line.get(key), num_domains) for key in keys}
    valid_K = np.array(line.get("valid") or [True] * num_domains, dtype=bool).reshape(num_domains)
    return RefitLaws(line["step"], valid_K=valid_K, **rows)


def _evaluation(line: JsonObject, num_domains: int) -> Evaluation:
    text_K = tuple(line.get("domain_text") or [None] * num_domains)
    if len(text_K) != num_domains:
        raise ValueError(f"domain_text of {len(text_K)} domains, not {num_domains}")
    return Evaluation(
        step=line["step"],
        split=line.get("split", "val"),
        loss=float(_row(line.get("loss"), 1)[0]),
        domain_loss_K=_row(line.get("domain_loss"), num_domains),
        domain_tokens_K=_row(line.get("domain_tokens"), num_domains),
        domain_bytes_K=_row(line.get("domain_bytes"), num_domains),
        text_K=text_K,
    )
