"""Fit scaling laws to recorded losses: one table row per domain, and a picture with --plot.

The file is CSV with a header: a column `samples` (cumulative samples, shared by all domains) or `step` (then samples =
(step + 1) * --batch-size), and one column of losses in nats per token for every domain. Empty cells are missing points.
"""

import argparse
import csv
import io
import math
from pathlib import Path

import numpy as np

from ado_stream.cli.shared import announce, picture_path, table_text
from ado_stream.errors import ConfigError, DataError
from ado_stream.option_checks import whole
from ado_stream.policy.scaling_laws import (
    PARAMETERS,
    FitConfig,
    ScalingLawFit,
    bounds_in_words,
    fit_scaling_laws,
    prepare_history,
)
from ado_stream.policy.state_codec import finite_or_none
from ado_stream.regular_files import read_regular
from ado_stream.value_types import Floats, JsonObject
from ado_stream.visible import show, show_json

AXES = ("samples", "step")
MIN_FITTED_ROWS = 30  # three parameters from fewer points follow their noise


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    default = FitConfig()
    parser.add_argument("losses", metavar="LOSSES.csv", type=Path, help="column `samples` or `step`, one per domain")
    parser.add_argument(
        "--batch-size", type=int, default=1, help="samples per step, where the column is `step` (default 1)"
    )
    parser.add_argument(
        "--smooth-window", type=int, default=default.smooth_window, help="rows of the smoothing filter; 0: none"
    )
    parser.add_argument("--ignore-steps", type=int, default=default.ignore_steps, help="rows dropped from the front")
    parser.add_argument("--every", type=int, default=default.every, help="fit every n-th row after smoothing")
    parser.add_argument(
        "--start-loss",
        type=float,
        metavar="LOSS",
        help="of an untrained model, in the file's unit: log of the vocabulary in nats per token, 8 in "
        "bits per byte; scales the fit's starts and penalties (default: as in the reference, log of 50,000)",
    )
    parser.add_argument("--backend", default="auto", help="auto, numba or triton")
    parser.add_argument("--json", action="store_true", help="print the laws as JSON")
    parser.add_argument("--plot", metavar="FILE.png", type=Path, help="draw the fitted points and the laws")


def run(args: argparse.Namespace) -> None:
    """Fits every domain of the file, prints a table or JSON, draws with --plot."""
    whole("--batch-size", args.batch_size, 1)
    plot = picture_path(args.plot) if args.plot else None
    names, samples_T, losses_KT = read_losses(args.losses, args.batch_size)
    config = FitConfig(
        smooth_window=args.smooth_window, ignore_steps=args.ignore_steps, every=args.every, start_loss=args.start_loss
    )
    if args.ignore_steps >= len(samples_T):
        raise ConfigError(
            f"--ignore-steps {args.ignore_steps} leaves none of the {len(samples_T)} rows of {args.losses} to fit; "
            f"expected at most {len(samples_T) - 1}."
        )
    announce(f"fitting {len(samples_T)} rows of {len(names)} domains")
    fit = fit_scaling_laws(samples_T, losses_KT, config, args.backend)
    rows, bounds = law_rows(names, fit, 2.0 * samples_T[-1]), list(bounds_in_words(fit, names).values())
    if args.json:
        show_json({"predicted_at_samples": 2.0 * samples_T[-1], "domains": rows, "bounds": bounds})
    else:
        print_laws(rows)
        for text in bounds:
            show(text)
        if (fitted := len(samples_T[config.kept])) < len(samples_T):
            show(
                f"fitted {fitted} of {len(samples_T)} rows: --ignore-steps {args.ignore_steps} drops the first, "
                f"--every {args.every} keeps one in {args.every}"
                + ("; laws of so few points are loose: lower both" if fitted < MIN_FITTED_ROWS else "")
            )
    if plot:
        draw_laws(plot, names, samples_T[config.kept], prepare_history(losses_KT, config), fit)


