"""Does the mechanism do what it says? Laws, forecasts and settings of policies, checked on the losses of real runs.

A cell holds every loss that its policy saw, so the policy can be replayed. At each refit the laws, old and new,
forecast the next steps of every domain: how far off are they, do the domains of which more was to be gained gain more,
and how often does a law lie at a bound of its fit? And a setting of `target` that gives the same mixtures on the losses
of a run as its defaults would have given the same run: only the others need to be trained.
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from ado_stream.policy.base_policy import Policy
from ado_stream.policy.scaling_laws import ScalingLawFit
from benchmarks.learning.scenarios import SENSITIVITY
from benchmarks.learning.trial import Trial

WINDOW = 24  # steps that are forecast, and that are looked back at
_ROSE = 1.05  # times its samples in the steps before
POLICIES = ("ado", "target")


def check_laws(trial: Trial, cell: Mapping[str, Any]) -> dict[str, Any]:
    """What a cell's own laws were worth, over its refits and domains.

    refits; miss_before, miss_after: median distance of the mean loss of the next WINDOW steps from the forecast of the
    laws before and after the refit, nats; rank_correlation of forecast and seen improvement on the WINDOW steps before,
    and where a domain's samples rose (rank_correlation_risen, of num_risen); at_bound: fraction of laws that lie at a
    bound of the fit, for policies whose fit has them. None where there is nothing to compare.
    """
    loss_SK, samples_SK = np.array(cell["losses"], np.float64), np.array(cell["samples"], np.float64)
    drawn_SK = samples_SK.cumsum(axis=0)
    found: dict[str, list[np.ndarray]] = {
        name: [] for name in ("before", "after", "forecast", "seen", "risen", "bound")
    }
    old: ScalingLawFit | None = None
    num_refits = 0
    for step, policy, laws in _refits(trial, cell):
        num_refits += 1
        ahead, back = slice(step + 1, step + 1 + WINDOW), slice(max(step + 1 - WINDOW, 0), step + 1)
        if old is not None and ahead.stop <= len(loss_SK):
            seen_K = _mean(loss_SK[ahead], samples_SK[ahead])
            new_K = _forecast(laws, policy, drawn_SK[ahead], samples_SK[ahead])
            found["before"].append(np.abs(seen_K - _forecast(old, policy, drawn_SK[ahead], samples_SK[ahead])))
            found["after"].append(np.abs(seen_K - new_K))
            found["forecast"].append(_forecast(laws, policy, drawn_SK[back], samples_SK[back]) - new_K)
            found["seen"].append(_mean(loss_SK[back], samples_SK[back]) - seen_K)
            found["risen"].append(samples_SK[ahead].mean(axis=0) > _ROSE * samples_SK[back].mean(axis=0))
            if "at_bound" in policy.health():
                found["bound"].append(laws.at_bound.any(axis=1)[laws.valid])
        old = laws
    if not found["seen"]:
        return {"refits": num_refits}
    joined = {name: np.concatenate(values) for name, values in found.items() if values}
    risen = joined["risen"].astype(bool)
    return {
        "refits": num_refits,
        "miss_before": float(np.nanmedian(joined["before"])),
        "miss_after": float(np.nanmedian(joined["after"])),
        "rank_correlation": _rank_correlation(joined["forecast"], joined["seen"]),
        "rank_correlation_risen": _rank_correlation(joined["forecast"][risen], joined["seen"][risen]),
        "num_risen": int(risen.sum()),
        "at_bound": float(joined["bound"].mean()) if "bound" in joined else None,
    }


def check_corpus(trials: Iterable[tuple[str, Trial, Mapping[str, Mapping[str, Any]]]]) -> dict[str, Any]:
    """`check_laws` of POLICIES, averaged over the seeds of a scenario, and the settings that change nothing.

    trials: (scenario, trial of a seed, its cells by policy). Cells without losses are left out.
    """
    laws: dict[tuple[str, str], list[dict[str, Any]]] = {}
    unchanged: dict[str, list[set[str]]] = {}
    for scenario, trial, cells in trials:
        for policy in POLICIES:
            if "losses" in cells.get(policy, {}):
                laws.setdefault((scenario, policy), []).append(check_laws(trial, cells[policy]))
        if "losses" in cells.get("target", {}):
            unchanged.setdefault(scenario, []).append(set(unchanged_settings(trial, cells["target"])))
    rows = [
        {"scenario": scenario, "policy": policy, "seeds": len(found), **_averages(found)}
        for (scenario, policy), found in laws.items()
    ]
    return {
        "laws": rows,
        "unchanged": {
            scenario: {"seeds": len(found), "settings": sorted(set.intersection(*found))}
            for scenario, found in unchanged.items()
        },
    }


def unchanged_settings(trial: Trial, cell: Mapping[str, Any]) -> list[str]:
    """The SENSITIVITY settings of `target` that would have drawn this cell of `target` again, to the bit."""
    default_SK = _mixtures(trial, "target", cell)
    return [spec for spec in SENSITIVITY if np.array_equal(_mixtures(trial, spec, cell), default_SK)]


def laws_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of `check_laws`, each with scenario, policy and seeds, as a Markdown table."""
    lines = [
        "| scenario | policy | seeds | refits | miss before refit, nats | after | rank correlation "
        "| where samples rose | laws at a bound |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        risen = row.get("rank_correlation_risen")
        cells = [
            row["scenario"], row["policy"], str(row["seeds"]), f"{row['refits']:.0f}",
            _number(row.get("miss_before"), "{:.3f}"), _number(row.get("miss_after"), "{:.3f}"),
            _number(row.get("rank_correlation"), "{:.2f}"),
            "" if risen is None else f"{risen:.2f} (n {row['num_risen']:.0f})",
            _number(row.get("at_bound"), "{:.0%}"),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _averages(found: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    averages: dict[str, float | None] = {}
    for name in {name: None for each in found for name in each}:
        values = [each[name] for each in found if each.get(name) is not None]
        averages[name] = statistics.fmean(values) if values else None
    return averages


def _refits(trial: Trial, cell: Mapping[str, Any]) -> Iterator[tuple[int, Policy, ScalingLawFit]]:
    last = None
    for step, policy in enumerate(trial.replay(cell["policy"], cell)):
        if policy.fit is not None and policy.fit_step != last:
            last = policy.fit_step
            yield step, policy, policy.fit


def _mixtures(trial: Trial, spec: str, cell: Mapping[str, Any]) -> np.ndarray:
    return np.array([policy.mixture for policy in trial.replay(spec, cell)])


def _forecast(laws: ScalingLawFit, policy: Policy, drawn_SK: np.ndarray, samples_SK: np.ndarray) -> np.ndarray:
    counts_SK = [np.broadcast_to(policy.law_counts(drawn_K), drawn_K.shape) for drawn_K in drawn_SK]
    return _mean(laws.predict(np.maximum(np.array(counts_SK).T, 1.0)).T, samples_SK)


def _mean(loss_SK: np.ndarray, samples_SK: np.ndarray) -> np.ndarray:
    """(K,) means over steps, by samples; NaN where a domain was absent."""
    weight_SK = np.where(np.isnan(loss_SK), 0.0, samples_SK)
    with np.errstate(invalid="ignore"):
        mean_K: np.ndarray = (np.nan_to_num(loss_SK) * weight_SK).sum(axis=0) / weight_SK.sum(axis=0)
    return mean_K


def _rank_correlation(forecast: np.ndarray, seen: np.ndarray) -> float | None:
    valid = np.isfinite(forecast) & np.isfinite(seen)
    return float(spearmanr(forecast[valid], seen[valid]).statistic) if valid.sum() > 9 else None


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
