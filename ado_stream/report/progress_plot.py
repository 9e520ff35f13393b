"""Loss over the steps of every run, training and validation."""

import math

import numpy as np
from matplotlib.axes import Axes

from ado_stream.report.plot_style import RUN_MARKERS, Plot, new_figure, plot_binned, run_style, shorten, thousands
from ado_stream.report.run_data import Evaluation, Run


def draw_progress(runs: list[Run]) -> Plot | None:
    """Training loss, and validation loss where it was measured more than once, over the runs' steps."""
    shown = [run for run in runs if np.isfinite(run.loss_S).any()]
    if not shown:
        return None
    figure = new_figure(3.6)
    axes = figure.subplots()
    tops = []
    for number, run in enumerate(shown):
        label = f"{shorten(run.label)}: training"
        style = {"label": label, "alpha": 0.75, "gid": f"d|{run.label}: ", **run_style(number)}
        loss_S = plot_binned(axes, run.step_S, run.loss_S, **style)
        # the axis ends above the 99th percentile after the steep first twentieth
        tops.append(np.nanpercentile(loss_S[len(loss_S) // 20 :], 99) if np.isfinite(loss_S).any() else math.nan)
        if len(run.evaluations) > 1:
            _validations(axes, run.evaluations, f"{shorten(run.label)}: validation", number)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.set_ylim(top=float(np.nanmax(tops)) * 1.05)
    axes.legend(ncols=2)
    thousands(axes.xaxis)
    return Plot(
        "progress",
        "Loss over the run",
        "Mean loss over all tokens of a batch, averaged over neighbouring steps. Training losses of runs with "
        "different mixtures are over different text: compare the validation losses instead.",
        figure,
    )


def _validations(axes: Axes, evaluations: tuple[Evaluation, ...], label: str, number: int) -> None:
    steps = [evaluation.step for evaluation in evaluations]
    losses = [evaluation.loss for evaluation in evaluations]
    marker = RUN_MARKERS[number % len(RUN_MARKERS)]
    axes.plot(steps, losses, marker=marker, ms=5, label=label, gid=f"d|{label}: ", **run_style(number))