def read_losses(path: Path, batch_size: int = 1) -> tuple[list[str], Floats, Floats]:
    """Domain names, samples (T,) float64 and losses (K, T) float64 with NaN where a cell is empty.

    Raises DataError with the file and line where a cell is not a number or a row has another length.
    """
    try:
        reader = csv.reader(io.StringIO(read_regular(path, pipe=True).decode("utf-8-sig"), newline=""))
        stripped = ((reader.line_num, [cell.strip() for cell in line]) for line in reader)
        lines = [(number, cells) for number, cells in stripped if any(cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV: {error}") from error
    header = lines[0][1] if lines else []
    axis = next((name for name in AXES if name in header), None)
    names = [name for name in header if name not in AXES]
    if axis is None or not names or len(lines) < 2 or len(set(header)) != len(header):
        raise DataError(
            f"{path}: got the header {header} and {max(len(lines) - 1, 0)} rows.\n"
            "  Expected a column `samples` or `step`, one column of losses per domain under its name, and rows."
        )
    table = np.empty((len(lines) - 1, len(header)))
    for row, (number, cells) in zip(table, lines[1:], strict=True):
        if len(cells) != len(header):
            raise DataError(f"{path}: line {number} has {len(cells)} cells, the header has {len(header)}")
        row[:] = [_number(cell, path, number) for cell in cells]
    samples_T = table[:, header.index(axis)]
    if axis == "step":
        samples_T = (samples_T + 1.0) * batch_size
    return names, samples_T, table[:, [header.index(name) for name in names]].T.copy()


def _number(cell: str, path: Path, line: int) -> float:
    try:
        return float(cell) if cell else math.nan
    except ValueError as error:
        raise DataError(f"{path}: line {line}: {cell!r} is not a number; leave a missing loss empty") from error


def law_rows(names: list[str], fit: ScalingLawFit, samples: float) -> list[JsonObject]:
    """One JSON-able dict per domain; None where the domain's fit is not valid. eps, beta, loss in nats per token."""
    predicted_K = fit.predict(samples)

    return [
        {
            "domain": name,
            "eps": finite_or_none(np.exp(fit.log_eps[k])),
            "beta": finite_or_none(np.exp(fit.log_beta[k])),
            "alpha": finite_or_none(fit.alpha[k]),
            "objective": finite_or_none(fit.objective[k]),
            "residual_scale": finite_or_none(fit.residual_scale[k]),
            "at_bound": [bound for bound, at in zip(PARAMETERS, fit.at_bound[k], strict=True) if at],
            "points": int(fit.num_points[k]),
            "predicted_loss": finite_or_none(predicted_K[k]),
        }
        for k, name in enumerate(names)
    ]


def print_laws(rows: list[JsonObject]) -> None:
    """The laws L(n) = eps + beta n^-alpha as a table; n in samples, residual the median |log loss - log law|."""
    header = ("domain", "eps", "beta", "alpha", "objective", "residual", "points", "at bound", "loss at 2x data")
    table = []
    for row in rows:
        numbers = [row[key] for key in ("eps", "beta", "alpha", "objective", "residual_scale")]
        cells = ["-" if value is None else f"{value:.4g}" for value in numbers]
        loss = row["predicted_loss"]
        cells += [f"{row['points']:,}", ", ".join(row["at_bound"]) or "no", "-" if loss is None else f"{loss:.4f}"]
        table.append([row["domain"], *cells])
    show(table_text(header, table))


def draw_laws(path: Path, names: list[str], samples_M: Floats, losses_KM: Floats, fit: ScalingLawFit) -> None:
    """Writes a picture: the fitted points, and the laws up to twice the data.

    One panel per domain, up to as many as a report has; a title gives the number of domains when some are not shown.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from ado_stream.report.forecast_plot import MAX_PANELS
    from ado_stream.report.plot_style import shorten, styled

    shown = names[:MAX_PANELS]
    num_columns = min(4, math.ceil(math.sqrt(len(shown))))
    num_rows = math.ceil(len(shown) / num_columns)
    with styled():
        figure = Figure(figsize=(3.4 * num_columns + 0.6, 2.5 * num_rows + 0.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = np.atleast_1d(figure.subplots(num_rows, num_columns, squeeze=False)).ravel()
        curve_N = np.geomspace(samples_M[0], 2.0 * samples_M[-1], 200)
        law_KN = fit.predict(curve_N)
        for k, name in enumerate(shown):
            axes[k].plot(samples_M, losses_KM[k], ".", markersize=2.5, color="0.55", label="smoothed loss")
            axes[k].plot(curve_N, law_KN[k], color="C0", linewidth=1.6, label="law")
            axes[k].axvline(samples_M[-1], color="0.8", linewidth=0.8, linestyle=":")
            axes[k].set_xscale("log")
            axes[k].set_title(shorten(name, 36), fontsize=10)
            axes[k].tick_params(labelsize=8)
        for unused in axes[len(shown) :]:
            unused.set_visible(False)
        if len(shown) < len(names):
            figure.suptitle(f"The first {len(shown)} of {len(names):,} domains", fontsize=10)
        axes[0].legend(fontsize=8, frameon=False)
        figure.supxlabel("samples", fontsize=10)
        figure.supylabel("loss, nats per token", fontsize=10)
        figure.savefig(path, dpi=130)
