"""What does `ado-stream prepare` pay for a domain, and for a document as long as it takes?

The same 40 MB of text as JSON lines, for bytes, with 10 and with 1,000 values of the domain key in turn: seconds and
processor seconds of the whole command, on the disk and on a file system in memory: a disk's takes 0.03 to 0.3 ms for a
new file or folder, by what it has gone through, and a domain has five. Then one document of 125 MB between two short
ones: the largest resident set of any of its processes, less that of the command for short documents alone. Bars: in
memory 1,000 domains take at most 1.5 times the time of 10 and at most 1.5 times the processor seconds; a long document
takes at most 7 bytes a byte.
"""

import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import bar, run_ado_stream, size, write_result

DOCUMENTS, WORDS, ROUNDS = size((20_000, 330, 3), (300, 20, 1))
MEMORY = "/dev/shm"
FEW, MANY = size((10, 1000), (2, 5))
LONG_BYTES, WORKERS = size((125_000_000, 2), (100_000, 1))
MOST, MOST_BYTES = 1.5, 7.0


def write_text(folder: Path) -> None:
    """FEW.jsonl and MANY.jsonl: the same documents as JSON lines, dealt out to that many domains."""
    generator = np.random.default_rng(0)
    words = ["".join(map(chr, generator.integers(97, 123, length))) for length in generator.integers(2, 10, 5000)]
    texts = [" ".join(words[number] for number in numbers) for numbers in generator.integers(0, 5000, (500, WORDS))]
    for num_domains in (FEW, MANY):
        with open(folder / f"{num_domains}.jsonl", "w") as file:
            for number, domain in enumerate(generator.integers(0, num_domains, DOCUMENTS)):
                file.write(json.dumps({"text": texts[number % 500], "domain": f"domain{domain}"}) + "\n")


def cost(path: Path, out: Path, *options: str) -> dict[str, float]:
    """Seconds, processor seconds and megabytes of the largest process of one command."""
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    workers = ("--workers", str(WORKERS))
    used = run_ado_stream("prepare", str(path), "--out", str(out), *options, "--tokenizer", "bytes", *workers, "--json")
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "cpu_s": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss / 1024}


def bytes_a_byte(folder: Path) -> float:
    """Bytes of memory that a byte of one long document takes in the process that takes most."""
    peak_mb = {}
    for name, longest in (("short", 1000), ("long", LONG_BYTES)):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": "a b " * (n // 4)}) + "\n" for n in (1000, longest, 1000)))
        peak_mb[name] = cost(path, folder / f"{name}-out")["peak_mb"]
    return (peak_mb["long"] - peak_mb["short"]) * 2**20 / LONG_BYTES


def ratios(text: Path, folder: Path) -> dict[str, float]:
    """What MANY domains take over what FEW take, in `folder`, both in turn."""
    found: dict[str, list[float]] = {"seconds": [], "cpu_s": []}
    for _ in range(ROUNDS):
        few, many = (cost(text / f"{number}.jsonl", folder / "out", "--domain-key", "domain") for number in (FEW, MANY))
        for key, values in found.items():
            values.append(many[key] / few[key])
    return {key: statistics.median(values) for key, values in found.items()}


def main() -> None:
    with tempfile.TemporaryDirectory() as disk, tempfile.TemporaryDirectory(dir=MEMORY) as memory:
        write_text(Path(disk))
        found = {"disk": ratios(Path(disk), Path(disk)), "memory": ratios(Path(disk), Path(memory))}
        long = bytes_a_byte(Path(disk))
    bars = [
        bar("time of 1,000 domains over that of 10", found["memory"]["seconds"], MOST),
        bar("processor time of 1,000 domains over that of 10", found["memory"]["cpu_s"], MOST),
        bar("bytes of memory a byte of a document of 125 MB", long, MOST_BYTES),
    ]
    write_result("prepare_domains", {"1,000 domains over 10": found}, bars)


if __name__ == "__main__":
    main()
