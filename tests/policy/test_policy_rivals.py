"""The other policies against their formulas, worked out by hand or in plain loops."""

import math

import numpy as np
import pytest

import ado_stream as ado
from ado_stream.policy.episelect import EpiSelect, EpiSelectConfig
from ado_stream.policy.gap import GapConfig, GapPolicy
from ado_stream.policy.published_mixtures import PILE_DOREMI
from ado_stream.policy.static_policies import unimax
from ado_stream.policy.velocitune import Velocitune

PRIOR = {"web": 60.0, "code": 30.0, "math": 10.0}


def _mixture(name, **options):
    return ado.make_policy(name, PRIOR, **options).mixture


def test_natural_uniform_fixed_and_temperature():
    np.testing.assert_allclose(_mixture("natural"), [0.6, 0.3, 0.1], rtol=1e-15)
    np.testing.assert_allclose(_mixture("uniform"), [1 / 3] * 3, rtol=1e-15)
    weights = {"math": 3, "web": 1, "code": 0}
    np.testing.assert_allclose(_mixture("fixed", weights=weights), [0.25, 0, 0.75], rtol=1e-15)
    root_K = np.sqrt([60.0, 30.0, 10.0])
    np.testing.assert_allclose(_mixture("temperature", tau=2), root_K / root_K.sum(), rtol=1e-14)
    sizes = {"web": 1.0, "code": 1.0, "math": 1.0}
    np.testing.assert_allclose(_mixture("temperature", tau=2, sizes=sizes), [1 / 3] * 3, rtol=1e-14)


def test_unimax_fills_the_smallest_first():
    """Budget 90, one epoch: math is used up (10), then 40 each for the others, but code has only 30."""
    np.testing.assert_allclose(_mixture("unimax", budget=90, max_epochs=1), np.array([50, 30, 10]) / 90, rtol=1e-14)
    np.testing.assert_allclose(_mixture("unimax", budget=9, max_epochs=1), [1 / 3] * 3, rtol=1e-14)
    np.testing.assert_allclose(unimax(np.array([60.0, 30.0, 10.0]), 1e9, 2.0), [0.6, 0.3, 0.1], rtol=1e-14)


@pytest.mark.parametrize(
    ("prior", "options", "says"),
    [
        ([0.5, 0.3, 0.2], {}, "'sizes' is missing"),
        (dict(zip(PRIOR, [0.5, 0.3, 0.2], strict=True)), {}, "'sizes' is missing"),
        ([0.5, 0.3, 0.2], {"sizes": [0, 0, 0]}, "all 3 are 0"),
        ([60, 30, 10], {"sizes": [0.0, 0.0, 0.0]}, "all 3 are 0"),
    ],
)
def test_unimax_needs_sizes_not_shares(prior, options, says):
    """Shares against a budget in tokens would all be exhausted at once and give the natural mixture."""
    with pytest.raises(ado.ConfigError, match=says):
        ado.make_policy("unimax", prior, budget=90.0, **options)


def test_unimax_with_shares_as_prior_and_sizes_given():
    policy = ado.make_policy("unimax", [0.6, 0.3, 0.1], budget=90, max_epochs=1, sizes=[60, 30, 10])
    np.testing.assert_allclose(policy.mixture, np.array([50, 30, 10]) / 90, rtol=1e-14)


def test_the_published_doremi_table_is_the_papers():
    """Read off table 1 of arXiv 2305.10429, column DoReMi (280M), row by row in the order it has there."""
    printed = {
        "Pile-CC": "0.6057", "YoutubeSubtitles": "0.0502", "PhilPapers": "0.0274", "HackerNews": "0.0134",
        "Enron Emails": "0.0070", "EuroParl": "0.0062", "Ubuntu IRC": "0.0093", "BookCorpus2": "0.0061",
        "NIH ExPorter": "0.0063", "OpenSubtitles": "0.0047", "Gutenberg (PG-19)": "0.0072", "DM Mathematics": "0.0018",
        "Wikipedia (en)": "0.0699", "USPTO Backgrounds": "0.0036", "PubMed Abstracts": "0.0113",
        "PubMed Central": "0.0046", "FreeLaw": "0.0043", "StackExchange": "0.0153", "Github": "0.0179",
        "ArXiv": "0.0036", "Books3": "0.0224", "OpenWebText2": "0.1019",
    }  # fmt: skip
    assert {name: f"{share:.4f}" for name, share in PILE_DOREMI.items()} == printed
    policy = ado.make_policy("fixed", dict.fromkeys(PILE_DOREMI, 1.0), weights="doremi-pile")
    total = sum(map(float, printed.values()))
    assert total == pytest.approx(1.0, abs=2e-4)  # 22 figures rounded to 4 digits
    np.testing.assert_allclose(policy.mixture, np.array(list(PILE_DOREMI.values())) / total, rtol=1e-14)


