"""The report's tables as rows of text: domains, laws, policy health, runs. A missing number is a dash."""

import math
from collections import Counter
from collections.abc import Callable

import numpy as np

from ado_stream.record import with_nan
from ado_stream.report.comparison import OVERALL, Unit, common_unit, final_losses, pick_baseline, why_not_comparable
from ado_stream.report.forecast_plot import forecast_error, halfway_law, next_interval_error
from ado_stream.report.mixture_plot import mixture_varies
from ado_stream.report.plot_style import compact, signed
from ado_stream.report.report_html import Cell
from ado_stream.report.run_data import Run
from ado_stream.report.throughput_plot import median_tokens_per_s
from ado_stream.value_types import Floats, JsonObject

Row = list[str | Cell]
DASH = "–"


def number(value: float | None, form: str) -> str:
    """`value` by `form`, or a dash when it is missing or not finite."""
    return DASH if value is None or not math.isfinite(value) else format(value, form)


def domain_cell(name: str, colors: dict[str, str]) -> Cell:
    """The first cell of a domain's row; of an overall measure's, where it has no colour."""
    domain = list(colors).index(name) if name in colors else None
    return Cell(name, swatch=colors.get(name, ""), domain=domain)


def domain_table(runs: list[Run], colors: dict[str, str]) -> tuple[list[str], list[Row]]:
    """(header, rows): validation loss, shares and tokens of each domain, then the two overall measures."""
    measured = [run for run in runs if run.final is not None]
    baseline = pick_baseline(measured) if measured else None
    unit = common_unit(measured)
    others = [run for run in measured if baseline and run is not baseline and not why_not_comparable(run, baseline)]
    moving = [run for run in runs if mixture_varies(run)]
    header = ["domain"] + [f"{run.label}: loss" for run in measured]
    header += [f"{run.label} − {baseline.label}" for run in others if baseline]
    header += ["prior"] + [f"{run.label}: mean share" for run in moving]
    header += ["train tokens"] + ["validation tokens"] * bool(measured)
    rows: list[Row] = []
    for name in [*colors, *(OVERALL if measured else ())]:
        row: Row = [domain_cell(name, colors)]
        row += [number(final_losses(run, unit).get(name), ".3f") for run in measured]
        row += [_difference(run, baseline, name, unit) for run in others if baseline]
        row += [_prior(runs[0], name)] + [_mean_share(run, name) for run in moving] + [_train_tokens(runs[0], name)]
        row += [_validation_tokens(measured[0], name)] if measured else []
        rows.append(row)
    return header, rows


def law_table(run: Run, colors: dict[str, str]) -> tuple[list[str], list[Row]]:
    """(header, rows): the last law of every domain, and the errors of forecasts."""
    header = ["domain", "floor ε (nats)", "β", "α", "law now (nats)"]
    header += ["forecast from half-way", "next-interval miss", "refits"]
    half = halfway_law(run)
    rows: list[Row] = []
    for index, name in enumerate(run.domains):
        known = [law for law in run.laws if law.known(index)]
        eps = beta = alpha = now = math.nan
        if known:
            law = known[-1]
            eps, beta, alpha = np.exp(law.log_eps_K[index]), np.exp(law.log_beta_K[index]), law.alpha_K[index]
            now = float(law.predict(index, run.counts_SK[-1:, index])[0]) if len(run.counts_SK) else math.nan
        rows.append(
            [
                domain_cell(name, colors),
                number(eps, ".3f"),
                number(beta, ".4g"),
                number(alpha, ".3f"),
                number(now, ".3f"),
                signed(100 * forecast_error(run, half, index) if half else math.nan, ".1f") + " %",
                number(100 * next_interval_error(run, index), ".1f") + " %",
                f"{sum(law.valid_K[index] for law in known)} of {len(run.laws)}",
            ]
        )
    return header, rows


def health_table(health: JsonObject, colors: dict[str, str]) -> tuple[list[str], list[Row]]:
    """(header, rows): the policy's counters for every domain, and its forecast errors over the last interval."""
    header = ["domain", "losses ignored", "laws held", "at a bound", "forecast error", "its size"]
    rows: list[Row] = []
    for name, ignored in health["ignored_losses"].items():
        error = {key: 100 * with_nan(value) for key, value in health["forecast_error"][name].items()}
        rows.append(
            [
                domain_cell(name, colors),
                f"{ignored:,}",
                f"{health['held_laws'][name]:,}",
                ", ".join(health["at_bound"].get(name, ())) or DASH,
                signed(error["mean"], ".2f") + " %",
                number(error["mean_abs"], ".2f") + " %",
            ]
        )
    return header, rows


def moved_table(health: JsonObject, colors: dict[str, str]) -> tuple[list[str], list[Row]]:
    """(header, rows): the domains that the target policy moved from their target shares, and the evidence."""
    header = ["domain", "of its target share", "since step", "evidence"]
    rows: list[Row] = [
        [
            domain_cell(name, colors),
            number(100 * moved["share_over_target"], ".3g") + " %",
            f"{moved['since_step']:,}",
            Cell(moved.get("why", DASH), "prose"),
        ]
        for name, moved in health["moved"].items()
    ]
    return header, rows


