"""Is linear_cross_entropy on a CPU as fast as F.cross_entropy on full logits, in a quarter of its memory?

Forward and backward, float32, all cores. Prints seconds, taken in turn in one process, and peak memory: what a process
of its own adds to its resident set during the call, inputs not counted (VmHWM, reset before), with both gradients.
Bars, at N 4096, V 50304, H 768: time and a quarter of the memory of F.cross_entropy.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ado_kernels import linear_cross_entropy
from benchmarks.common import bar, in_own_process, seconds_in_turn, size, write_result

SHAPES = size(((4096, 4096, 128), (2048, 50304, 128), (4096, 50304, 768)), ((64, 512, 8),))  # N, V, H
NUM_DOMAINS, REPEATS = 22, 3


def main() -> None:
    cases = [_case(*shape) for shape in SHAPES]
    held = [bar("time over torch's", cases[-1]["time_ratio"], 1.0)]
    held.append(bar("memory over torch's", cases[-1]["memory_ratio"], 0.25))
    write_result("linear_cross_entropy_cpu", {"cases": cases}, held)


def _case(num_rows: int, vocabulary: int, width: int) -> dict[str, Any]:
    calls = _calls(num_rows, vocabulary, width)
    seconds = dict(zip(calls, map(statistics.median, seconds_in_turn(list(calls.values()), REPEATS)), strict=True))
    peaks = {which: in_own_process(_added_bytes, which, num_rows, vocabulary, width) for which in calls}
    ratios = {"time_ratio": seconds["ours"] / seconds["torch"], "memory_ratio": peaks["ours"] / peaks["torch"]}
    return {"N": num_rows, "V": vocabulary, "H": width, "seconds": seconds, "peak_added_bytes": peaks, **ratios}


def _calls(num_rows: int, vocabulary: int, width: int) -> dict[str, Callable[[], None]]:
    torch.manual_seed(0)
    hidden = torch.randn(num_rows, width, requires_grad=True)
    weight = (torch.randn(vocabulary, width) * 0.02).requires_grad_()
    targets, ids = torch.randint(0, vocabulary, (num_rows,)), torch.randint(0, NUM_DOMAINS, (num_rows,))

    def ours() -> None:
        torch.autograd.grad(linear_cross_entropy(hidden, weight, targets, ids, NUM_DOMAINS)[0], (hidden, weight))

    def plain() -> None:
        torch.autograd.grad(F.cross_entropy(hidden @ weight.t(), targets), (hidden, weight))

    return {"ours": ours, "torch": plain}


def _added_bytes(which: str, num_rows: int, vocabulary: int, width: int) -> int:
    _calls(8, 16, 8)[which]()  # threads, kernels and libraries are loaded before the base line is taken
    call = _calls(num_rows, vocabulary, width)[which]
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    call()
    return _status_bytes("VmHWM") - before


def _status_bytes(key: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


if __name__ == "__main__":
    main()
