"""Runs the sections of the kernel benchmark within the time budget."""

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime

import torch

from benchmarks.common import QUICK, write_result
from benchmarks.kernels import domain_loss, fit, linear_cross_entropy, rms_norm, rms_norm_rope, swiglu, table, tune
from benchmarks.kernels.harness import Bench, measure_ceilings

SECTIONS: dict[str, Callable[[Bench], None]] = {
    "device": measure_ceilings,
    "rms_norm": rms_norm.run,
    "swiglu": swiglu.run,
    "linear_cross_entropy": linear_cross_entropy.run,
    "domain_loss": domain_loss.run,
    "fit": fit.run,
    "rms_norm_rope": rms_norm_rope.run,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small shapes and two repeats; the figures mean nothing")
    parser.add_argument("--budget-s", type=float, default=480.0, help="start no case after this many seconds")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="after 'device'")
    parser.add_argument("--tune", action="store_true", help="only choose launches for this GPU and write the table")
    args = parser.parse_args()
    args.smoke |= QUICK and not args.tune
    on_gpu = torch.cuda.is_available()
    if not on_gpu and (args.tune or not args.smoke):
        parser.error("no CUDA GPU: only --smoke runs here (CPU figures: benchmarks.bench_linear_cross_entropy)")
    torch.manual_seed(0)
    if on_gpu:
        torch.cuda.set_stream(torch.cuda.Stream())  # a backward pass on the default stream could not be captured
    # Without a GPU: Inductor's C++ takes minutes for what a smoke run shows.
    device, backend = ("cuda", "inductor") if on_gpu else ("cpu", "eager")
    bench = Bench(torch.device(device), args.smoke, time.monotonic() + args.budget_s, backend)
    if args.tune:
        tune.run_tune(bench)
        return 0
    for name, run in SECTIONS.items():
        if (args.only and name not in ("device", *args.only)) or bench.out_of_time(name, "section"):
            continue
        try:
            run(bench)
        except Exception:  # noqa: BLE001 - later sections must still run; the exit code tells
            bench.failed.append(f"{name}: the section broke")
            bench.emit(name, "section", failed=traceback.format_exc()[-1500:])
    card = torch.cuda.get_device_name().replace(" ", "-") if on_gpu else "cpu"
    suffix, note = ("-smoke", "Smoke run: proves the script; its figures mean nothing.") if args.smoke else ("", "")
    judged = table.verdicts(bench.records)
    payload = {"note": note, "failed": bench.failed, "bars": judged, "records": bench.records}
    write_result(f"kernels-{card}-{datetime.now(UTC):%Y-%m-%d}{suffix}", payload)
    print(table.table(bench.records, judged, bench.failed), flush=True)
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
