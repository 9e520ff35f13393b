"""Runs the sections of the kernel benchmark, most valuable first, within the time budget."""

import argparse
import sys
import time
import traceback
from datetime import UTC, datetime

import torch

from benchmarks.common import RESULTS, write_result
from benchmarks.kernels import checks, elementwise, harness, loss, others, plots, rope, tune

SECTIONS = {
    "device": harness.measure_ceilings,
    "checks": checks.run_checks,
    "rms_norm": elementwise.run_rms_norm,
    "swiglu": elementwise.run_swiglu,
    "rms_norm_rope": rope.run_rms_norm_rope,
    "linear_cross_entropy": loss.run_linear_cross_entropy,
    "fit": others.run_fit,
    "overhead": others.run_overhead,
    "sweep": others.run_sweep,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small shapes and two repeats; the figures mean nothing")
    parser.add_argument("--budget-s", type=float, default=480.0, help="start no case after this many seconds")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), help="sections to run after 'device'")
    parser.add_argument("--tune", action="store_true", help="only choose launches for this GPU and write the table")
    args = parser.parse_args()
    if not torch.cuda.is_available() and (args.tune or not args.smoke):
        parser.error("no CUDA GPU: only --smoke runs here (CPU figures: benchmarks.bench_linear_cross_entropy)")
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench = harness.Bench(device, args.smoke, time.monotonic() + args.budget_s)
    if args.tune:
        tune.run_tune(bench)
        return 0
    failed = []
    for name, run in SECTIONS.items():
        if args.only and name not in ("device", *args.only):
            continue
        if bench.out_of_time():
            bench.emit(name, "section", skipped="out of time")
            continue
        try:
            run(bench)
        except Exception:  # noqa: BLE001 - later sections must still run; the exit code tells
            failed.append(name)
            bench.emit(name, "section", failed=traceback.format_exc()[-1500:])
    _write(bench, failed)
    return 1 if failed else 0


def _write(bench: harness.Bench, failed: list[str]) -> None:
    card = torch.cuda.get_device_name().replace(" ", "-") if bench.on_gpu else "cpu"
    kind = "-smoke" if bench.smoke else ""
    name = f"kernels-{card}-{datetime.now(UTC):%Y-%m-%d}{kind}"
    note = "Smoke run: proves the script; its figures mean nothing." if bench.smoke else ""
    if not bench.on_gpu:
        note += " The device is a CPU: no figure here is a GPU's."
    payload = {"device": bench.device.type, "note": note.strip(), "failed_sections": failed, "records": bench.records}
    write_result(name, payload)
    for path in plots.draw(bench.records, RESULTS / name):
        print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
