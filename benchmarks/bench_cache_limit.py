"""What does the bookkeeping of a limited cache cost a download, and a step, by the number of cached files?

22 folders of small files, filled to the limit, so that every download also evicts. Prints milliseconds of room made,
accounted for and given to one download (the download itself is an empty file), and of the one scan at the start. Then
steps of a stream that downloads a shard of 2 MB every 16 steps and, with a limit, evicts one, against the same steps
without a limit beside as many files. All times are the processor's, of all threads. Bars: the median at 100,000 files
is at most 1 ms and 3 times that at 1,000, no folder is scanned again, and a step with a limit takes at most 1.1 times
one without.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

import ado_stream as ado
from ado_stream.storage.evict import Evictor
from ado_stream.storage.object_spec import ObjectSpec
from ado_stream.storage.retry import Deadline
from benchmarks.common import bar, write_result
from benchmarks.stream_data import BATCH, write_domains

FOLDERS, DOWNLOADS, FILE_BYTES = 22, 300, 100
SHARD_BYTES, SHARDS, STEPS, ROUNDS = 1 << 21, 64, 960, 3


def bookkeeping_ms(num_files: int) -> dict[str, float]:
    """Milliseconds of the scan, the median and the worst download; scans during them."""
    with tempfile.TemporaryDirectory() as root:
        folders = [Path(root) / f"{number:032x}" for number in range(FOLDERS)]
        evictor = Evictor(num_files // FOLDERS * FOLDERS * FILE_BYTES)
        for folder in folders:
            folder.mkdir()
            for number in range(num_files // FOLDERS):
                (folder / f"shard.{number:06d}.mds").write_bytes(bytes(FILE_BYTES))
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

        scan_ms = download(0)
        os.scandir = counted  # type: ignore[assignment]
        try:
            each_ms = [download(number) for number in range(1, DOWNLOADS)]
        finally:
            os.scandir = scandir
        assert evictor.num_evicted == DOWNLOADS
    return {"first_ms": scan_ms, "median_ms": statistics.median(each_ms), "worst_ms": max(each_ms), "scans": scans}


def step_over_unlimited(remote: Path, name: str, num_files: int) -> float:
    """Processor time of a step with a limit over that of one without, beside `num_files` cached files; median."""
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        for number in range(num_files):
            path = cache / f"{number % FOLDERS:032x}" / f"cached.{number:06d}.mds"
            path.parent.mkdir(exist_ok=True)
            with open(path, "wb") as file:
                file.truncate(SHARD_BYTES)
        seconds = [[_steps_s(remote / name, cache, limited) for limited in (False, True)] for _ in range(ROUNDS)]
    return statistics.median(limited / unlimited for unlimited, limited in seconds)


def _steps_s(remote: Path, cache: Path, limited: bool) -> float:
    """Processor seconds of STEPS steps after the first ones; limited: with room for four shards more than are there."""
    limit = (len(list(cache.glob("*/*.mds"))) + 4) * SHARD_BYTES if limited else None
    domain = ado.Domain(remote.name, str(remote), str(cache))
    dataset = ado.AdaptiveStreamingDataset([domain], BATCH, mixture_lag=None, cache_limit=limit)
    dataset.start(prefetch=0, io_threads=1)
    for _ in range(8):  # the scan of the folders is at the first download
        dataset.next_batch()
    started = time.process_time()
    for _ in range(STEPS):
        dataset.next_batch()
    seconds = time.process_time() - started
    dataset.close()
    evictions = dataset.statistics()["cache"]["evictions"]
    assert evictions > SHARDS // 2 if limited else evictions == 0
    for path in cache.glob("*/shard.*.mds"):
        path.unlink()
    return seconds


def main() -> None:
    with tempfile.TemporaryDirectory() as remote:
        (name,) = write_domains(Path(remote), SHARDS * (SHARD_BYTES // 2060), None, SHARD_BYTES, 1)
        steps = {num_files: step_over_unlimited(Path(remote), name, num_files) for num_files in (10_000, 100_000)}
    by_files = {num_files: bookkeeping_ms(num_files) for num_files in (1_000, 10_000, 100_000)}
    ratio = by_files[100_000]["median_ms"] / by_files[1_000]["median_ms"]
    bars = [
        bar("ms of a download's bookkeeping at 100,000 files", by_files[100_000]["median_ms"], 1),
        bar("a download's bookkeeping at 100,000 files over that at 1,000", ratio, 3),
        bar("folders scanned again", sum(each["scans"] for each in by_files.values()), 0),
        *(bar(f"a step with a limit over one without, {n:,} files", ratio, 1.1) for n, ratio in steps.items()),
    ]
    write_result("cache_limit", {"by_files": by_files, "step_over_unlimited": steps}, bars)


if __name__ == "__main__":
    main()
