"""Build a small corpus, train a small model with ADO and without, and write a report, all on this machine.

The text comes from the running Python environment; nothing is downloaded. The same command resumes a stopped demo.
"""

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ado_stream.cli.shared import print_json, table_text

if TYPE_CHECKING:
    from rich.console import Console

    from ado_stream.demo.demo_run import DemoResult
    from ado_stream.demo.raw_text import DomainText


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("--out", default="ado-demo", metavar="DIR", help="folder of all results (default: ado-demo)")
    parser.add_argument("--quick", action="store_true", help="5 MB and few steps in a minute; compares nothing")
    parser.add_argument("--steps", type=int, metavar="N", help="training steps of each run (default: 300, quick: 30)")
    parser.add_argument("--seed", type=int, default=17, metavar="N", help="seed of both runs (default: 17)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output")


def run(args: argparse.Namespace) -> None:
    """Runs the demo; prints the comparison as a table and the report's path."""
    from rich.console import Console

    from ado_kernels.numba_cache import compile_in_background
    from ado_stream.demo.demo_plan import DemoPlan
    from ado_stream.train.cpu_tuning import let_idle_threads_sleep

    console = Console(stderr=args.json, highlight=False, markup=False)
    plan = DemoPlan.create(args.seed, args.quick, args.steps)
    console.print(f"ado-stream demo: writes to {args.out} only, downloads nothing")
    let_idle_threads_sleep()
    for group in ("ops", "fit"):  # on a new machine compiling takes about as long as a quick demo's training
        compile_in_background(group)
    # with --json, only the answer goes to standard output: what the stages print goes to standard error
    shown = contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext()
    with shown:
        from ado_stream.demo.demo_run import run_demo, summary  # imports torch: seconds

        result = run_demo(Path(args.out), plan, console.print, lambda text: _show_text(console, text))
    _show_result(console, result)
    if args.quick:
        console.print("A quick demo checks that everything works; its runs are too short to compare policies.")
    console.print(f"report: {result.report.resolve()}", soft_wrap=True)
    if args.json:
        print_json(summary(result))


def _show_text(console: "Console", text: "list[DomainText]") -> None:
    total_bytes = sum(domain.bytes for domain in text)
    rows = [
        [
            domain.name,
            f"{domain.files:,}",
            f"{domain.documents:,}",
            f"{domain.bytes / 1e6:.2f}",
            f"{100 * domain.bytes / total_bytes:.1f} %",
        ]
        for domain in text
    ]
    files, documents = sum(domain.files for domain in text), sum(domain.documents for domain in text)
    rows.append(["all", f"{files:,}", f"{documents:,}", f"{total_bytes / 1e6:.2f}", ""])
    console.print(table_text(("domain", "files", "documents", "MB", "share"), rows), soft_wrap=True)


def _show_result(console: "Console", result: "DemoResult") -> None:
    from ado_stream.report.plot_style import domain_colors
    from ado_stream.report.report_html import Cell
    from ado_stream.report.report_tables import domain_table
    from ado_stream.report.run_data import load_runs
    from ado_stream.report.verdict import caveats, compare

    runs = load_runs(result.run_dirs)
    header, rows = domain_table(runs, domain_colors(runs[0].domains), sizes=False)
    cells = [[cell.text if isinstance(cell, Cell) else cell for cell in row] for row in rows]
    console.print()
    console.print(table_text(header, cells), soft_wrap=True)
    console.print()
    for comparison in compare(runs):
        console.print(comparison.headline(), style="bold")
        console.print(comparison.sentence())
    for sentence in caveats(runs):
        console.print(sentence, style="dim")
