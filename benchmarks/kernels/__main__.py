"""Runs the sections of the kernel benchmark, most valuable first, within the time budget."""

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime

import torch

from benchmarks.common import RESULTS, write_result
from benchmarks.kernels import (
    bars,
    ceilings,
    checks,
    domain_loss,
    fit,
    linear_cross_entropy,
    overhead,
    plots,
    rms_norm,
    rms_norm_rope,
    summary,
    sweep,
    swiglu,
    tune,
)
from benchmarks.kernels.harness import Bench

SECTIONS: tuple[tuple[str, Callable[[Bench], None]], ...] = (
    ("device", ceilings.run_device),
    ("checks", checks.run_checks),
    ("rms_norm", rms_norm.run_bars),
    ("swiglu", swiglu.run_bars),
    ("linear_cross_entropy", linear_cross_entropy.run_bars),
    ("domain_loss", domain_loss.run_cost),
    ("fit", fit.run_fit),
    ("linear_cross_entropy", linear_cross_entropy.run_rest),
    ("rms_norm", rms_norm.run_rest),
    ("swiglu", swiglu.run_rest),
    ("rms_norm_rope", rms_norm_rope.run_rms_norm_rope),
    ("domain_loss", domain_loss.run_sizes),
    ("overhead", overhead.run_overhead),
    ("sweep", sweep.run_sweep),
)
NAMES = list(dict.fromkeys(name for name, _ in SECTIONS))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small shapes and two repeats; the figures mean nothing")
    parser.add_argument("--budget-s", type=float, default=480.0, help="start no case after this many seconds")
    parser.add_argument("--only", nargs="+", choices=NAMES, help="sections to run after 'device'")
    parser.add_argument("--tune", action="store_true", help="only choose launches for this GPU and write the table")
    args = parser.parse_args()
    if not torch.cuda.is_available() and (args.tune or not args.smoke):
        parser.error("no CUDA GPU: only --smoke runs here (CPU figures: benchmarks.bench_linear_cross_entropy)")
    torch.manual_seed(0)
    bench = _bench(args.smoke, time.monotonic() + args.budget_s)
    if args.tune:
        tune.run_tune(bench)
        return 0
    for name, run in SECTIONS:
        if args.only and name not in ("device", *args.only):
            continue
        if bench.out_of_time():
            bench.emit(name, "section", skipped="out of time")
            continue
        try:
            run(bench)
        except Exception:  # noqa: BLE001 - later sections must still run; the exit code tells
            bench.failed.append(f"{name}: the section broke")
            bench.emit(name, "section", failed=traceback.format_exc()[-1500:])
    _report(bench)
    return 1 if bench.failed else 0


def _bench(smoke: bool, deadline: float) -> Bench:
    if not torch.cuda.is_available():
        # Inductor's C++ takes minutes for what a smoke run shows.
        return Bench(torch.device("cpu"), smoke, deadline, backend="eager")
    torch.cuda.set_stream(torch.cuda.Stream())  # graphs are recorded on the stream of the forward passes
    return Bench(torch.device("cuda"), smoke, deadline)


def _report(bench: Bench) -> None:
    """Writes the records and the bars' verdicts, prints the table, then draws: a picture that fails costs no figure."""
    card = torch.cuda.get_device_name().replace(" ", "-") if bench.on_gpu else "cpu"
    name = f"kernels-{card}-{datetime.now(UTC):%Y-%m-%d}{'-smoke' if bench.smoke else ''}"
    note = "Smoke run: proves the script; its figures mean nothing." if bench.smoke else ""
    if not bench.on_gpu:
        note += " The device is a CPU: no figure here is a GPU's."
    judged = bars.verdicts(bench.records)
    payload = {"device": bench.device.type, "note": note.strip(), "failed": bench.failed, "bars": judged}
    write_result(name, payload | {"records": bench.records})
    print(summary.table(bench.records, judged, bench.failed), flush=True)
    try:
        for path in plots.draw(bench.records, RESULTS / name):
            print(f"written to {path}", file=sys.stderr)
    except Exception as error:  # noqa: BLE001 - matplotlib is absent, say: no reason for another exit code
        print(f"not drawn: {type(error).__name__}: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