@pytest.mark.parametrize(("interpolation", "halfway"), [("linear", [0.5, 0.5, 0.0]), ("constant", [1.0, 0.0, 0.0])])
def test_a_schedule_gives_each_step_its_mixture(interpolation, halfway):
    knots = [(10, [1, 0, 0]), (20, [0, 2, 0])]
    policy = ado.make_policy("schedule", PRIOR, knots=knots, interpolation=interpolation)
    said = [policy.mixture] + [policy.update([2.0, 2.0, 2.0], [1, 1, 1]) for _ in range(30)]
    np.testing.assert_array_equal(said[0], [1, 0, 0])
    np.testing.assert_allclose(said[15], halfway, rtol=1e-15)
    np.testing.assert_array_equal(said[20], [0, 1, 0])
    np.testing.assert_array_equal(said[30], [0, 1, 0])


@pytest.mark.parametrize("lag", [0, 1, 6])
def test_a_schedule_with_lag_draws_every_later_step_by_its_own_mixture(lag):
    weights = np.linspace([1, 0, 0], [0, 1, 1], 41)
    policy = ado.make_policy("schedule", PRIOR, knots=list(enumerate(weights.tolist())), mixture_lag=lag)
    drawn = [policy.mixture] * (lag + 1) + [policy.update([2.0, 2.0, 2.0], [1, 1, 1]) for _ in range(30)]
    share_TK = weights / weights.sum(axis=1, keepdims=True)
    # the knots are the steps: no interpolation, but a convex combination rounds
    np.testing.assert_allclose(drawn, share_TK[[0] * (lag + 1) + list(range(lag + 1, lag + 31))], atol=1e-15)
    again = ado.make_policy("schedule", PRIOR, knots=list(enumerate(weights.tolist())), mixture_lag=lag)
    again.load_state_dict(policy.state_dict())
    np.testing.assert_array_equal(again.mixture, drawn[-1])


def _losses(steps):
    generator = np.random.default_rng(3)
    count_TK = generator.multinomial(4, [0.6, 0.3, 0.1], size=steps)
    return np.where(count_TK > 0, generator.uniform(1, 4, (steps, 3)), np.nan), count_TK


def _explore(t, num=3):
    return min(1 / num, math.sqrt(math.log(num) / (num * t)))


@pytest.mark.parametrize(("form", "lag"), [("odm", 0), ("odm", 1), ("odm", 8), ("odm-code", 0)])
def test_odm_follows_its_formula(form, lag):
    """Losses are divided by the share that their own batch was drawn with, given lag + 1 updates ago."""
    policy, reward = ado.make_policy(form, PRIOR, **({"mixture_lag": lag} if lag else {})), [0.0] * 3
    said = [[1 / 3] * 3] * (lag + 1)
    loss_TK, count_TK = _losses(200)
    for t, (losses, counts) in enumerate(zip(loss_TK, count_TK, strict=True), 1):
        p = said[t - 1]
        for i in range(3):
            if counts[i]:
                reward[i] = 0.9 * reward[i] + 0.1 * (losses[i] / p[i] if form == "odm" else math.exp(losses[i]))
        weight = [math.exp(_explore(t) * r) if form == "odm" else r for r in reward]
        e = _explore(t + 1)
        said.append([(1 - 3 * e) * w / sum(weight) + e for w in weight])
        # plain and shifted exponents round apart by 1e-15; rewards of the paper form feed the mixture back
        np.testing.assert_allclose(policy.update(losses, counts), said[-1], rtol=1e-9)


@pytest.mark.parametrize("form", ["odm", "odm-code"])
def test_odm_survives_losses_that_overflow_an_exponential(form):
    policy = ado.make_policy(form, PRIOR)
    for _ in range(30):
        mixture_K = policy.update([900.0, 1e5, 2.0], [1, 1, 1])
    assert np.isfinite(mixture_K).all()
    assert mixture_K.argmax() == 1


def test_doremi_follows_its_formula():
    reference = {"web": 2.0, "code": 1.5, "math": 3.0}
    policy = ado.make_policy("doremi", PRIOR, reference_losses=reference, eta=0.1, smoothing=0.01)
    np.testing.assert_allclose(policy.mixture, [1 / 3] * 3, rtol=1e-15)
    w = [1 / 3] * 3
    loss_TK, count_TK = _losses(200)
    for losses, counts in zip(loss_TK, count_TK, strict=True):
        excess = [max(losses[k] - ref, 0.0) if counts[k] else 0.0 for k, ref in enumerate(reference.values())]
        w = [w[k] * math.exp(0.1 * excess[k]) for k in range(3)]
        w = [value / sum(w) for value in w]
        expected_K = [0.99 * value + 0.01 / 3 for value in w]
        np.testing.assert_allclose(policy.update(losses, counts), expected_K, rtol=1e-11)  # log w against w


