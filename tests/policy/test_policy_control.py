"""Orders to a running policy: bounds against a bisection in plain Python, and the policy inside, which goes on."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ado_stream as ado
from ado_stream.errors import ConfigError
from ado_stream.policy.mixture_bounds import bring_within
from ado_stream.policy.operator_control import Control, in_control, parse_order
from tests.rounding import rounding

PRIOR = {"web": 0.7, "code": 0.2, "math": 0.1}
NAMES = list(PRIOR)


def ordered(policy, *texts):
    """`policy` in a Control after the orders."""
    control = in_control(policy)
    for text in texts:
        control.apply(parse_order(text.split(), NAMES))
    return control


def updated(policy, steps):
    """The mixtures of so many updates with losses that differ between domains."""
    return [policy.update([2.0, 3.0, 4.0 - 0.1 * step], [30, 20, 14]) for step in range(steps)]


def after(control):
    return control.update([2.0, 3.0, 4.0], [30, 20, 14])


def scaled_within(shares, low, high):
    """min(max(l, s p), u) with the sum 1, by bisection on s."""
    below, above = 0.0, 1e6  # shares are above 3e-6
    for _ in range(100):
        scale = (below + above) / 2
        total = sum(min(max(lo, scale * p), hi) for p, lo, hi in zip(shares, low, high, strict=True))
        below, above = (scale, above) if total < 1 else (below, scale)
    return [min(max(lo, above * p), hi) for p, lo, hi in zip(shares, low, high, strict=True)]


@given(st.lists(st.tuples(st.floats(1e-4, 1), st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=30))
def test_bounds_hold_and_the_others_keep_their_proportions(drawn):
    share, low, room = map(np.array, zip(*drawn, strict=True))
    share, low = share / share.sum(), low / max(low.sum(), 1.0)
    high = np.minimum(low + room, 1.0)
    high += max(1.0 - high.sum(), 0.0)
    found = bring_within(share, low, high)
    # the sum of K terms, times a scale that an interpolation of such sums gave: the spread of p is at most 1e4
    np.testing.assert_allclose(found, scaled_within(share, low, high), rtol=0, atol=1e4 * rounding(4 * len(share)))
    assert (found >= low).all()
    assert (found <= high).all()


def test_a_mixture_within_its_bounds_is_left_alone_and_empty_domains_take_what_is_left():
    share = np.array([0.5, 0.5, 0.0, 0.0])
    assert bring_within(share, np.zeros(4), np.ones(4)) is share
    assert bring_within(share, np.zeros(4), np.zeros(4)) is share  # `pin x=0` of what is the only domain later
    found = bring_within(share, np.zeros(4), np.array([0.2, 0.2, 1.0, 0.5]))
    np.testing.assert_allclose(found, [0.2, 0.2, 0.4, 0.2], rtol=1e-15)


def test_a_policy_without_orders_is_itself_to_the_bit():
    alone, controlled = ado.make_policy("odm", PRIOR), Control(ado.make_policy("odm", PRIOR))
    np.testing.assert_array_equal(updated(controlled, 5), updated(alone, 5))


def test_orders_take_the_place_of_the_policy_and_releasing_them_gives_it_back():
    free = updated(ado.make_policy("odm", PRIOR), 9)
    control = Control(ado.make_policy("odm", PRIOR))
    said = updated(control, 2)
    control.apply(parse_order(["freeze"], NAMES))
    losses = [[2.0, 3.0, 4.0 - 0.1 * step] for step in range(9)]
    said += [control.update(losses[2], [30, 20, 14]), control.update(losses[3], [30, 20, 14])]
    control.apply(parse_order(["policy", "natural"], NAMES))
    said.append(control.update(losses[4], [30, 20, 14]))
    control.apply(parse_order(["pin", "math=0.4"], NAMES))
    said.append(control.update(losses[5], [30, 20, 14]))
    control.apply(parse_order(["policy", "odm"], NAMES))
    said.append(control.update(losses[6], [30, 20, 14]))
    control.apply(parse_order(["release"], NAMES))
    said += [control.update(loss, [30, 20, 14]) for loss in losses[7:]]
    np.testing.assert_array_equal(said[:4], [*free[:2], free[1], free[1]])
    np.testing.assert_allclose(said[4], [0.7, 0.2, 0.1], rtol=1e-15)
    np.testing.assert_allclose(said[5], [0.6 * 7 / 9, 0.6 * 2 / 9, 0.4], rtol=1e-14)
    rest = free[6][:2] / free[6][:2].sum()
    np.testing.assert_allclose(said[6], [*(0.6 * rest), 0.4], rtol=1e-14)
    np.testing.assert_array_equal(said[7:], free[7:])


def test_one_domain_is_released_alone():
    control = ordered(ado.make_policy("natural", PRIOR), "pin math=0.4", "bound code=0.3:0.5", "release math")
    np.testing.assert_allclose(after(control), [0.7 * 7 / 8, 0.3, 0.7 / 8], rtol=1e-14)


def test_an_order_for_a_later_update_waits_for_it():
    control = Control(ado.make_policy("natural", PRIOR))
    control.apply(parse_order(["policy", "uniform"], NAMES), step=2)
    said = updated(control, 4)
    np.testing.assert_allclose(said, [list(PRIOR.values())] * 2 + [[1 / 3] * 3] * 2, rtol=1e-15)


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ("pni code=0.2", "no order 'pni' (did you mean 'pin'?); there are: pin DOMAIN=SHARE ...; bound"),
        ("pin coed=0.2", "no domain 'coed' (did you mean 'code'?); there are: "),
        ("pin zzz=0.2", "no domain 'zzz'; there are: web, code, math."),
        ("pin", "'pin': expected pin DOMAIN=SHARE ..."),
        ("freeze code", "'freeze code': expected freeze."),
        ("policy", "expected policy natural"),
        ("pin code", "'code': expected pin DOMAIN=SHARE ..., with shares from 0 to 1."),
        ("pin code=nan", "'code=nan': expected shares from 0 to 1, the lower one first."),
        ("bound code=0.5:0.2", "'code=0.5:0.2': expected shares from 0 to 1, the lower one first."),
        ("bound code=0.5", "'code=0.5': expected bound DOMAIN=LOW:HIGH"),
        (
            "pin web=0.5 code=0.6",
            "the lower bounds would sum to 1.15; no mixture has them: web=0.5:0.5, code=0.6:0.6, ",
        ),
        ("bound web=0:0.3 code=0:0.3 math=0:0.3", "the upper bounds would sum to 0.9; no mixture has them"),
        (
            "policy ado",
            "policy 'ado' cannot take over a run; natural and uniform can, and odm, its own.\n  What learns",
        ),
        ("policy naturl", "policy 'naturl' cannot take over a run (did you mean 'natural'?)"),
    ],
)
def test_an_impossible_order_is_refused_with_the_reason_and_changes_nothing(order, reason):
    control = ordered(ado.make_policy("odm", PRIOR), "pin math=0.05")
    before = json.dumps(control.state_dict())
    with pytest.raises(ConfigError) as caught:
        control.apply(parse_order(order.split(), NAMES))
    assert reason in str(caught.value)
    assert json.dumps(control.state_dict()) == before


def test_orders_are_in_the_state_and_survive_other_domains():
    control = ordered(ado.make_policy("natural", PRIOR), "pin math=0.4", "freeze")
    after(control)
    state = json.loads(json.dumps(control.state_dict()))
    again = Control(ado.make_policy("natural", PRIOR))
    again.load_state_dict(state)
    np.testing.assert_array_equal(after(again), after(control))
    names = {"code": 0.5, "math": 0.25, "new": 0.25}  # web was retired
    other = Control(ado.make_policy("natural", names))
    other.load_state_dict(state, names=list(names))
    mixture = other.update([2.0, 3.0, 4.0], [30, 20, 14])
    assert mixture[1] == 0.4
    assert mixture.sum() == pytest.approx(1.0, abs=rounding(3))
    assert (mixture > 0).all()
