"""Synthetic domains follow their formula; the closed loop draws by the mixture."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ado_stream as ado
from ado_stream.policy.static_policies import Fixed
from ado_stream.simulate.closed_loop import read_spec, simulate, systematic_counts
from ado_stream.simulate.default_spec import default_spec
from ado_stream.simulate.recorded_run import check_complete, replay
from ado_stream.simulate.synthetic_domains import parse_domains

DOMAINS = {
    "a": {"prior": 3, "eps": 1.0, "beta": 20.0, "alpha": 0.3},
    "b": {"prior": 1, "eps": 2.0, "beta": 9.0, "alpha": 0.2, "break_samples": 1000.0, "break_alpha": 0.05},
}


def _spec(**more):
    return read_spec({"steps": 300, "global_batch_size": 64, "domains": DOMAINS, "noise": 0.2, **more})


def test_losses_follow_laws_breaks_and_transfer():
    own_K = np.array([500.0, 4000.0])
    world = parse_domains({"domains": DOMAINS, "transfer": 0.1}, seed=0)
    learnt_a, learnt_b = 1 + 500 + 0.1 * 4000, 1 + 4000 + 0.1 * 500
    gap_b = 9.0 * 1000.0**-0.2 * (learnt_b / 1000.0) ** -0.05
    np.testing.assert_allclose(world.loss(own_K), [1.0 + 20.0 * learnt_a**-0.3, 2.0 + gap_b], rtol=1e-12)
    pairwise = parse_domains({"domains": DOMAINS, "transfer": {"a": {"b": 0.5}}}, seed=0)
    assert pairwise.loss(own_K)[0] == pytest.approx(1.0 + 20.0 * (1 + 500 + 0.5 * 4000) ** -0.3, rel=1e-12)
    assert world.loss(np.zeros(2))[0] == world.cap  # an untrained model knows no more than the vocabulary's size


def test_a_domain_given_twice_as_a_number_and_as_text_is_refused():
    first, second = DOMAINS.values()
    with pytest.raises(ado.ConfigError, match="domains: domain '2023' is given twice, as a number and as text"):
        parse_domains({"domains": {2023: first, "2023": second}}, seed=0)


def test_transfer_between_domains_named_by_numbers():
    domains = dict(zip((1, 2), DOMAINS.values(), strict=True))
    named, numbered = (
        parse_domains({"domains": each, "transfer": transfer}, seed=0)
        for each, transfer in ((DOMAINS, {"a": {"b": 0.5}}), (domains, {1: {2: 0.5}}))
    )
    assert numbered.names == ["1", "2"]
    own_K = np.array([500.0, 4000.0])
    np.testing.assert_array_equal(numbered.loss(own_K), named.loss(own_K))


def test_policies_of_a_spec_may_have_guards():
    """Freeze gets the lag from the run: the mixture drawn at step 20 is drawn from then on."""
    guards = [{"name": "pin", "shares": {"b": 0.4}}, {"name": "freeze", "from_step": 20}]
    policies = {"pinned": {"policy": "natural", "guards": guards[:1]}, "odm": {"guards": guards[1:]}, "free": {}}
    spec = _spec(policies={**policies, "free": {"policy": "odm"}}, mixture_lag=5)
    mixture_SK = {label: simulate(spec, spec.make(label)).mixture_SK for label in policies}
    np.testing.assert_allclose(mixture_SK["pinned"], np.tile([0.6, 0.4], (301, 1)), rtol=1e-12)
    np.testing.assert_array_equal(mixture_SK["odm"][:21], mixture_SK["free"][:21])
    np.testing.assert_array_equal(mixture_SK["odm"][20:], np.tile(mixture_SK["free"][20], (281, 1)))
    assert not np.array_equal(mixture_SK["free"][19], mixture_SK["free"][20])


def test_bumps_rise_at_their_step_and_decay():
    world = parse_domains({"domains": DOMAINS, "bumps": [{"step": 10, "height": 0.4, "decay_steps": 5}]}, seed=0)
    bump_T = world.bump(40)
    np.testing.assert_allclose(bump_T[[9, 10, 15, 30]], [0.0, 0.4, 0.4 / math.e, 0.4 * math.exp(-4)], rtol=1e-12)


class Listener(Fixed):
    """Records the losses and counts of its updates."""

    def __init__(self, prior, weights):
        super().__init__(prior, weights)
        self.heard, self.counts = [], []

    def update(self, mean_losses, sample_counts):
        self.heard.append(mean_losses.copy())
        self.counts.append(sample_counts.tolist())
        return super().update(mean_losses, sample_counts)


@pytest.mark.parametrize("noise", [0.0, 1e-9])
def test_updates_get_the_true_loss_plus_the_bump(noise):
    """Laws 1 + 4 / n and 2 + 8 / n, batches of (0, 4) samples, a bump of 0.5 at step 2 that falls to 1/e in a step."""
    domains = {"a": {"prior": 3, "eps": 1, "beta": 4, "alpha": 1}, "b": {"prior": 1, "eps": 2, "beta": 8, "alpha": 1}}
    bumps = [{"step": 2, "height": 0.5, "decay_steps": 1}]
    spec = read_spec({"steps": 4, "global_batch_size": 4, "domains": domains, "bumps": bumps, "noise": noise})
    listener = Listener({"a": 3, "b": 1}, {"a": 0, "b": 1})
    outcome = simulate(spec, listener)
    true_T = 2 + 8 / np.array([1, 5, 9, 13, 17])
    shown_T = true_T[:4] + [0, 0, 0.5, 0.5 / math.e]
    assert listener.counts == [[0, 4]] * 4
    # without noise the two differ by rounding alone; with it by a few deviations of 1e-9 / 2
    np.testing.assert_allclose(listener.heard, np.column_stack([np.full(4, np.nan), shown_T]), atol=1e-8)
    np.testing.assert_allclose(outcome.loss_SK, np.column_stack([np.full(5, 5.0), true_T]), rtol=1e-12)
    assert outcome.step_S.tolist() == [0, 1, 2, 3, 4]
    assert outcome.samples_K.tolist() == [0, 16]


def test_noise_shrinks_with_the_samples_drawn():
    """The same domains with 16 times the batch: a quarter of the noise around the same kind of law."""
    flat = {name: {"prior": 1, "eps": 2.0, "beta": 1e-9, "alpha": 0.3} for name in "ab"}
    spread = []
    for batch in (64, 1024):
        listener = Listener({"a": 1, "b": 1}, {"a": 1, "b": 1})
        spec = read_spec({"steps": 4000, "global_batch_size": batch, "domains": flat, "noise": 0.2})
        simulate(spec, listener)
        spread.append(np.std(listener.heard))
    # 8,000 samples of a deviation know it to 0.8 %
    assert spread[0] == pytest.approx(0.2 / math.sqrt(32), rel=0.04)
    assert spread[1] == pytest.approx(0.2 / math.sqrt(512), rel=0.04)


def test_the_outcome_depends_on_the_spec_alone():
    spec = _spec(policies={"ado": {"start_step": 30, "interval": 30}})
    one, two = (simulate(spec, spec.make("ado")) for _ in range(2))
    np.testing.assert_array_equal(one.mixture_SK, two.mixture_SK)
    np.testing.assert_array_equal(one.samples_K, two.samples_K)
    other = simulate(_spec(seed=18), spec.make("ado"))
    assert not np.array_equal(one.mixture_SK, other.mixture_SK)


def test_mixtures_take_effect_after_the_lag():
    knots = [(0, [1, 0]), (1, [0, 1])]
    spec = _spec(policies={"schedule": {"knots": knots, "interpolation": "constant"}}, mixture_lag=5)
    mixture_SK = simulate(spec, spec.make("schedule")).mixture_SK
    np.testing.assert_array_equal(mixture_SK[:7, 0], [1, 1, 1, 1, 1, 1, 0])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(1, 500), st.floats(0, 1, exclude_max=True))
def test_a_draw_is_within_one_sample_of_the_mixture(weights, batch, shift):
    mixture_K = (np.array(weights) + 1e-6) / (np.array(weights) + 1e-6).sum()
    count_K = systematic_counts(mixture_K, batch, shift)
    assert count_K.sum() == batch
    assert (count_K >= 0).all()
    assert (np.abs(count_K - batch * mixture_K) < 1 + 1e-9).all()


@pytest.mark.parametrize("floor", [0.02, 0.045])
def test_selection_frequencies_are_those_of_the_clipped_mixture(floor):
    """In a whole closed loop every domain is drawn in proportion to the mixtures, and at least at the floor."""
    spec = read_spec({**default_spec(3000), "policies": {"ado": {"floor": floor}}})
    policy = spec.make("ado")
    outcome = simulate(spec, policy)
    drawn = spec.steps * spec.global_batch_size
    every = outcome.step_S[1] - outcome.step_S[0]
    asked_K = outcome.mixture_SK[:-1].mean(axis=0)
    # each of 3,000 draws is off by less than one sample with mean 0: five deviations of 0.5 each; every second mixture
    # is kept, and mixtures move by less than 1e-3 between two steps
    tolerance = 5 * 0.5 * math.sqrt(spec.steps) / drawn + every * 1e-3 * asked_K
    assert (np.abs(outcome.samples_K / drawn - asked_K) < tolerance).all()
    assert outcome.mixture_SK.min() >= policy.plan.floor
    assert (outcome.samples_K / drawn > policy.plan.floor - 5 * 0.5 * math.sqrt(spec.steps) / drawn).all()


def test_a_domain_with_a_larger_gap_is_drawn_more():
    """Equal domains but for the gap of one."""
    twins = {
        name: {"prior": 1, "eps": 2.0, "beta": beta, "alpha": 0.3} for name, beta in (("fast", 60.0), ("slow", 15.0))
    }
    spec = read_spec({"steps": 1500, "global_batch_size": 64, "domains": twins, "noise": 0.2, "policies": {"ado": {}}})
    outcome = simulate(spec, spec.make("ado"))
    assert outcome.mixture_SK[-1, 0] > 0.7
    natural = simulate(spec, ado.make_policy("natural", {"fast": 1, "slow": 1}))
    assert outcome.loss_SK[-1].mean() < natural.loss_SK[-1].mean()


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ({"step": 5}, "did you mean 'steps'"),
        ({"steps": 0}, "1 or more"),
        (
            {"domains": {"a": {"prior": 1, "eps": 1, "betta": 2, "alpha": 0.1}}},
            "'a' has unknown 'betta' and lacks 'beta'",
        ),
        ({"domains": {"a": {"prior": 1, "eps": 1, "beta": -2, "alpha": 0.1}}}, "beta of 'a' is -2"),
        ({"domains": 0}, "domains"),
        ({"domains": 2**31}, "spec: domains is 2147483648; expected a whole number, 10000 at most"),
        ({"domains": DOMAINS, "steps": 10**12}, "100000000 at most"),
        ({"domains": DOMAINS, "mixture_lag": 10**8}, "65536 at most"),
        ({"domains": DOMAINS, "transfer": {"a": {"c": 1}}}, "no domain 'c'"),
        ({"domains": DOMAINS, "bumps": [{"step": 3}]}, "decay_steps"),
        ({"domains": DOMAINS, "policies": []}, "policies"),
    ],
)
def test_impossible_specs_are_refused_with_the_key(given_, says):
    with pytest.raises(ado.ConfigError, match=says):
        read_spec(given_)


def test_replay_of_a_runs_own_policy_gives_its_mixtures(loss_stream, make_ado):
    loss_TK, count_TK = loss_stream(4, 60)
    policy = make_ado(np.ones(4))
    said = [policy.mixture] + [
        policy.update(loss_K, count_K) for loss_K, count_K in zip(loss_TK, count_TK, strict=True)
    ]
    in_force = np.array([said[max(0, step - 3)] for step in range(60)])
    np.testing.assert_array_equal(
        replay(make_ado(np.ones(4)), loss_TK, count_TK.astype(float), 3, initial_K=in_force[0]), in_force
    )


@pytest.mark.parametrize(
    ("steps", "says"), [([], "no step"), ([0, 1, 3], "step 2 is missing"), ([5, 6], "step 0 is missing")]
)
def test_replay_needs_every_step(steps, says):
    with pytest.raises(ado.DataError, match=says):
        check_complete(np.array(steps, dtype=np.int64), "runs/x")
