"""Each guard keeps its bound, and the repetition guard its epochs over whole runs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ado_stream as ado
from ado_stream.policy.state_codec import seal
from ado_stream.simulate.closed_loop import systematic_counts

PRIOR = {"web": 0.7, "code": 0.2, "math": 0.1}
ABSENT = np.full(3, np.nan)


def _drive(policy, steps, batch=64, lag=0, seed=0):
    """(steps, K) counts drawn from the policy's own mixtures, `lag` steps late."""
    generator = np.random.default_rng(seed)
    said, counts = [policy.mixture] * (lag + 1), []
    for step in range(steps):
        counts.append(systematic_counts(said[step], batch, generator.random()))
        said.append(policy.update(2.0 + generator.random(len(counts[0])), counts[-1]))
    return np.array(counts)


def test_floor_and_ceiling_bound_the_mixture():
    floor = ado.Floor(ado.make_policy("natural", PRIOR), 0.15)
    np.testing.assert_allclose(floor.mixture, [0.85 * 7 / 9, 0.85 * 2 / 9, 0.15], rtol=1e-15)
    ceiling = ado.Ceiling(ado.make_policy("natural", PRIOR), {"web": 0.4, "code": 1.0, "math": 1.0})
    np.testing.assert_allclose(ceiling.update(ABSENT, [1, 1, 1]), [0.4, 0.4, 0.2], rtol=1e-15)


def test_the_floor_of_a_guard_is_the_one_that_its_mixture_keeps():
    def floored(minimum):
        return ado.Floor(ado.make_policy("natural", PRIOR), minimum)

    assert ado.Floor(floored(0.1), 0.05).floor == ado.Floor(floored(0.05), 0.1).floor == 0.1
    below = ado.Ceiling(floored(0.2), {"web": 1.0, "code": 1.0, "math": 0.05})
    assert below.mixture.min() == below.floor == 0.05
    assert ado.Ceiling(floored(0.2), 0.5).floor == ado.Freeze(floored(0.2)).floor == 0.2


def test_pinned_domains_have_their_share_and_the_others_keep_their_ratio():
    pin = ado.Pin(ado.make_policy("natural", PRIOR), {"math": 0.4})
    np.testing.assert_allclose(pin.mixture, [0.6 * 7 / 9, 0.6 * 2 / 9, 0.4], rtol=1e-15)
    by_number = ado.Pin(ado.make_policy("natural", [7, 2, 1]), {2: 0.4})
    np.testing.assert_allclose(by_number.mixture, pin.mixture, rtol=1e-15)


def test_the_rest_is_shared_evenly_when_the_free_domains_have_no_share():
    inside = ado.make_policy("fixed", PRIOR, weights={"web": 0, "code": 0, "math": 1})
    np.testing.assert_allclose(ado.Pin(inside, {"math": 0.4}).mixture, [0.3, 0.3, 0.4], rtol=1e-15)


def test_freeze_keeps_the_mixture_while_the_wrapped_policy_is_updated():
    freeze = ado.Freeze(ado.make_policy("odm", PRIOR), from_step=3)
    said = [freeze.update([2.0, 3.0, 4.0], [30, 20, 14]) for _ in range(6)]
    inside = ado.make_policy("odm", PRIOR)
    expected = [inside.update([2.0, 3.0, 4.0], [30, 20, 14]) for _ in range(6)]
    np.testing.assert_array_equal(said, [*expected[:3], *[expected[2]] * 3])
    np.testing.assert_array_equal(freeze.policy.mixture, expected[-1])


@pytest.mark.parametrize("lag", [0, 3, 8])
def test_the_frozen_mixture_is_the_one_drawn_at_the_step_named(lag):
    freeze = ado.Freeze(ado.make_policy("odm", PRIOR), from_step=20, mixture_lag=lag)
    said = [freeze.mixture] * (lag + 1) + [freeze.update([2.0, 3.0, 4.0], [30, 20, 14]) for _ in range(30)]
    assert not np.array_equal(said[20], said[19])
    assert all(np.array_equal(later, said[20]) for later in said[20:])


@pytest.mark.parametrize(
    ("saved", "now"),
    [
        (lambda policy: ado.Floor(policy, 0.05), lambda policy: ado.Floor(policy, 0.2)),
        (lambda policy: ado.Ceiling(policy, 0.9), lambda policy: ado.Ceiling(policy, 0.4)),
        (lambda policy: ado.Pin(policy, {"math": 0.5}), lambda policy: ado.Pin(policy, {"math": 0.1})),
    ],
)
def test_a_changed_bound_holds_at_once_after_a_resume(saved, now):
    before, after = saved(ado.make_policy("natural", PRIOR)), now(ado.make_policy("natural", PRIOR))
    before.update(ABSENT, [1, 1, 1])
    expected_K = after.mixture
    after.load_state_dict(before.state_dict())
    np.testing.assert_array_equal(after.mixture, expected_K)
    assert not np.array_equal(after.mixture, before.mixture)


