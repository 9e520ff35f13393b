"""Fits of the golden records: histories of losses, the reference's refits, and the least F known for each."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ado_kernels import scaling_law_fit
from ado_kernels.fit.objective import FitOptions


def golden_fits(path: Path, backend: str) -> Iterator[tuple[Any, ...]]:
    """(our fit, counts, losses, options, points, F's best known, the reference's own) of each refit of a record.

    Refits of fewer than 50 points are left out: any law through one point is as good.
    """
    record, known = np.load(path), np.load(path.parent / "objective" / path.name)
    meta = json.loads(str(record["meta"]))
    losses_TK = filled(record["loss"], record["counts"])
    counts_T = meta["B"] * np.arange(1, len(losses_TK) + 1.0)
    options = FitOptions(ignore_steps=meta["ignore_steps"])
    refits = zip(
        record["refit_step"], record["refit_points"], known["objective_best"], known["objective_reference"], strict=True
    )
    for step, points, best_K, reference_K in refits:
        if points >= 50:
            history = counts_T[: step + 1], np.ascontiguousarray(losses_TK[: step + 1].T)
            yield scaling_law_fit(*history, options, backend), *history, options, points, best_K, reference_K


def filled(loss_TK: np.ndarray, count_TK: np.ndarray) -> np.ndarray:
    """The record's losses as the reference fitted them: a missing one repeats the last, at first the batch's mean."""
    loss_TK = loss_TK.astype(np.float64)
    seen_K = ~np.isnan(loss_TK[0])
    loss_TK[0, ~seen_K] = np.average(loss_TK[0, seen_K], weights=count_TK[0, seen_K])
    for late_K, early_K in zip(loss_TK[1:], loss_TK, strict=False):
        np.copyto(late_K, early_K, where=np.isnan(late_K))
    return loss_TK
