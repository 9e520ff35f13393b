"""Kills `prepare` at its n-th change of the disk, for every n, and lets it go on: each end must be the same.

Run by test_prepare_resume.py: `killed_prepare.py INPUT FOLDER PACKING`. Each attempt is a fork, so that hundreds of
kills cost seconds; the process has one thread until then. Prints a JSON list of [events before the kill, hash of the
corpus].
"""

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from ado_stream.corpus import bpe
from ado_stream.prepare import documents, line_blocks, packing
from ado_stream.prepare.coordinator import prepare
from ado_stream.prepare.prepare_config import PrepareConfig
from ado_stream.prepare.spool import Spool


def _config(source: str, out: Path, how: str) -> PrepareConfig:
    return PrepareConfig(
        (source,),
        str(out),
        seq_len=32,
        domain_key="meta.pile_set_name",
        val_frac=0.2,
        tokenizer="bpe:300",
        shard_bytes=1 << 13,
        workers=1,
        packing=how,
    )


def _dying(action: Callable, countdown: list[int]) -> Callable:
    """`action`, before which the process is killed when the count is through."""

    def counted(*arguments, **options):
        countdown[0] -= 1
        if countdown[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return action(*arguments, **options)

    return counted


def _attempt(source: str, out: Path, how: str, num_events: int | None) -> bool:
    """Whether a forked run came to its end; it is killed before the disk changes for the `num_events`-th time."""
    child = os.fork()
    if child == 0:
        if num_events is not None:
            countdown = [num_events]
            for owner, name in (
                (os, "replace"),
                (os, "truncate"),
                (Path, "unlink"),
                (Spool, "append"),
                (Spool, "flush"),
                (shutil, "rmtree"),
            ):
                setattr(owner, name, _dying(getattr(owner, name), countdown))
        try:
            prepare(_config(source, out, how))
        except BaseException as error:
            print(type(error), error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _hash(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        total.update(str(path.relative_to(folder)).encode())
        total.update(path.read_bytes() if path.is_file() else b"")
    return total.hexdigest()


def main(source: str, folder: str, how: str) -> None:
    assert bpe.END_TOKEN  # imported here once, not in every fork
    # what is written outlives a kill; these are for a power cut
    os.fsync = packing.sync_file_system = lambda _: None
    documents.PIECE_BYTES = 20_000
    line_blocks._READ_BYTES = 10_000
    packing._COMMIT_EVERY_S = 0.0
    ends = []
    for num_events in [None, *range(100_000)]:
        out = Path(folder) / "out"
        done = _attempt(source, out, how, num_events)
        if not done and not _attempt(source, out, how, None):
            raise SystemExit(f"the run after a kill at event {num_events} did not finish")
        ends.append([num_events, _hash(out)])
        shutil.rmtree(out)
        if done and num_events is not None:
            break
    print(json.dumps(ends))


if __name__ == "__main__":
    main(*sys.argv[1:])
