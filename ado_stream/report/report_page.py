"""One self-contained report.html from the records of one or several runs, with every figure as a PNG beside it.

The page loads nothing: figures and script are inlined, no font, no network. Files become visible only complete.
"""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from ado_stream.durable import write_durably
from ado_stream.errors import StorageError
from ado_stream.report import report_html as html
from ado_stream.report.advice import advice
from ado_stream.report.comparison import OVERALL, common_unit, final_losses
from ado_stream.report.forecast_plot import draw_forecasts
from ado_stream.report.mixture_plot import draw_mixture, mixture_varies
from ado_stream.report.plot_style import Plot, domain_colors, png, styled, svg
from ado_stream.report.progress_plot import draw_progress
from ado_stream.report.report_tables import domain_table, fact_table, health_table, law_table, moved_table
from ado_stream.report.run_data import Run, load_runs
from ado_stream.report.selection_plot import draw_selection
from ado_stream.report.throughput_plot import draw_throughput
from ado_stream.report.validation_plot import draw_validation
from ado_stream.report.verdict import caveats, compare

FILE_NAME = "report.html"


def write_report(run_dirs: Sequence[str | os.PathLike[str]], out_dir: str | os.PathLike[str]) -> Path:
    """Path of OUT_DIR/report.html, written from the records in `run_dirs` (runs, or directories of runs).

    Raises NotFound or DataError for missing or damaged records, StorageError when `out_dir` cannot be written.
    """
    runs = load_runs(run_dirs)
    with styled():
        plots = _plots(runs, _colors(runs))
        pictures = {plot.name: png(plot) for plot in plots}
        document = _document(runs, plots)
    out = Path(out_dir)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            write_durably(out / f"{name}.png", picture)
        write_durably(out / FILE_NAME, document.encode())
    except OSError as error:
        raise StorageError(
            f"{error.filename or out}: cannot write the report: {error.strerror}.\n  Name another folder with --out."
        ) from error
    return out / FILE_NAME


def live_page(run_dirs: Sequence[str | os.PathLike[str]]) -> str:
    """The page of the records as they are now, which asks its server for changes. Raises NotFound or DataError."""
    runs = load_runs(run_dirs)
    with styled():
        return _document(runs, _plots(runs, _colors(runs)), live=True)


def _colors(runs: list[Run]) -> dict[str, str]:
    return domain_colors(list(dict.fromkeys(name for run in runs for name in run.domains)))


def _document(runs: list[Run], plots: list[Plot], live: bool = False) -> str:
    colors, title = _colors(runs), _title(runs)
    sections = {"What to do now": html.section("What to do now", html.listed(advice(runs)))}
    sections["Domains"] = _domains(runs, colors)
    sections |= {plot.title: html.picture(plot.title, plot.caption, svg(plot)) for plot in plots}
    sections |= _laws(runs, colors)
    for run in runs:
        sections |= _health(run, colors)
    sections["Runs and environment"] = html.section("Runs and environment", html.table(*fact_table(runs), kind="facts"))
    sections["How to repeat it"] = _reproduce(runs)
    body = [*_opening(runs, title), html.contents(sections, colors), *sections.values()]
    return html.page(f"ado-stream: {title}", body, live)


def _title(runs: list[Run]) -> str:
    labels = [run.label for run in runs]
    if len(labels) > 4:
        return f"{', '.join(labels[:2])} and {len(labels) - 2} more runs"
    return " against ".join(labels) if len(labels) == 2 else ", ".join(labels)


def _plots(runs: list[Run], colors: dict[str, str]) -> list[Plot]:
    """Every figure that the records have data for, in the page's order."""
    adaptive = [run for run in runs if mixture_varies(run)]
    plots = [
        draw_validation(runs, colors),
        draw_mixture(runs, colors),
        *(draw_forecasts(run, colors) for run in runs if run.laws),
        *(draw_selection(run, colors) for run in (adaptive or runs[:1])),
        draw_progress(runs),
        draw_throughput(runs),
    ]
    return [plot for plot in plots if plot is not None]