def test_a_repetition_guard_checks_its_state_before_it_changes_anything():
    def make():
        return ado.RepetitionGuard(ado.make_policy("odm", PRIOR), [500, 500, 500], 1000)

    before, policy = make(), make()
    for _ in range(3):
        before.update([2.0, 3.0, 4.0], [30, 20, 14])
    state = {key: value for key, value in before.state_dict().items() if key not in ("version", "crc32")}
    for damage in ({}, {"drawn": None}, {"drawn": "many"}, {"drawn": -1}):
        damaged = {**{key: value for key, value in state.items() if key != "drawn"}, **damage}
        with pytest.raises(ado.ResumeError, match="'drawn'"):
            policy.load_state_dict(seal(damaged))
        assert (policy.step, policy.policy.step) == (0, 0)
    policy.load_state_dict(seal(state))
    assert (policy.step, policy.policy.step) == (3, 3)


@pytest.mark.parametrize("lag", [0, 8])
@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(1, 4000), min_size=2, max_size=6), epochs=st.floats(0.5, 4.0), seed=st.integers(0, 99)
)
def test_no_domain_is_drawn_more_often_than_its_epochs(lag, sizes, epochs, seed):
    """A uniform policy on unequal sizes, one-sample domains included: a short domain is spread to the end."""
    batch, steps = 32, int(0.95 * epochs * sum(sizes)) // 32
    if steps == 0:
        return
    guard = ado.RepetitionGuard(ado.make_policy("uniform", np.ones(len(sizes))), sizes, steps * batch, epochs)
    drawn_K = _drive(guard, steps, batch, lag, seed).sum(axis=0)
    # a draw differs from B p by less than one sample, and lag + 1 of them are out when the last mixture is made
    assert (drawn_K <= epochs * np.array(sizes) + lag + 2).all()


def test_a_short_domain_lasts_to_the_end_of_the_run():
    steps, batch = 400, 64
    guard = ado.RepetitionGuard(
        ado.make_policy("uniform", PRIOR), {"web": 1e6, "code": 1e6, "math": 500}, steps * batch, 2
    )
    count_TK = _drive(guard, steps, batch)
    # half of its 1000 in each half: 200 draws of a share of 2.5 samples, each off by less than 1 (0.5 in the mean)
    assert count_TK[:200, 2].sum() == pytest.approx(500, abs=3 * 0.5 * 200**0.5)
    assert count_TK[:, 2].sum() == pytest.approx(1000, abs=2)
    assert count_TK[:, 0].sum() == pytest.approx(count_TK[:, 1].sum(), abs=5 * 0.5 * (2 * steps) ** 0.5)  # two of them


def test_an_exhausted_domain_gets_no_share():
    guard = ado.RepetitionGuard(ado.make_policy("uniform", PRIOR), {"web": 1000, "code": 1000, "math": 1}, 1000, 1.0)
    mixture_K = guard.update([2.0, 2.0, 2.0], [32, 31, 1])
    assert mixture_K[2] == 0.0
    np.testing.assert_allclose(mixture_K[:2], 0.5, rtol=1e-12)


def test_without_the_guard_the_domain_is_repeated():
    """The same run without it draws the short domain far beyond its epochs."""
    drawn_K = _drive(ado.make_policy("uniform", PRIOR), 400).sum(axis=0)
    assert drawn_K[2] > 8 * 500 * 2


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda policy: ado.Floor(policy, 0.4), "0.4 x 3 = 1.2 > 1"),
        (lambda policy: ado.Ceiling(policy, 0.3), "sum to 0.9 < 1"),
        (lambda policy: ado.Pin(policy, {"mats": 0.1}), "no domain 'mats'"),
        (lambda policy: ado.Pin(policy, {"math": 0.7, "code": 0.4}), "sum to 1.1"),
        (lambda policy: ado.Pin(policy, {"web": 0.3, "math": 0.3, "code": 0.3}), "sum to 0.9"),
        (lambda policy: ado.Freeze(policy, -1), "0 or more"),
        (lambda policy: ado.RepetitionGuard(policy, [1, 1, 1], 100, 4.0), "at least 33.33 epochs"),
        (lambda policy: ado.RepetitionGuard(policy, {"web": 5, "code": 5}, 1), "missing 'math'"),
    ],
)
def test_bounds_that_cannot_hold_are_refused(make, says):
    with pytest.raises(ado.ConfigError, match=says):
        make(ado.make_policy("natural", PRIOR))


def test_guards_nest_and_health_lists_them():
    policy = ado.Floor(ado.Pin(ado.make_policy("natural", PRIOR), {"math": 0.0}), 0.05)
    assert policy.mixture[2] == 0.05  # the outer guard wins
    assert policy.health()["guards"] == ["pin", "floor"]