def test_episelect_by_hand(make_ado):
    """Two laws: scores alpha (L - eps) of 0.3 and 0.1 nats; the first preference is their softmax."""
    law = ado.ScalingLawFit(log_beta=np.log([1.0, 0.5]), log_eps=np.log([2.0, 2.0]), alpha=np.array([0.3, 0.2]))
    config = EpiSelectConfig(start_step=0, interval=100, ignore_steps=0, min_points=1, mixture_memory=1.0)
    policy = EpiSelect([9.0, 1.0], config, lambda *_: law)
    mixture_K = policy.update([3.0, 2.5], [1.0, 1.0])  # n = 1 each: gaps 1 and 0.5
    weight_K = np.exp([0.3, 0.1])
    np.testing.assert_allclose(mixture_K, weight_K / weight_K.sum(), rtol=1e-12)


def test_the_gap_policy_by_hand():
    """After one refit p = (1 - c) softmax(log prior + eta (l - l*)) + c / 2."""
    law = ado.ScalingLawFit(log_beta=np.log([1.0, 1.0]), log_eps=np.log([1.0, 1.0]), alpha=np.array([0.5, 0.5]))
    options = {"eta": 0.5, "smoothing": 0.1, "target_losses": [2.0, 3.0]}
    config = GapConfig(start_step=0, interval=100, ignore_steps=0, min_points=1, floor=0.0, **options)
    policy = GapPolicy([3.0, 1.0], config, lambda *_: law)
    mixture_K = policy.update([2.5, 2.0], [1.0, 1.0])
    weight_K = np.array([0.75, 0.25]) * np.exp([0.25, -0.5])
    np.testing.assert_allclose(mixture_K, 0.9 * weight_K / weight_K.sum() + 0.05, rtol=1e-12)
    with pytest.raises(ado.ConfigError, match="target_losses, or total_steps"):
        ado.make_policy("gap", [1.0, 1.0])
    with pytest.raises(ado.ConfigError, match="gap: target_losses: 2 domains need 2 numbers"):
        ado.make_policy("gap", [1.0, 1.0], target_losses=[1.0])


def test_forecasts_for_the_end_of_the_run_are_targets_of_the_gap_policy():
    law = ado.ScalingLawFit(log_beta=np.log([1.0, 1.0]), log_eps=np.log([1.0, 1.0]), alpha=np.array([0.5, 0.5]))
    config = GapConfig(start_step=0, interval=100, ignore_steps=0, min_points=1, floor=0.0, smoothing=0.0)
    policy = GapPolicy([1.0, 1.0], config, lambda *_: law, total_steps=900)
    mixture_K = policy.update([2.0, 3.0], [4.0, 4.0])
    end = 1.0 + (4.0 * 900) ** -0.5  # the same for both: what differs is the loss
    weight_K = np.exp([2.0 - end, 3.0 - end])
    np.testing.assert_allclose(mixture_K, weight_K / weight_K.sum(), rtol=1e-12)


def test_velocitune_by_hand():
    """Two refits: p <- (1 - c) softmax(log p + (l - l*) / (l0 - l*)) + c / 2; a domain at its target has velocity 0."""
    law = ado.ScalingLawFit(log_beta=np.log([1.0, 1.0]), log_eps=np.log([1.0, 1.0]), alpha=np.array([0.5, 0.5]))
    options = {"smoothing": 0.1, "target_losses": [2.0, 3.0]}
    config = GapConfig(start_step=1, interval=1, ignore_steps=0, min_points=1, floor=0.0, **options)
    policy = Velocitune([3.0, 1.0], config, lambda *_: law)
    share_K, mean, first = np.array([0.75, 0.25]), [4.0, 3.0], [4.0, 3.0]
    policy.update(first, [1.0, 1.0])
    for losses in ([3.0, 3.5], [2.5, 2.0]):
        mixture_K = policy.update(losses, [1.0, 1.0])
        mean = [0.9 * old + 0.1 * new for old, new in zip(mean, losses, strict=True)]
        velocity_K = np.array([(mean[0] - 2.0) / (4.0 - 2.0), 0.0])
        weight_K = share_K * np.exp(velocity_K)
        share_K = 0.9 * weight_K / weight_K.sum() + 0.05
        np.testing.assert_allclose(mixture_K, share_K, rtol=1e-12)
