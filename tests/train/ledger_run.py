"""A training run in which each rank writes a ledger: FOLDER/ledger.RANK with a line for each row that it reads.

usage: python -m tests.train.ledger_run SETTINGS.json FOLDER [orphans]     (with or without torchrun)
A line: step, slot, domain, crc32 of the row's tokens, crc32 of the mixture's bytes. FOLDER/pid.RANK holds the rank's
process id. orphans: without PR_SET_PDEATHSIG, so that ranks outlive their launcher.
"""

import json
import os
import sys
import time
import zlib
from pathlib import Path

from ado_stream.loader import AdaptiveLoader
from ado_stream.train import distributed
from tests.train.tiny_model import train_tiny

SECONDS_A_STEP = 0.02  # so that faults come while the run is in progress

Ledger = dict[tuple[int, int], str]  # (step, slot) -> domain and checksums


def main(settings: str, folder: str, *flags: str) -> None:
    """Trains with the config in SETTINGS.json, from the newest checkpoint on."""
    if "orphans" in flags:
        distributed._end_with_launcher = lambda: None
    rank = int(os.environ.get("RANK", 0))
    _log_rows(Path(folder) / f"ledger.{rank}", rank)
    (Path(folder) / f"pid.{rank}").write_text(str(os.getpid()))
    train_tiny(json.loads(Path(settings).read_text()))


def read_ledger(folder: Path) -> Ledger:
    """The union over ranks and attempts; fails where a row that was read again differs."""
    ledger: Ledger = {}
    for path in folder.glob("ledger.*"):
        for line in path.read_text().splitlines():
            step, slot, row = line.split(" ", 2)
            key = (int(step), int(slot))
            assert ledger.setdefault(key, row) == row, f"{path.name}: step {step}, slot {slot}"
    return ledger


def last_step(folder: Path, rank: int) -> int:
    """The last step whose rows a rank has read; -1 before the first."""
    path = folder / f"ledger.{rank}"
    lines = path.read_text().splitlines() if path.exists() else []
    return int(lines[-1].split()[0]) if lines else -1


def _log_rows(path: Path, rank: int) -> None:
    file = open(path, "ab", buffering=0)  # noqa: SIM115 - until the process is killed
    next_batch = AdaptiveLoader._next

    def next_and_log(self):
        time.sleep(SECONDS_A_STEP)
        batch = next_batch(self)
        rows = zip(batch["domain"].tolist(), batch["tokens"].numpy(), strict=True)
        mixture = zlib.crc32(self.mixture.tobytes())
        first = rank * len(batch["domain"])
        lines = [
            f"{batch['step']} {first + slot} {domain} {zlib.crc32(tokens.tobytes())} {mixture}\n"
            for slot, (domain, tokens) in enumerate(rows)
        ]
        file.write("".join(lines).encode())
        return batch

    AdaptiveLoader._next = next_and_log


if __name__ == "__main__":
    main(*sys.argv[1:])
