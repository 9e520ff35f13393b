"""Writes one self-contained HTML page, and its figures as PNG, from one or several runs.

A directory that holds runs (a demo's) stands for all of them.
"""

import argparse
import json
import os
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run directory, or a directory of runs")
    parser.add_argument("--out", metavar="DIR", help="where to write (default: report/ in the run, or beside several)")
    parser.add_argument("--json", action="store_true", help="print the path and the comparison as JSON")


def run(args: argparse.Namespace) -> int:
    """Writes the report and prints the verdict and where the page is."""
    from ado_stream.report.report_page import write_report
    from ado_stream.report.run_data import load_runs
    from ado_stream.report.verdict import caveats, compare

    runs = load_runs(args.runs)
    parents = [found.path.resolve() for found in runs]
    out = Path(args.out) if args.out else Path(parents[0] if len(parents) == 1 else _common(parents)) / "report"
    path = write_report([found.path for found in runs], out)
    comparisons = [comparison.sentence() for comparison in compare(runs)]
    if args.json:
        print(json.dumps({"report": str(path), "comparisons": comparisons, "caveats": caveats(runs)}, indent=1))
        return 0
    for sentence in (*comparisons, *caveats(runs)):
        print(sentence)
    print(f"report: {path}")
    return 0


def _common(paths: list[Path]) -> str:
    return os.path.commonpath([path.parent for path in paths])
