"""A training run of which each rank keeps a ledger: FOLDER/ledger.RANK, a line for each row that it draws.

usage: python -m tests.train.ledgered SETTINGS.json FOLDER [orphans]     (alone or under torchrun)
A line: step, slot, domain, crc32 of the row's tokens, crc32 of the mixture's bytes. FOLDER/pid.RANK holds the process.
orphans: the kernel is not asked to end the rank with its launcher.
"""

import json
import os
import sys
import time
import zlib
from pathlib import Path

from ado_stream.loader import AdaptiveLoader
from ado_stream.train import distributed
from tests.train.micro import train_micro

SECONDS_A_STEP = 0.02  # so that faults meet a run that is under way

Ledger = dict[tuple[int, int], str]  # (step, slot) -> domain and checksums


def main(settings: str, folder: str, *flags: str) -> None:
    """Trains as SETTINGS.json says, from the newest checkpoint on."""
    if "orphans" in flags:
        distributed._die_with_the_launcher = lambda: None
    rank = int(os.environ.get("RANK", 0))
    _note_rows(Path(folder) / f"ledger.{rank}", rank)
    (Path(folder) / f"pid.{rank}").write_text(str(os.getpid()))
    train_micro(json.loads(Path(settings).read_text()))


def read_ledger(folder: Path) -> Ledger:
    """The union over ranks and attempts; fails where a row that was drawn again was another one."""
    found: Ledger = {}
    for path in folder.glob("ledger.*"):
        for line in path.read_text().splitlines():
            step, slot, row = line.split(" ", 2)
            key = (int(step), int(slot))
            assert found.setdefault(key, row) == row, f"{path.name}: step {step}, slot {slot}"
    return found


def last_step(folder: Path, rank: int) -> int:
    """The last step that a rank has drawn; -1 before the first."""
    path = folder / f"ledger.{rank}"
    lines = path.read_text().splitlines() if path.exists() else []
    return int(lines[-1].split()[0]) if lines else -1


def _note_rows(path: Path, rank: int) -> None:
    file = open(path, "ab", buffering=0)  # noqa: SIM115 - until the process is killed
    following = AdaptiveLoader._next

    def noted(self):
        time.sleep(SECONDS_A_STEP)
        batch = following(self)
        rows = zip(batch["domain"].tolist(), batch["tokens"].numpy(), strict=True)
        mixture = zlib.crc32(self.mixture.tobytes())
        first = rank * len(batch["domain"])
        lines = [
            f"{batch['step']} {first + slot} {domain} {zlib.crc32(tokens.tobytes())} {mixture}\n"
            for slot, (domain, tokens) in enumerate(rows)
        ]
        file.write("".join(lines).encode())
        return batch

    AdaptiveLoader._next = noted


if __name__ == "__main__":
    main(*sys.argv[1:])