def _opening(runs: list[Run], title: str) -> list[str]:
    first = runs[0]
    *others, last = dict.fromkeys(str(run.metadata.get("policy", "?")) for run in runs)
    model = (first.metadata.get("model") or {}).get("preset") or "custom"
    facts = f"{len(first.domains)} domains, model {model}, {first.num_steps:,} steps, "
    facts += f"policies {', '.join(others)} and {last}" if others else f"policy {last}"
    comparisons = compare(runs)
    if comparisons:
        headline, *more = [comparison.headline() for comparison in comparisons]
        headline = headline if not more else f"{len(comparisons)} runs against {comparisons[0].baseline}"
        sentences = [comparison.sentence() for comparison in comparisons]
    else:
        headline, sentences = "No comparison", [_single_run_sentence(run) for run in runs]
    heading = f"<h1>{html.text(title)}</h1>"
    return [heading, html.paragraph(facts, "soft"), html.verdict(headline, sentences, caveats(runs))]


def _single_run_sentence(run: Run) -> str:
    if run.final is None:
        return f"{run.label}: {run.num_steps:,} steps recorded, nothing to compare with."
    final, losses = run.final, final_losses(run)
    return (
        f"{run.label}: validation loss {losses[OVERALL[0]]:.3f} nats per token with domains weighted by corpus size, "
        f"{losses[OVERALL[1]]:.3f} as the mean of its domains, at step {final.step:,}."
    )


def _domains(runs: list[Run], colors: dict[str, str]) -> str:
    header, rows = domain_table(runs, colors)
    totals = 2 if any(run.final is not None for run in runs) else 0
    unit = common_unit([run for run in runs if run.final is not None])
    note = f"Losses in {unit.name} on held-out documents. Green and red: {unit.level} or more lower or higher."
    return html.table_section("Domains", note, html.table(header, rows, num_total=totals))


def _laws(runs: list[Run], colors: dict[str, str]) -> dict[str, str]:
    note = (
        "L(n) = ε + β n^−α after n samples; the last law of each domain. Half-way: mean of the later losses over the "
        "mean of that forecast, less one. Next-interval miss: the same up to the following refit, the median of its "
        "size over refits. Refits: those with a good law for the domain; at the others it kept the one before."
    )
    titles = {f"Scaling laws: {run.label}": run for run in runs if run.laws}
    return {
        title: html.table_section(title, note, html.table(*law_table(run, colors))) for title, run in titles.items()
    }


def _health(run: Run, colors: dict[str, str]) -> dict[str, str]:
    """What the policy says of its laws, or of what it moved by them; nothing of a policy without laws."""
    health = run.health or {}
    if "moved" in health:
        title = f"Moved by the policy: {run.label}"
        table = html.table(*moved_table(health, colors)) if health["moved"] else ""
        note = (
            f"Refits: {health['refits']}. A domain is moved only where it learns much slower or faster than the middle "
            "one beyond chance; ranges show the uncertainty of the estimates."
        )
        note += "" if table else " None was moved: the mixture is exactly the target."
    elif "forecast_error" in health:
        title = f"Policy health: {run.label}"
        table = html.table(*health_table(health, colors))
        note = (
            f"Refits: {health['refits']}; failed: {health['failed_refits']}. "
            "Losses ignored: not finite or not above 0. Laws held: refits without a good law for the domain. At a "
            "bound: parameters that a penalty of the fit holds. Forecast error: observed over forecast loss, less one, "
            "of single steps between the last two refits; its mean and its mean size."
        )
        note = " ".join([note, *health.get("bounds", ())])
        note += f" Without floors, {health['settles']}." if health.get("settles") else ""
    else:
        return {}
    return {title: html.table_section(title, note, table)}


def _reproduce(runs: list[Run]) -> str:
    configs = [run.path / "config.yaml" for run in runs]
    commands = [f"ado-stream train {shlex.quote(str(config))}" for config in configs if config.exists()]
    commands.append("ado-stream report " + " ".join(shlex.quote(str(run.path)) for run in runs))
    note = (
        "The same configuration, corpus, seed and versions give the same batches; on one processor, the same numbers."
    )
    code = f"<pre>{html.text(chr(10).join(commands))}</pre>"
    return html.section("How to repeat it", html.paragraph(note), code)
