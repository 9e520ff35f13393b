"""Write one self-contained HTML page, and its figures as PNG, from one or several runs.

A directory of runs, such as a demo's, means all runs in it.
"""

import argparse
import os
from pathlib import Path

from ado_stream.cli.shared import announce
from ado_stream.visible import show, show_json

ONLY_WITH = {"--follow": ("--port",)}
NOT_WITH = {"--follow": ("--out", "--json")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run directory, or a directory of runs")
    parser.add_argument("--out", metavar="DIR", help="where to write (default: report/ in the run, or beside several)")
    parser.add_argument(
        "--follow",
        action="store_true",
        help="serve the page on 127.0.0.1, changing as the runs go on (for "
        "TensorBoard or Weights & Biases: train with log.tensorboard=true or log.wandb=true)",
    )
    parser.add_argument("--port", type=int, default=0, help="of --follow (a free one)")
    parser.add_argument("--json", action="store_true", help="print the path and the comparison as JSON")


def run(args: argparse.Namespace) -> None:
    """Writes the report; prints the verdict and the page's path."""
    from ado_stream.option_checks import optional, path_text
    from ado_stream.report.run_data import load_runs
    from ado_stream.report.verdict import caveats, compare

    out = optional(path_text, "--out", args.out)
    runs = load_runs(args.runs)
    announce(f"drawing {', '.join(args.runs)}")
    from ado_stream.report.report_page import write_report  # imports matplotlib

    paths = [found.path for found in runs]
    if args.follow:
        _follow(paths, args.port)
        return
    beside = paths[0] if len(paths) == 1 else os.path.commonpath([path.resolve().parent for path in paths])
    path = write_report(paths, Path(out) if out else Path(beside).resolve() / "report")
    comparisons = [comparison.sentence() for comparison in compare(runs)]
    if args.json:
        show_json({"report": str(path), "comparisons": comparisons, "caveats": caveats(runs)})
        return
    for sentence in (*comparisons, *caveats(runs)):
        show(sentence)
    show(f"report: {path}")


def _follow(paths: list[Path], port: int) -> None:
    import threading

    from ado_stream.report.live_server import LiveReport, LiveServer

    report = LiveReport(paths)
    report.draw()
    server = LiveServer(report, port)
    show(f"{server.url} (Ctrl-C ends it)")
    server.serve(threading.Event())
