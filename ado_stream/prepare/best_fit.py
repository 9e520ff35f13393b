"""Whole documents packed into samples, where joining would cut most of them (arXiv 2404.10830, section 3).

A document longer than a sample is cut into full samples and a rest; rests and shorter documents go, longest first, each
into the sample with the least room that takes it. What stays free is filled with end tokens. An end token after an end
token is padding, and nothing else is: documents without tokens of their own are left out before, and a rest that is an
end token alone is left out here.
"""

from bisect import bisect_left, insort
from dataclasses import astuple, dataclass

import numpy as np

from ado_stream.value_types import Array


@dataclass(frozen=True)
class PackingCounts:
    """Of a shard, or of several added up."""

    documents: int = 0  # with tokens of their own
    cut: int = 0  # of them
    cut_by_joining: int = 0  # of them, had they been joined
    padding_tokens: int = 0

    def __add__(self, other: "PackingCounts") -> "PackingCounts":
        return PackingCounts(*(ours + theirs for ours, theirs in zip(astuple(self), astuple(other), strict=True)))


def pack_best_fit(tokens: Array, sample_tokens: int, end_id: int, begin_token: int = 0) -> tuple[Array, PackingCounts]:
    """((S, sample_tokens) samples, counts) of documents that each end with `end_id`.

    No document is without tokens of its own. begin_token: how many tokens came before, for what joining would have cut.
    The samples depend on `tokens` alone.
    """
    end_D = np.flatnonzero(tokens == end_id) + 1
    begin_D = np.concatenate([[0], end_D[:-1]])
    full_D, rest_D = np.divmod(end_D - begin_D, sample_tokens)  # samples that a document fills alone, and what is left
    rest_D[rest_D == 1] = 0
    samples = [
        tokens[begin : begin + full * sample_tokens] for begin, full in zip(begin_D, full_D, strict=True) if full
    ]
    bins = _best_fit_decreasing(rest_D, sample_tokens)
    packed = np.full((len(bins), sample_tokens), end_id, tokens.dtype)
    for row, documents in zip(packed, bins, strict=True):
        place = 0
        for document in documents:
            length = rest_D[document]
            row[place : place + length] = tokens[end_D[document] - length : end_D[document]]
            place += length
    samples_NX = np.concatenate([*(each.reshape(-1, sample_tokens) for each in samples), packed])
    first_D, last_D = (begin_token + begin_D) // sample_tokens, (begin_token + end_D - 1) // sample_tokens
    counts = PackingCounts(
        documents=len(end_D),
        cut=int((end_D - begin_D > sample_tokens + 1).sum()),
        cut_by_joining=int((first_D != last_D).sum()),
        padding_tokens=int(samples_NX.size - (full_D * sample_tokens + rest_D).sum()),
    )
    return samples_NX, counts


def _best_fit_decreasing(length_D: Array, capacity: int) -> list[list[int]]:
    """Numbers of the items in each bin; items of length 0 are in none. O(D log capacity), and equal for equal input."""
    bins: list[list[int]] = []
    open_bins: dict[int, list[int]] = {}  # by room
    rooms: list[int] = []  # the keys of `open_bins`, ascending
    for item in np.argsort(-length_D, kind="stable").tolist():
        length = int(length_D[item])
        if not length:
            break
        index = bisect_left(rooms, length)
        if index == len(rooms):
            number, room = len(bins), capacity
            bins.append([])
        else:
            room = rooms[index]
            number = open_bins[room].pop()
            if not open_bins[room]:
                del open_bins[room], rooms[index]
        bins[number].append(item)
        if room > length:
            if room - length not in open_bins:
                open_bins[room - length] = []
                insort(rooms, room - length)
            open_bins[room - length].append(number)
    return bins


def without_empty_documents(tokens: bytes, dtype: str, end_id: int) -> bytes:
    """The `tokens` of whole documents without the end tokens of those that have no others."""
    ids = np.frombuffer(tokens, dtype)
    ends = np.concatenate([[True], ids == end_id])
    empty = ends[:-1] & ends[1:]
    return ids[~empty].tobytes() if empty.any() else tokens
