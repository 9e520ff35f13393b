"""Bounds on mixtures: the exact floor and the ceiling hold for any mixture."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import ado_stream as ado
from ado_stream.policy.mixture_bounds import check_floor, lower_to_ceiling, raise_to_floor, reference_clip

TINY = 1e-12  # sums of up to 40 float64 shares, some of them multiplied by one rounded scale


@st.composite
def mixtures(draw):
    num = draw(st.integers(1, 40))
    weight_K = draw(arrays(np.float64, num, elements=st.floats(0.0, 1.0)))
    weight_K[draw(st.integers(0, num - 1))] += 1e-3
    return weight_K / weight_K.sum()


@given(mixtures(), st.floats(0.0, 1.0))
def test_the_floor_is_exact_and_keeps_proportions_above_it(share_K, part):
    floor = part / len(share_K)
    raised_K = raise_to_floor(share_K, floor)
    assert raised_K.min() >= min(floor, 1.0 / len(share_K))  # when K d = 1, 1 / K is what is left of d
    assert abs(raised_K.sum() - 1.0) < TINY
    above_K = raised_K > floor + TINY  # what lies above by rounding alone says nothing of proportions
    if above_K.any():
        scale = raised_K[above_K].sum() / share_K[above_K].sum()
        np.testing.assert_allclose(raised_K[above_K], scale * share_K[above_K], rtol=1e-9)
        assert (share_K[~above_K] * scale <= floor + TINY).all()  # the others would be at or under the floor


@given(mixtures(), st.floats(0.0, 1.0))
def test_a_mixture_above_the_floor_is_unchanged_to_the_bit(share_K, part):
    floor = 0.999 * part / len(share_K)
    once_K = raise_to_floor(share_K, floor)
    assert raise_to_floor(once_K, floor) is once_K


@given(mixtures(), st.data())
def test_the_ceiling_is_exact_and_keeps_proportions_below_it(share_K, data):
    num = len(share_K)
    ceiling_K = data.draw(arrays(np.float64, num, elements=st.floats(0.01, 1.0)))
    if ceiling_K.sum() < 1.0:
        ceiling_K *= 1.1 / ceiling_K.sum()
    lowered_K = lower_to_ceiling(share_K, ceiling_K)
    assert (lowered_K <= ceiling_K).all()
    assert abs(lowered_K.sum() - 1.0) < TINY
    free_K = (lowered_K < ceiling_K) & (share_K > 1e-300)  # below, a float64 has too few digits for a ratio
    if free_K.any() and share_K[lowered_K < ceiling_K].sum() > 1e-9:
        ratio_K = lowered_K[free_K] / share_K[free_K]
        np.testing.assert_allclose(ratio_K, ratio_K[0], rtol=1e-6)


def test_ceilings_that_sum_below_one_give_the_mixture_in_proportion():
    share_K, ceiling_K = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.1, 0.1])
    np.testing.assert_allclose(lower_to_ceiling(share_K, ceiling_K), [0.5, 0.25, 0.25], rtol=1e-15)


def test_excess_goes_to_domains_without_a_share_when_no_other_is_left():
    np.testing.assert_allclose(
        lower_to_ceiling(np.array([1.0, 0.0, 0.0]), np.array([0.4, 0.9, 0.3])), [0.4, 0.45, 0.15]
    )


def test_the_reference_clip_ends_below_its_floor_where_ours_does_not():
    """Why there are two: the reference divides by the sum after raising."""
    share_K = np.array([0.985, 0.01, 0.005])
    expected_K = np.array([0.985, 0.01, 0.01]) / 1.005
    np.testing.assert_allclose(reference_clip(share_K, 0.01), expected_K, rtol=1e-15)
    assert reference_clip(share_K, 0.01).min() < 0.01
    assert raise_to_floor(share_K, 0.01).min() == 0.01


@pytest.mark.parametrize(("floor", "num", "at_most"), [(0.1, 22, "0.045"), (0.01, 1000, "0.001"), (0.5, 3, "0.33")])
def test_an_impossible_floor_is_refused_with_the_greatest_possible(floor, num, at_most):
    with pytest.raises(ado.ConfigError, match=rf"{floor} x {num} = {floor * num:g} > 1; at most {at_most}\."):
        check_floor(floor, num)
    assert check_floor(float(at_most), num) == float(at_most)


@pytest.mark.parametrize("floor", [-0.1, float("nan")])
def test_a_floor_below_zero_is_refused(floor):
    with pytest.raises(ado.ConfigError, match="0 or more"):
        check_floor(floor, 3)


def test_a_floor_of_exactly_one_kth_is_uniform():
    np.testing.assert_array_equal(raise_to_floor(np.array([0.9, 0.05, 0.05, 0.0]), 0.25), np.full(4, 0.25))


def test_the_excess_goes_to_the_tiniest_shares_without_overflow():
    for tiny in (2e-311, 5e-324):
        lowered_K = lower_to_ceiling(np.array([1.0, tiny, tiny]), 0.5)
        np.testing.assert_array_equal(lowered_K, [0.5, 0.25, 0.25])
