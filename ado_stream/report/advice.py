"""What to do now, from the records: each finding with its figure and the setting to try."""

import math

import numpy as np

from ado_stream.report.comparison import pick_baseline
from ado_stream.report.forecast_plot import forecast_error, halfway_law
from ado_stream.report.run_data import Run
from ado_stream.report.verdict import compare
from ado_stream.suggest import first_names

FORECAST_FRAC = 0.05
MOST_EPOCHS = 4  # up to here repeated text teaches about as much as new text (arXiv 2305.16264)
_LEARNS_LAWS = ("ado", "target")


def advice(runs: list[Run]) -> list[str]:
    """One sentence or two for each finding; that nothing stands out, where there is none."""
    found = [sentence for run in runs for sentence in _of_run(run)]
    baseline = pick_baseline(runs)
    for comparison in compare(runs):
        if comparison.is_behind and baseline.metadata.get("policy") == "natural":
            found.append(
                f"{comparison.run} ends behind natural: its text may hold nothing that a policy can gain by. Try "
                "policy.name=target, which moves a domain on evidence only, or keep natural."
            )
    return found or ["Nothing in the record stands out."]


def _of_run(run: Run) -> list[str]:
    candidates = [_unfinished(run), _no_laws(run), _at_bound(run), _forecasts(run), _repeated(run), _skipped(run)]
    return [f"{run.label}: {sentence}" for sentence in candidates if sentence]


def _unfinished(run: Run) -> str:
    if not run.planned_steps or run.num_steps >= run.planned_steps:
        return ""
    return f"at step {run.num_steps:,} of {run.planned_steps:,}. The same train command resumes it."


def _no_laws(run: Run) -> str:
    options = run.metadata.get("policy_options") or {}
    if run.metadata.get("policy") not in _LEARNS_LAWS or run.laws or not run.num_steps:
        return ""
    start = f" (policy.options.start_step is {options['start_step']})" if "start_step" in options else ""
    return (
        f"too short for laws: {run.num_steps:,} steps and no fit{start}. Train longer, or fit earlier: "
        "policy.options.start_step."
    )


def _at_bound(run: Run) -> str:
    held = [f"{name} ({', '.join(keys)})" for name, keys in ((run.health or {}).get("at_bound") or {}).items() if keys]
    if not held:
        return ""
    return (
        f"laws at a bound of the fit, so that their forecasts are the bound's: {first_names(held, 4)}. Train longer "
        "before the first fit, or set policy.options.units=vocabulary."
    )


def _forecasts(run: Run) -> str:
    law = halfway_law(run)
    errors = {} if law is None else {name: forecast_error(run, law, k) for k, name in enumerate(run.domains)}
    missed = {name: error for name, error in errors.items() if abs(error) > FORECAST_FRAC}
    if not missed:
        return ""
    worst = sorted(missed, key=lambda name: -abs(missed[name]))
    named = [f"{name} {100 * missed[name]:+.1f} %" for name in worst]
    return (
        f"half-way forecasts off by more than {100 * FORECAST_FRAC:.0f} %: {first_names(named, 4)}. Do not plan by "
        "these laws; fits that leave out more of the beginning may do better: policy.options.ignore_steps."
    )


def _repeated(run: Run) -> str:
    gap_S = np.diff(run.step_S, prepend=-1)  # of a sparse record, a line stands for the steps before it
    drawn_K = (np.nan_to_num(run.samples_SK) * gap_S[:, None]).sum(axis=0)
    size_K = run.train_sizes_K("samples")
    epochs = {name: drawn / size for name, drawn, size in zip(run.domains, drawn_K, size_K, strict=True)}
    over = [name for name, passes in epochs.items() if math.isfinite(passes) and passes > MOST_EPOCHS]
    if not over:
        return ""
    named = [f"{name} {epochs[name]:.1f} times" for name in sorted(over, key=lambda name: -epochs[name])]
    return (
        f"read more than {MOST_EPOCHS} times: {first_names(named, 4)}. Past that repeated text teaches little: add "
        "text, or bound it with policy.guards=[{name: repetition}]."
    )


def _skipped(run: Run) -> str:
    skips = sum(event.get("name") == "skip" for event in run.events)
    return f"{skips} steps were skipped for losses that are not finite. Lower train.learning_rate." if skips else ""
