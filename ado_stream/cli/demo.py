"""Build a small corpus, train a small model under four policies, and write a report, all on this machine.

The text comes from the running Python environment; nothing is downloaded. The same command resumes a stopped demo.
"""

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ado_stream.cli.shared import table_text
from ado_stream.visible import show, show_json

if TYPE_CHECKING:
    from ado_stream.demo.demo_run import DemoResult
    from ado_stream.demo.raw_text import DomainText


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("--out", default="ado-demo", metavar="DIR", help="folder of all results (default: ado-demo)")
    parser.add_argument("--quick", action="store_true", help="5 MB and few steps in a minute; compares nothing")
    parser.add_argument("--steps", type=int, metavar="N", help="training steps of each run (default: 500, quick: 40)")
    parser.add_argument("--seed", type=int, default=17, metavar="N", help="seed of all runs (default: 17)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output")


def run(args: argparse.Namespace) -> None:
    """Runs the demo; prints the comparison as a table and the report's path."""
    from ado_kernels.numba_cache import compile_in_background
    from ado_stream.demo.demo_plan import DemoPlan
    from ado_stream.option_checks import path_text
    from ado_stream.train.cpu_tuning import let_idle_threads_sleep

    plan, out = DemoPlan.create(args.seed, args.quick, args.steps), Path(path_text("--out", args.out))
    # with --json, only the answer goes to standard output, all other text to standard error
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        show(f"ado-stream demo: writes to {out} only, downloads nothing")
        let_idle_threads_sleep()
        for group in ("ops", "fit"):  # on a new machine compiling takes about as long as a quick demo's training
            compile_in_background(group)
        from ado_stream.demo.demo_run import run_demo, summary  # imports torch: seconds

        result = run_demo(out, plan, show, _show_text)
        _show_result(result)
        if args.quick:
            show("A quick demo checks that everything works; its runs are too short to compare policies.")
        show(f"report: {result.report.resolve()}")
        show(
            "Try your own text: ado-stream prepare YOUR.jsonl --out my-corpus, then ado-stream info my-corpus; "
            "training starts with policy target."
        )
    if args.json:
        show_json(summary(result))


def _show_text(text: "list[DomainText]") -> None:
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
    show(table_text(("domain", "files", "documents", "MB", "share"), rows))


def _show_result(result: "DemoResult") -> None:
    """The table of losses on wanted text, with and without the unlearnable domain, and what follows from it."""
    from ado_stream.demo.demo_plan import CLEAN, POLICIES
    from ado_stream.demo.outcome import conclusion, wanted_loss
    from ado_stream.report.run_data import load_runs

    runs = {name: load_runs([path])[0] for name, path in result.run_dirs.items()}
    loss = {name: wanted_loss(run) for name, run in runs.items()}
    clean = {policy: loss[run] for run, policy in CLEAN.items()}
    rows = [
        [policy, f"{loss[policy]:.3f}", f"{loss[policy] - loss['natural']:+.3f}"]
        + ([f"{clean[policy]:.3f}", f"{clean[policy] - clean['natural']:+.3f}"] if policy in clean else ["", ""])
        for policy in POLICIES
    ]
    show("\nvalidation loss on the wanted text, nats per token by corpus size")
    header = ("policy", "with hashes", "to natural", "without", "to natural")
    show(table_text(header, rows))
    show("\n" + conclusion(runs, loss, clean))
