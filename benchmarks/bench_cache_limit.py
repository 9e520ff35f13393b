"""What does the bookkeeping of a limited cache cost a download, and a step, by the number of cached files?

22 folders of small files with their locks, filled to the limit, so that every download also evicts. Prints milliseconds
of room made, accounted for and given to one download (the download itself is a small file), and of the one scan at the
start. Then steps of a stream that downloads a shard of 2 MB every 16 steps and evicts one, over the same less the time
in `Evictor.reserve`, which is what a limit costs, beside as many files. All times are the processor's, of all threads.
Bars: the median at 100,000 files is at most 50 times what it takes to write such a file and remove it (1 ms, at 20 us),
and 1.5 times the median at 1,000; no folder is scanned again; a step with a limit takes at most 1.1 times one without.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ado_stream as ado
from ado_stream.storage.evict import Evictor
from ado_stream.storage.object_locks import lock_path
from ado_stream.storage.object_spec import ObjectSpec
from ado_stream.storage.retry import Deadline
from benchmarks.common import bar, seconds_in_turn, size, write_result
from benchmarks.stream_data import BATCH, SAMPLE_BYTES, write_domains

FOLDERS, DOWNLOADS, FILE_BYTES = 22, size(300, 10), 100
SHARD_BYTES, SHARDS, STEPS, ROUNDS = size((1 << 21, 64, 960, 3), (1 << 12, 16, 20, 1))
FEW, SOME, MANY = size((1_000, 10_000, 100_000), (22, 44, 66))  # cached files


def bookkeeping_ms(num_files: int) -> dict[str, float]:
    """Milliseconds of the scan, the median and the worst download, and of a file; scans during them."""
    with tempfile.TemporaryDirectory() as root:
        folders = [Path(root) / f"{number:032x}" for number in range(FOLDERS)]
        evictor = Evictor(num_files // FOLDERS * FOLDERS * FILE_BYTES)
        for folder in folders:
            folder.mkdir()
            for number in range(num_files // FOLDERS):
                write_cached(folder / f"shard.{number:06d}.mds", FILE_BYTES)
        for folder in folders:
            evictor.add_folder(folder)
        scans = 0
        scandir = os.scandir

        def counted(path):
            nonlocal scans
            scans += 1
            return scandir(path)

        def download(number: int) -> float:
            path = folders[number % FOLDERS] / f"new.{number:06d}.mds"
            spec = ObjectSpec("shard", "s3://b/x", path, path, raw_bytes=FILE_BYTES)
            started = time.process_time()
            with evictor.reserve(spec, Deadline(10)):
                made_at = time.process_time()
                path.write_bytes(bytes(FILE_BYTES))
                made_s = time.process_time() - made_at
            return (time.process_time() - started - made_s) * 1e3

        def one_file() -> None:
            folders[0].joinpath("other").write_bytes(bytes(FILE_BYTES))
            folders[0].joinpath("other").unlink()

        scan_ms = download(0)
        os.scandir = counted  # type: ignore[assignment]
        try:
            each_ms = [download(number) for number in range(1, DOWNLOADS)]
        finally:
            os.scandir = scandir
        assert evictor.num_evicted == DOWNLOADS
        file_ms = statistics.median(seconds_in_turn([one_file], DOWNLOADS, clock=time.process_time)[0]) * 1e3
    median_ms = statistics.median(each_ms)
    return {"first_ms": scan_ms, "median_ms": median_ms, "worst_ms": max(each_ms), "file_ms": file_ms, "scans": scans}


def write_cached(path: Path, num_bytes: int) -> None:
    """A file and its lock, as a download leaves them."""
    with open(path, "wb") as file:
        file.truncate(num_bytes)
    lock = lock_path(path)
    lock.parent.mkdir(exist_ok=True, mode=0o700)
    lock.touch(0o600)


def step_over_unlimited(shards: Path, num_files: int) -> float:
    """Processor time of a step over the same less what its limit costs, beside `num_files` cached files; median."""
    with tempfile.TemporaryDirectory() as root:
        cache = Path(root)
        for number in range(num_files):
            folder = cache / f"{number % FOLDERS:032x}"
            folder.mkdir(exist_ok=True)
            write_cached(folder / f"cached.{number:06d}.mds", SHARD_BYTES)
        return statistics.median(_steps_ratio(shards, cache) for _ in range(ROUNDS))


def _steps_ratio(remote: Path, cache: Path) -> float:
    """The ratio over STEPS steps after the first ones, with room for four shards more than are there.

    Both are of one run: two runs, one without a limit, differ by more than what is to be seen.
    """
    limit_s = 0.0
    room = Evictor.reserve

    @contextmanager
    def timed_room(self: Evictor, spec: ObjectSpec, deadline: Deadline) -> Iterator[None]:
        nonlocal limit_s
        made = room(self, spec, deadline)
        started = time.thread_time()
        made.__enter__()
        limit_s += time.thread_time() - started
        yield
        started = time.thread_time()
        made.__exit__(None, None, None)
        limit_s += time.thread_time() - started

    domain = ado.Domain(remote.name, str(remote), str(cache))
    limit_bytes = (len(list(cache.glob("*/*.mds"))) + 4) * SHARD_BYTES
    dataset = ado.AdaptiveStreamingDataset([domain], BATCH, mixture_lag=None, cache_limit=limit_bytes)
    Evictor.reserve = timed_room  # type: ignore[method-assign]
    try:
        dataset.start(prefetch=0, io_threads=1)
        for _ in range(8):  # the scan of the folders is at the first download
            dataset.next_batch()
        started, limit_s = time.process_time(), 0.0
        for _ in range(STEPS):
            dataset.next_batch()
        seconds = time.process_time() - started
        dataset.close()
    finally:
        Evictor.reserve = room  # type: ignore[method-assign]
    assert dataset.statistics()["cache"]["evictions"] > SHARDS // 2
    for path in cache.glob("*/shard.*.mds"):
        path.unlink()
    return seconds / (seconds - limit_s)


def main() -> None:
    with tempfile.TemporaryDirectory() as remote:
        (name,) = write_domains(Path(remote), SHARDS * (SHARD_BYTES // SAMPLE_BYTES), None, SHARD_BYTES, 1)
        steps = {num_files: step_over_unlimited(Path(remote) / name, num_files) for num_files in (FEW, SOME)}
    by_files = {num_files: bookkeeping_ms(num_files) for num_files in (FEW, MANY)}
    many, few = by_files[MANY], by_files[FEW]
    bars = [
        bar("a download's bookkeeping at 100,000 files, in small files", many["median_ms"] / many["file_ms"], 50),
        bar("the same over that at 1,000 files", many["median_ms"] / few["median_ms"], 1.5),
        bar("folders scanned again", sum(each["scans"] for each in by_files.values()), 0),
        *(bar(f"a step with a limit over one without, {n:,} files", ratio, 1.1) for n, ratio in steps.items()),
    ]
    write_result("cache_limit", {"by_files": by_files, "step_over_unlimited": steps}, bars)


if __name__ == "__main__":
    main()
