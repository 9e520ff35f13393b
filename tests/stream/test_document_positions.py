"""Where packed documents begin: against a loop over the tokens."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from ado_stream.stream.document_positions import cumulative_lengths, document_positions

ROWS = st.integers(1, 12).flatmap(
    lambda width: st.lists(st.lists(st.integers(0, 2), min_size=width, max_size=width), min_size=1, max_size=4)
)


@given(ROWS)
def test_positions_and_lengths_are_those_of_a_loop(rows: list[list[int]]):
    positions, begins = [], []
    for row in rows:
        place = 0
        for number in range(len(row)):
            place = 0 if number == 0 or row[number - 1] == 0 else place + 1
            if place == 0:
                begins.append(len(positions))
            positions.append(place)
    found = document_positions(torch.tensor(rows), end_token=0)
    assert found.dtype == torch.int64
    assert found.flatten().tolist() == positions
    lengths = cumulative_lengths(found)
    assert lengths.dtype == torch.int32
    assert lengths.tolist() == [*begins, np.size(rows)]
