"""A seeded sample of documents of bounded size, independent of their order and the number of workers.

A document's priority is the hash of its text with the seed; the sample is the documents of lowest priority that fill
the budget (a bottom-k sketch: Cohen and Kaplan 2007, "Summarizing data using bottom-k sketches"), so samples of parts
of the input can be merged. Only an excerpt of a long document counts, so that a few of them do not fill the sample.
"""

import heapq
from collections.abc import Iterable

import xxhash

EXCERPT_CHARACTERS = 1 << 15
NO_THRESHOLD = 1 << 64


def priority(utf8: bytes, seed: int) -> int:
    """A document's priority, uniform in [0, 2^64)."""
    return xxhash.xxh64_intdigest(utf8, seed)


class DocumentSample:
    """The documents of lowest priority whose excerpts together just reach `budget_bytes`."""

    def __init__(self, budget_bytes: int, threshold: int = NO_THRESHOLD):
        self.budget_bytes = budget_bytes
        self.threshold = threshold  # no document of this priority or more can be in the sample
        self._heap: list[tuple[int, str]] = []  # by negative priority: the next to be dropped comes first
        self._priorities: set[int] = set()  # a repeated text counts once
        self._bytes = 0

    def offer(self, rank: int, text: str) -> None:
        """Adds the document of priority `rank` if that is low enough, and drops those now above the threshold."""
        if rank >= self.threshold or rank in self._priorities:
            return
        self._priorities.add(rank)
        excerpt = text[:EXCERPT_CHARACTERS]
        heapq.heappush(self._heap, (-rank, excerpt))
        self._bytes += len(excerpt)
        while self._bytes - len(self._heap[0][1]) >= self.budget_bytes:
            dropped, excerpt = heapq.heappop(self._heap)
            self._bytes -= len(excerpt)
            self._priorities.remove(-dropped)
            self.threshold = -dropped

    def merge(self, items: Iterable[tuple[int, str]]) -> None:
        """Offers every item of another sample."""
        for rank, text in items:
            self.offer(rank, text)

    def items(self) -> list[tuple[int, str]]:
        """(priority, excerpt) of the sample, in the order of priority."""
        return sorted((-negative, text) for negative, text in self._heap)
