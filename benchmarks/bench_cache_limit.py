"""What does the bookkeeping of a limited cache cost a download, by the number of cached files?

22 folders of small files, filled to the limit, so that every download also evicts. Prints milliseconds of room made,
accounted for and given to one download (the download itself is an empty file), and of the one scan at the start. Bars:
the median at 100,000 files is at most 3 times that at 1,000, and no folder is scanned again.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

from ado_stream.storage.evict import Evictor
from ado_stream.storage.object_spec import ObjectSpec
from ado_stream.storage.retry import Deadline
from benchmarks.common import bar, write_result

FOLDERS, DOWNLOADS, FILE_BYTES = 22, 300, 100


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
            started = time.perf_counter()
            with evictor.room(spec, Deadline(10)):
                made_at = time.perf_counter()
                path.write_bytes(bytes(FILE_BYTES))
                made_s = time.perf_counter() - made_at
            return (time.perf_counter() - started - made_s) * 1e3

        scan_ms = download(0)
        os.scandir = counted  # type: ignore[assignment]
        try:
            each_ms = [download(number) for number in range(1, DOWNLOADS)]
        finally:
            os.scandir = scandir
        assert evictor.num_evicted == DOWNLOADS
    return {"first_ms": scan_ms, "median_ms": statistics.median(each_ms), "worst_ms": max(each_ms), "scans": scans}


def main() -> None:
    by_files = {num_files: bookkeeping_ms(num_files) for num_files in (1_000, 10_000, 100_000)}
    ratio = by_files[100_000]["median_ms"] / by_files[1_000]["median_ms"]
    bars = [
        bar("a download's bookkeeping at 100,000 files over that at 1,000", ratio, 3),
        bar("folders scanned again", sum(each["scans"] for each in by_files.values()), 0),
    ]
    write_result("cache_limit", {"by_files": by_files}, bars)


if __name__ == "__main__":
    main()
