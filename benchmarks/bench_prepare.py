"""How fast does `ado-stream prepare` turn 60 MB of real text into shards, process start included, and what limits it?

    python -m benchmarks prepare [--input FILE ... --domain-key KEY] [--repeats N] [--workers N]

Without --input the text is the Python source of this environment as one .jsonl.zst, cut to 60 MB. Timed are whole
commands, bytes and bpe:8192 in turn, over the megabytes of text that corpus.json counts, beside the least to be done:
one process that decompresses the lines, parses them and encodes the text as UTF-8. Then the import of streaming, which
a worker is spared. Bars: reading, as said, is a twentieth of the processor seconds of a command for bytes, a hundredth
for bpe:8192.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zstandard

from benchmarks.common import (
    bar,
    cpu_seconds,
    median_s,
    python_texts,
    run_ado_stream,
    seconds_in_turn,
    size,
    write_result,
)

TEXT_BYTES = size(60_000_000, 200_000)
LEAST_SHARE = {"bytes": 0.05, size("bpe:8192", "bpe:300"): 0.01}  # reading, of the processor seconds of a whole command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", nargs="+", help="files for prepare, instead of this environment's Python source")
    parser.add_argument("--domain-key")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=size(2, 1))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        inputs = args.input or [str(_python_source(Path(folder) / "python.jsonl.zst"))]
        keyed = ["--domain-key", args.domain_key] if args.domain_key else []
        options = [*inputs, *keyed, "--workers", str(args.workers)]
        payload: dict[str, Any] = {"input": "given files" if args.input else "Python source of the environment"}
        payload["workers"] = args.workers
        payload["prepare"] = _whole_commands(Path(folder), inputs, options, args.repeats)
    payload["import_streaming_s"] = round(_import_s("streaming") - _import_s("ado_stream.prepare.prepare_worker"), 2)
    shares = {tokenizer: payload["prepare"][tokenizer]["share_of_reading"] for tokenizer in LEAST_SHARE}
    held = [bar(f"{each}: reading, of its processor time", shares[each], LEAST_SHARE[each], True) for each in shares]
    write_result("prepare", payload, held)


def _python_source(path: Path) -> Path:
    """TEXT_BYTES of .py files, one document a file."""
    with open(path, "wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as file:
        for text in python_texts(TEXT_BYTES):
            file.write(json.dumps({"text": text}).encode() + b"\n")
    return path


def _read(inputs: Sequence[str]) -> int:
    """Bytes of text in .jsonl.zst or .jsonl files: what every way of preparing them has to do first."""
    num_bytes = 0
    for path in inputs:
        with zstandard.open(path, "rt") if path.endswith(".zst") else open(path) as file:
            num_bytes += sum(len(json.loads(line)["text"].encode()) for line in file)
    return num_bytes


def _whole_commands(folder: Path, inputs: Sequence[str], options: Sequence[str], repeats: int) -> dict[str, Any]:
    """Rates of `prepare` with these options, by tokenizer."""
    outs = {tokenizer: folder / tokenizer.replace(":", "") for tokenizer in LEAST_SHARE}

    def command(tokenizer: str) -> None:
        shutil.rmtree(outs[tokenizer], ignore_errors=True)
        run_ado_stream("prepare", *options, "--tokenizer", tokenizer, "--out", str(outs[tokenizer]), "--json")

    calls = [lambda tokenizer=tokenizer: command(tokenizer) for tokenizer in outs]
    cpu_s = [cpu_seconds(call) for call in calls]  # and the warm-up
    ((reading_s,),) = seconds_in_turn([lambda: _read(inputs)], 1, clock=time.process_time)
    all_seconds = seconds_in_turn(calls, repeats, warmup=0)
    results: dict[str, Any] = {}
    for (tokenizer, out), seconds, cpu in zip(outs.items(), all_seconds, cpu_s, strict=True):
        domains = json.loads((out / "corpus.json").read_bytes())["domains"].values()
        megabytes, middle_s = sum(domain["bytes"] for domain in domains) / 1e6, statistics.median(seconds)
        results[tokenizer] = {
            "text_mb": round(megabytes, 1),
            "median_s": round(middle_s, 2),
            "mb_per_s": round(megabytes / middle_s, 1),
            "best_mb_per_s": round(megabytes / min(seconds), 1),
            "cpu_s": round(cpu, 2),
            "share_of_reading": round(reading_s / cpu, 3),
        }
    results["largest_process_mb"] = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
    return results


def _import_s(module: str) -> float:
    """Median seconds of a process that imports `module` and ends."""
    return median_s(lambda: subprocess.run([sys.executable, "-c", f"import {module}"], check=True), repeats=3)


if __name__ == "__main__":
    main()
