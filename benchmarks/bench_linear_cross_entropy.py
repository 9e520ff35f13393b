"""Is linear_cross_entropy on a CPU as fast as F.cross_entropy on full logits, in a quarter of its memory?

    python -m benchmarks.bench_linear_cross_entropy [--repeats 3]

Forward and backward, float32, all cores. Times are taken in turn in one process. Peak memory is what a process of its
own adds to its resident set during the call, inputs not counted (VmHWM, reset before); both include both gradients.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from ado_kernels import linear_cross_entropy
from benchmarks.common import seconds_in_turn, write_result

SHAPES = ((4096, 4096, 128), (2048, 50304, 128), (4096, 50304, 768))  # N, V, H
NUM_DOMAINS = 22


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak", nargs=4, metavar=("WHICH", "N", "V", "H"), help="print one process's peak and exit")
    args = parser.parse_args()
    if args.peak:
        print(json.dumps(_added_bytes(args.peak[0], *map(int, args.peak[1:]))))
        return
    write_result("linear_cross_entropy_cpu", {"cases": [_case(*shape, args.repeats) for shape in SHAPES]})


def _case(num_rows: int, vocabulary: int, width: int, repeats: int) -> dict:
    calls = _calls(num_rows, vocabulary, width)
    seconds = dict(zip(calls, map(statistics.median, seconds_in_turn(list(calls.values()), repeats)), strict=True))
    peaks = {which: _peak_in_own_process(which, num_rows, vocabulary, width) for which in calls}
    return {
        "N": num_rows,
        "V": vocabulary,
        "H": width,
        "seconds": seconds,
        "peak_added_bytes": peaks,
        "time_ratio": seconds["ours"] / seconds["torch"],
        "memory_ratio": peaks["ours"] / peaks["torch"],
    }


def _calls(num_rows: int, vocabulary: int, width: int) -> dict:
    torch.manual_seed(0)
    hidden = torch.randn(num_rows, width, requires_grad=True)
    weight = (torch.randn(vocabulary, width) * 0.02).requires_grad_()
    targets, ids = torch.randint(0, vocabulary, (num_rows,)), torch.randint(0, NUM_DOMAINS, (num_rows,))

    def ours() -> None:
        torch.autograd.grad(linear_cross_entropy(hidden, weight, targets, ids, NUM_DOMAINS)[0], (hidden, weight))

    def plain() -> None:
        torch.autograd.grad(F.cross_entropy(hidden @ weight.t(), targets), (hidden, weight))

    return {"ours": ours, "torch": plain}


def _peak_in_own_process(which: str, *shape: int) -> int:
    command = [sys.executable, "-m", "benchmarks.bench_linear_cross_entropy", "--peak", which, *map(str, shape)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _added_bytes(which: str, num_rows: int, vocabulary: int, width: int) -> int:
    _calls(8, 16, 8)[which]()  # threads, kernels and libraries are loaded before the base line is taken
    call = _calls(num_rows, vocabulary, width)[which]
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    call()
    return _status_bytes("VmHWM") - before


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


if __name__ == "__main__":
    main()
