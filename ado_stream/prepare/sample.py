"""A seeded sample of documents of bounded size, the same whatever the order and the number of readers.

Every document has a priority, the hash of its text with the seed; the sample is those of lowest priority that fill
the budget (a bottom-k sketch: Cohen and Kaplan 2007, "Summarizing data using bottom-k sketches"), so parts taken
anywhere can be merged. Long documents count with their beginning, so that a few of them do not fill the sample.
"""

import heapq
from collections.abc import Iterable

import xxhash

EXCERPT_CHARACTERS = 1 << 15
NO_THRESHOLD = 1 << 64


def priority(utf8: bytes, seed: int) -> int:
    """The document's place in the lottery, uniform in [0, 2^64)."""
    return xxhash.xxh64_intdigest(utf8, seed)


class Sample:
    """The documents of lowest priority whose excerpts together just reach `budget_bytes`."""

    def __init__(self, budget_bytes: int, threshold: int = NO_THRESHOLD):
        self.budget_bytes = budget_bytes
        self.threshold = threshold  # no document of this priority or more can be in the sample
        self._heap: list[tuple[int, str]] = []  # by negative priority: the first to go comes first
        self._ranks: set[int] = set()  # a text that comes again does not count again
        self._bytes = 0

    def offer(self, rank: int, text: str) -> None:
        """Takes the document into the sample if its priority is low enough, and drops what no longer belongs."""
        if rank >= self.threshold or rank in self._ranks:
            return
        self._ranks.add(rank)
        excerpt = text[:EXCERPT_CHARACTERS]
        heapq.heappush(self._heap, (-rank, excerpt))
        self._bytes += len(excerpt)
        while self._bytes - len(self._heap[0][1]) >= self.budget_bytes:
            dropped, excerpt = heapq.heappop(self._heap)
            self._bytes -= len(excerpt)
            self._ranks.remove(-dropped)
            self.threshold = -dropped

    def merge(self, items: Iterable[tuple[int, str]]) -> None:
        """Offers every item of another sample."""
        for rank, text in items:
            self.offer(rank, text)

    def items(self) -> list[tuple[int, str]]:
        """(priority, excerpt) of the sample, in the order of priority."""
        return sorted((-negative, text) for negative, text in self._heap)
