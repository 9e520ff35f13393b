"""What every benchmark shares: repeated timing, and a JSON result that says where it was measured.

Machines are shared and noisy: compare alternatives in one run, in turn (A B A B ...), and quote medians and ratios.
A bar is a count, or a ratio to something that is timed in the same run: seconds would fail on the next machine.

A quick run (`python -m benchmarks --quick NAME`) takes every step of a benchmark once, at the smallest size: it proves
that the benchmark runs, and its figures mean nothing. Sizes are `size(full, quick)`; repeats are one here.
"""

import argparse
import json
import multiprocessing
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import sysconfig
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import xxhash

T = TypeVar("T")
Clock = Callable[[], float]

# A quick run forks, which OpenMP's threads do not survive.
QUICK_ENVIRONMENT = {"BENCHMARKS_QUICK": "1", "OMP_NUM_THREADS": "1", "NUMBA_THREADING_LAYER": "workqueue"}
QUICK = "BENCHMARKS_QUICK" in os.environ
PACKAGES = ("torch", "triton", "numpy", "numba", "mosaicml-streaming", "zstandard")


def size(full: T, quick: T) -> T:
    """`full`, or in a quick run `quick`."""
    return quick if QUICK else full


RESULTS = Path(__file__).parents[1] / size("benchmarks/results", "build/benchmarks")


def seconds_in_turn(
    calls: Sequence[Callable[[], Any]], repeats: int = 5, warmup: int = 1, clock: Clock = time.perf_counter
) -> list[list[float]]:
    """Seconds of every call, `repeats` each, taken in turn so that the machine's drift hits all alike.

    clock: time.process_time for processor seconds of all threads, which a busy machine distorts least.
    """
    repeats, warmup = size((repeats, warmup), (1, 0))
    for call in calls:
        for _ in range(warmup):
            call()
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for own, call in zip(seconds, calls, strict=True):
            start = clock()
            call()
            own.append(clock() - start)
    return seconds


def in_own_process(function: Callable[..., T], *args: Any) -> T:
    """`function(*args)` in a fresh interpreter, so that no contestant runs beside another's leftover threads.

    A quick run forks: an interpreter takes seconds to start.
    """
    context = multiprocessing.get_context(size("spawn", "fork"))
    with ProcessPoolExecutor(1, context, initializer=warnings.simplefilter, initargs=("ignore",)) as pool:
        return pool.submit(function, *args).result()


def rounds_in_turn(contestants: Mapping[str, tuple[Any, ...]], rounds: int) -> dict[str, list[Any]]:
    """{name: what each round returned}. A contestant is (function, *arguments), called in a process of its own.

    The function's first argument is the monotonic time at which its process was asked for.
    """
    found: dict[str, list[Any]] = {name: [] for name in contestants}
    for _ in range(size(rounds, 1)):
        for name, (function, *arguments) in contestants.items():
            found[name].append(in_own_process(function, time.monotonic(), *arguments))
    return found


def median_s(call: Callable[[], Any], repeats: int = 5, warmup: int = 1) -> float:
    """Median wall seconds of `call` over `repeats`, after `warmup` calls."""
    return statistics.median(seconds_in_turn([call], repeats, warmup)[0])


def run_ado_stream(*words: str) -> resource.struct_rusage:
    """What the command line used in a process of its own; its output is left out. Raises when it fails."""
    if not (pid := os.fork()):
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            if not QUICK or "RAY_ADDRESS" in os.environ:  # Ray's threads do not survive a fork
                os.execv(sys.executable, [sys.executable, "-m", "ado_stream.cli", *words])
            from ado_stream.cli.main import main

            os._exit(main([*words]))
        finally:
            os._exit(1)
    _, status, used = os.wait4(pid, 0)
    if status:
        raise RuntimeError(f"ado-stream {words[0]} failed; its output is above")
    return used


def cpu_seconds(call: Callable[[], Any]) -> float:
    """Processor seconds, user and system, of the processes that `call` starts: on a busy machine truer than time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    call()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def python_texts(num_bytes: int) -> Iterator[str]:
    """The .py files of this environment up to `num_bytes`, in the order of their paths; no text twice.

    A quick run looks into no folders: there are thousands.
    """
    roots = {sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")}
    seen, total = set(), 0
    for source in sorted({found for root in roots for found in Path(root).glob(size("**/*.py", "*.py"))}):
        text = source.read_text(errors="replace")
        if total < num_bytes and text and (text_hash := xxhash.xxh64_intdigest(text.encode())) not in seen:
            seen.add(text_hash)
            total += len(text.encode())
            yield text


def add_device(parser: argparse.ArgumentParser) -> None:
    """--device cpu or cuda, by default cuda where there is one; cuda without a card is wrong usage."""
    import torch

    has_gpu = torch.cuda.is_available()

    def device(name: str) -> str:
        if name == "cuda" and not has_gpu:
            raise argparse.ArgumentTypeError("no CUDA GPU here; --device cpu runs everywhere")
        return name

    parser.add_argument("--device", choices=["cpu", "cuda"], type=device, default="cuda" if has_gpu else "cpu")


def machine() -> dict[str, Any]:
    """Processor, cores, card, versions and commit: what a figure depends on."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "card": _card(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def bar(what: str, measured: float, limit: float, at_least: bool = False) -> dict[str, Any]:
    """One bar and whether it holds: at most the limit, or at least."""
    holds = bool(measured >= limit if at_least else measured <= limit)
    return {"what": what, "measured": measured, "bar": limit, "pass": holds}


def write_result(name: str, payload: dict[str, Any], bars: Sequence[dict[str, Any]] = ()) -> Path:
    """Prints `payload` and writes it with `machine()` to benchmarks/results/NAME.json; a line for every bar last."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    payload = {**payload, "bars": list(bars)} if bars else payload
    path.write_text(json.dumps({"name": name, "machine": machine(), **payload}, indent=1) + "\n")
    print(json.dumps(payload, indent=1))
    print(f"written to {path}", file=sys.stderr)
    for each in bars:
        print(f"{'pass' if each['pass'] else 'FAIL'}  {each['what']}: {each['measured']:.4g} (bar {each['bar']:g})")
    return path


def _processor() -> str:
    model = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return model[1].strip() if model else platform.machine()


def _card() -> str | None:
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "-C", str(RESULTS.parent), "rev-parse", "--short", "HEAD"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.stdout.strip() or None
