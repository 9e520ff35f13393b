"""Unreadable input: an error that names its place, or a count of records and bytes."""

from collections import Counter
from dataclasses import dataclass, field

from ado_stream.errors import DataError

EMPTY = "empty document"
_DAMAGED = "file damaged, its rest left out"


@dataclass
class RecordErrors:
    """Raises for records that cannot be read, or skips them and counts them, and their bytes, by reason."""

    skip: bool
    counts: Counter[str] = field(default_factory=Counter)
    num_bytes: Counter[str] = field(default_factory=Counter)

    def add(self, where: str, reason: str, detail: str, advice: str, num_bytes: int = 0) -> None:
        """Counts the record under `reason`, or raises DataError with all of it."""
        if not self.skip:
            raise DataError(f"{where}: {reason}{detail}.\n  {advice} Or pass --on-error skip to skip such records.")
        self._count(reason, 1, num_bytes)

    def add_damage(self, error: DataError, num_bytes: int, reason: str = _DAMAGED, records: int = 1) -> None:
        """Counts the rest of a damaged file, or raises `error`."""
        if not self.skip:
            raise error
        self._count(reason, records, num_bytes)

    def add_empty(self) -> None:
        """Counts a document without text, which is never an error."""
        self.counts[EMPTY] += 1

    def _count(self, reason: str, records: int, num_bytes: int) -> None:
        self.counts[reason] += records
        if num_bytes:
            self.num_bytes[reason] += num_bytes