def fact_table(runs: list[Run]) -> tuple[list[str], list[Row]]:
    """(header, rows): a column per run with its settings, environment and duration."""
    facts: dict[str, Callable[[Run], str]] = {
        "policy": _policy,
        "model": _model,
        "batch": _batch,
        "steps done": _steps,
        "time in steps": _duration,
        "throughput": lambda run: number(median_tokens_per_s(run), ",.0f") + " tokens/s (median)",
        "seed, lanes, lag": lambda run: ", ".join(
            _given(run, key) for key in ("seed", "canonical_nodes", "mixture_lag")
        ),
        "device": lambda run: f"{_given(run, 'device')}, {run.metadata.get('world_size', 1)} rank(s)",
        "corpus": _corpus,
        "tokenizer": lambda run: f"{_given(run, 'tokenizer')}, vocabulary {_given(run, 'vocab_size')}",
        "started": lambda run: _given(run, "created"),
        "versions": _versions,
        "events": _events,
    }
    return ["", *(run.label for run in runs)], [[label, *map(fact, runs)] for label, fact in facts.items()]


def _of_domain(run: Run, value_K: Floats, name: str) -> float:
    return float(value_K[run.domains.index(name)]) if name in run.domains else math.nan


def _train_tokens(run: Run, name: str) -> str:
    return "" if name in OVERALL else _tokens(_of_domain(run, run.train_sizes_K("tokens"), name))


def _prior(run: Run, name: str) -> str:
    return "" if name in OVERALL else number(100 * _of_domain(run, run.prior_K, name), ".1f") + " %"


def _mean_share(run: Run, name: str) -> str:
    if name not in run.domains:
        return "" if name in OVERALL else DASH
    shares_S = run.mixture_SK[:, run.domains.index(name)]
    finite = shares_S[np.isfinite(shares_S)]
    return number(100 * float(finite.mean()) if finite.size else None, ".1f") + " %"


def _validation_tokens(run: Run, name: str) -> str:
    if run.final is None or name not in run.domains:
        return ""
    return _tokens(_of_domain(run, run.final.domain_tokens_K, name))


def _tokens(value: float) -> str:
    return compact(value) if math.isfinite(value) else DASH


def _difference(run: Run, baseline: Run, name: str, unit: Unit) -> Cell:
    difference = final_losses(run, unit).get(name, math.nan) - final_losses(baseline, unit).get(name, math.nan)
    level = not math.isfinite(difference) or abs(difference) < unit.level
    return Cell(signed(difference, ".3f"), "" if level else "lower" if difference < 0 else "higher")


def _policy(run: Run) -> str:
    listed = ", ".join(_options(run.metadata.get("policy_options") or {}))
    return _given(run, "policy") + (f" ({listed})" if listed else "")


def _options(options: JsonObject, prefix: str = "") -> list[str]:
    """ "key value" of every option, nested ones as outer.inner."""
    found = []
    for key, value in options.items():
        found += _options(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key} {value}"]
    return found


def _model(run: Run) -> str:
    model = run.metadata.get("model") or {}
    parameters = model.get("parameters")
    return f"{model.get('preset') or 'custom'}" + (f", {compact(parameters)} parameters" if parameters else "")


def _batch(run: Run) -> str:
    about = run.metadata
    batches = [(stage.get("global_batch_size"), stage.get("seq_len")) for stage in about.get("stages") or ()]
    batches = batches or [(about.get("global_batch_size"), about.get("batch_seq_len"))]
    cut = [(size, length or about.get("seq_len")) for size, length in batches]
    texts = [f"{size} samples × {length} tokens" if size and length else DASH for size, length in cut]
    return ", then ".join(texts)


def _steps(run: Run) -> str:
    return f"{run.num_steps:,}" + (f" of {run.planned_steps:,}" if run.planned_steps else "")


def _duration(run: Run) -> str:
    total_s = float(np.nansum(run.time_s["total"]))
    return f"{total_s / 60:.1f} min" if total_s >= 120 else f"{total_s:.1f} s"


def _given(run: Run, key: str) -> str:
    return str(run.metadata.get(key, DASH))


def _corpus(run: Run) -> str:
    corpus = run.metadata.get("corpus") or {}
    return f"{corpus.get('path', DASH)} (fingerprint {str(corpus.get('fingerprint', DASH))[:16]})"


def _versions(run: Run) -> str:
    return ", ".join(f"{name} {version}" for name, version in (run.metadata.get("versions") or {}).items()) or DASH


def _events(run: Run) -> str:
    counted = Counter(event.get("name", "?") for event in run.events)
    return ", ".join(f"{name} ×{count}" if count > 1 else name for name, count in counted.items()) or DASH
