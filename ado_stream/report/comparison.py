"""What of two runs can be compared, and in which unit: the losses behind table, figure and verdict.

Runs with one tokenizer are compared in nats per token. Nats per token of two tokenizers are different units: such runs
are compared in bits per byte of text. Nothing is compared where the validation text differs.

Two measures over all, since a mixture may trade one for the other. "by corpus size" weights every domain by its share
of the training text, also where validation takes equally many samples of each; "mean of domains" counts each domain
once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ado_stream.report.run_data import Evaluation, Run
from ado_stream.suggest import first_names
from ado_stream.value_types import Floats

OVERALL = ("by corpus size", "mean of domains")
_LEAST_COVERED = 0.9  # of the longer validation text by the shorter, where tokenizers cut it at different places


@dataclass(frozen=True)
class Unit:
    """A unit of loss. level: differences below it count as none."""

    name: str
    level: float


NATS = Unit("nats per token", 0.005)
BITS = Unit("bits per byte", 0.002)  # as many as 0.005 nats of a token of 3.6 bytes


def pick_baseline(runs: Sequence[Run]) -> Run:
    """The run that the others are compared with: the first natural one, else the first."""
    return next((run for run in runs if run.metadata.get("policy") == "natural"), runs[0])


def common_unit(runs: Sequence[Run]) -> Unit:
    """Bits per byte where tokenizers differ and all runs recorded bytes, else nats per token."""
    finals = [run.final for run in runs if run.final is not None]
    counted = all(np.isfinite(final.domain_bytes_K[np.isfinite(final.domain_loss_K)]).all() for final in finals)
    return BITS if len({_tokenizer(run) for run in runs}) > 1 and counted else NATS


def final_losses(run: Run, unit: Unit = NATS) -> dict[str, float]:
    """{domain or overall measure: final validation loss}; empty without a validation."""
    final = run.final
    if final is None:
        return {}
    loss_K = final.domain_loss_K if unit is NATS else final.bits_per_byte_K
    measured_K = np.isfinite(loss_K)
    mean = float(loss_K[measured_K].mean()) if measured_K.any() else math.nan
    overall = dict(zip(OVERALL, (_by_corpus_size(run, final, loss_K, unit), mean), strict=True))
    return {**dict(zip(run.domains, loss_K.tolist(), strict=True)), **overall}


def seed_noise(runs: Sequence[Run], unit: Unit = NATS) -> dict[str, float]:
    """{domain or overall measure: standard deviation of final losses between runs that differ in their seed alone}.

    Pooled over all sets of such runs; empty without two of them.
    """
    sets: dict[str, list[Run]] = {}
    for run in runs:
        if run.final is not None:
            same = [run.metadata.get(key) for key in ("policy", "policy_options", "model", "steps", "prior")]
            same += [run.metadata.get(key) for key in ("global_batch_size", "seq_len", "stages", "mixture_lag")]
            same += [(run.metadata.get("corpus") or {}).get("fingerprint"), *_tokenizer(run)]
            sets.setdefault(repr(same), []).append(run)
    squares: dict[str, float] = {}
    freedom: dict[str, int] = {}
    for members in sets.values():
        losses = [final_losses(run, unit) for run in {run.metadata.get("seed"): run for run in members}.values()]
        for name in losses[0] if len(losses) > 1 else ():
            values = np.array([loss[name] for loss in losses])
            if np.isfinite(values).all():
                squares[name] = squares.get(name, 0.0) + float(((values - values.mean()) ** 2).sum())
                freedom[name] = freedom.get(name, 0) + len(values) - 1
    return {name: math.sqrt(square / freedom[name]) for name, square in squares.items()}


def why_not_comparable(run: Run, baseline: Run) -> str:
    """Why the final validation losses of the two cannot be compared, as a sentence; "" where they can."""
    names = [name for name in run.domains if name in baseline.domains]
    if run.final is None or baseline.final is None or not names:
        return ""
    pair = f"{run.label} and {baseline.label}"
    if _tokenizer(run) != _tokenizer(baseline) and common_unit([run, baseline]) is NATS:
        return f"{pair} have different tokenizers and no record of the bytes of their validation text."
    other = [name for name in names if not _same_text(run, baseline, name)]
    return f"{pair} were validated on different text of {first_names(other, 4)}." if other else ""


def _by_corpus_size(run: Run, final: Evaluation, loss_K: Floats, unit: Unit) -> float:
    """Mean of the domains' losses by training text; by validation tokens where the record has no sizes."""
    measured_K = np.isfinite(loss_K)
    weight_K = run.train_sizes_K("tokens" if unit is NATS else "bytes")[measured_K]
    if not measured_K.any() or not np.isfinite(weight_K).all():
        return final.loss if unit is NATS else math.nan
    return float(np.average(loss_K[measured_K], weights=weight_K))


def _tokenizer(run: Run) -> tuple[object, object]:
    return run.metadata.get("tokenizer"), run.metadata.get("tokenizer_fingerprint")


def _same_text(run: Run, other: Run, name: str) -> bool:
    """Whether the two were validated on one text of a domain; of records without hashes, whether on one corpus."""
    finals = [(each.final, each.domains.index(name)) for each in (run, other)]
    found = [(final.text_K[k], final.domain_bytes_K[k]) for final, k in finals if final is not None]
    (text, num_bytes), (other_text, other_bytes) = found
    if text is None or other_text is None:
        prints = [(each.metadata.get("corpus") or {}).get("fingerprint") for each in (run, other)]
        return prints[0] == prints[1]
    if _tokenizer(run) == _tokenizer(other):
        return text == other_text
    covered = min(num_bytes, other_bytes) / max(num_bytes, other_bytes, 1.0)
    return text["head"] == other_text["head"] and covered >= _LEAST_COVERED
