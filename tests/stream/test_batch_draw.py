"""The draw against its definition in plain Python, and its promise |count - B p| < 1."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ado_stream.errors import ConfigError
from ado_stream.stream.batch_draw import advance, draw_domains
from ado_stream.stream.numba_order import uniform
from ado_stream.stream.sample_order import hash_key

weights = st.lists(st.floats(0, 1), min_size=1, max_size=30).filter(lambda w: sum(w) > 1e-6)


def normalised(weight):
    weight = np.array(weight)
    return weight / weight.sum()


@given(weight=weights, slots=st.integers(1, 300), seed=st.integers(0, 2**31), step=st.integers(0, 10**9))
@settings(max_examples=300)
def test_counts_are_within_one_of_the_mixture(weight, slots, seed, step):
    mixture = normalised(weight)
    domain = draw_domains(mixture, slots, seed, step, "systematic")
    counts = np.bincount(domain, minlength=mixture.size)
    assert counts.sum() == slots
    # B p is a rounded product; when it is whole, u may fall on the wrong side of it by that rounding.
    assert (np.abs(counts - slots * mixture) < 1 + 1e-9).all()
    assert (counts[mixture == 0] == 0).all()


@given(weight=weights, slots=st.integers(1, 64), step=st.integers(0, 1000))
def test_counts_are_those_of_points_in_intervals(weight, slots, step):
    mixture = normalised(weight)
    u = uniform(hash_key("draw", 5, step), np.uint64(0))
    edges = np.cumsum(mixture) / mixture.sum()
    points = (u + np.arange(slots)) / slots
    if np.abs(points[:, None] - edges[None]).min() < 1e-12:
        return  # a point on an edge belongs to either side within rounding
    expected = np.bincount(np.searchsorted(edges, points, side="right"), minlength=mixture.size)
    assert np.array_equal(
        np.bincount(draw_domains(mixture, slots, 5, step, "systematic"), minlength=mixture.size), expected
    )


@pytest.mark.parametrize("sampling", ["systematic", "multinomial"])
def test_selection_frequencies_match_the_mixture(sampling):
    """Experiment (c): over many steps each domain gets its share; 5 standard errors of independent draws."""
    mixture = normalised([5, 3, 1, 0.5, 0.05])
    steps, slots = 4000, 16
    counts = sum(np.bincount(draw_domains(mixture, slots, 3, step, sampling), minlength=5) for step in range(steps))
    error = np.sqrt(steps * slots * mixture * (1 - mixture))
    assert (np.abs(counts - steps * slots * mixture) < 5 * error).all()
    if sampling == "multinomial":  # independent: the spread of one step's count is binomial, not below one
        first = [np.count_nonzero(draw_domains(mixture, slots, 3, step, sampling) == 0) for step in range(steps)]
        p = mixture[0]
        assert np.var(first) == pytest.approx(slots * p * (1 - p), rel=0.15)


def test_every_slot_is_as_likely_for_every_domain():
    mixture = normalised([1, 1, 2])
    steps = 4000
    hits = sum((draw_domains(mixture, 8, 3, step, "systematic") == 2).astype(int) for step in range(steps))
    assert (np.abs(hits - steps / 2) < 5 * math.sqrt(steps / 4)).all()


def test_draw_depends_on_seed_and_step_only():
    mixture = normalised([3, 2, 1])
    first = draw_domains(mixture, 64, 1, 7, "systematic")
    assert np.array_equal(first, draw_domains(mixture.copy(), 64, 1, 7, "systematic"))
    assert not np.array_equal(first, draw_domains(mixture, 64, 1, 8, "systematic"))
    assert not np.array_equal(first, draw_domains(mixture, 64, 2, 7, "systematic"))
    with pytest.raises(ConfigError, match="sampling 'random'"):
        draw_domains(mixture, 64, 1, 7, "random")


@given(
    domains=st.lists(st.integers(0, 4), min_size=12, max_size=12),
    lanes=st.sampled_from([1, 2, 3, 4, 6, 12]),
    before=st.integers(0, 100),
)
def test_cursors_move_by_what_was_drawn(domains, lanes, before):
    cursors = np.full((5, lanes), before, np.int64)
    position = advance(np.array(domains, np.int32), cursors)
    expected = np.full((5, lanes), before)
    for slot, domain in enumerate(domains):
        lane = slot // (12 // lanes)
        assert position[slot] == expected[domain, lane]
        expected[domain, lane] += 1
    assert np.array_equal(cursors, expected)
