"""Target: its mixture where nothing differs, where text cannot be learnt or is learnt, and where text repeats."""

import json
import re

import numpy as np
import pytest

import ado_stream as ado
from ado_stream.policy.elasticity import fit_blocks, middle_elasticity
from ado_stream.policy.loss_blocks import BlockPoints

BATCH, STEPS = 256, 1200


class Domains:
    """Losses of known laws over each domain's own samples, closed loop, with noise 0.5 / sqrt(samples)."""

    def __init__(self, alpha_K, eps_K, beta_K, seed=0):
        self.alpha_K, self.eps_K, self.beta_K = map(np.asarray, (alpha_K, eps_K, beta_K))
        self.own_K = np.zeros(len(alpha_K))
        self.generator = np.random.default_rng(seed)

    def step(self, mixture_K):
        count_K = self.generator.multinomial(BATCH, mixture_K).astype(float)
        own_K = np.maximum(self.own_K, 1.0)
        loss_K = self.eps_K + self.beta_K * (own_K / 1e4) ** -self.alpha_K
        with np.errstate(divide="ignore", invalid="ignore"):
            loss_K = np.where(
                count_K > 0, loss_K + 0.5 * self.generator.standard_normal(len(count_K)) / np.sqrt(count_K), np.nan
            )
        self.own_K += count_K
        return loss_K, count_K


def run(policy, domains, steps=STEPS):
    """(steps, K): the mixtures, each used for the next step's batch."""
    mixture_K, mixtures = policy.mixture, []
    for _ in range(steps):
        mixture_K = policy.update(*domains.step(mixture_K))
        mixtures.append(mixture_K)
    return np.array(mixtures)


def alike(num, useless=(), seed=0):
    """Laws that differ by some ten percent, but for `useless` domains whose loss hardly falls."""
    generator = np.random.default_rng(seed)
    alpha_K, beta_K = generator.uniform(0.27, 0.33, num), generator.uniform(0.9, 1.1, num)
    beta_K[list(useless)] = 0.003
    return Domains(alpha_K, np.full(num, 2.0), beta_K, seed)


def test_domains_that_learn_alike_keep_the_target_to_the_bit():
    prior_K = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    policy = ado.make_policy("target", prior_K, total_steps=STEPS)
    mixture_TK = run(policy, alike(5))
    np.testing.assert_array_equal(mixture_TK, np.tile(policy.mixture, (STEPS, 1)))
    np.testing.assert_array_equal(policy.mixture, prior_K / prior_K.sum())
    assert policy.health()["refits"] > 20
    assert policy.health()["moved"] == {}


@pytest.mark.parametrize("share", [0.1, 0.2, 0.4])
def test_text_that_cannot_be_learnt_gives_way_and_the_rest_keeps_its_proportions(share):
    prior_K = np.array([share, *(np.array([0.4, 0.3, 0.2, 0.1]) * (1 - share))])
    policy = ado.make_policy("target", prior_K, total_steps=STEPS)
    mixture_TK = run(policy, alike(5, useless=[0]))
    # from an eighth of the run on at a two-hundredth, at best; the cut may take a tenth of the run more
    assert mixture_TK[:, 0].mean() < (1 / 8 + 1 / 200 + 1 / 10) * share
    np.testing.assert_allclose(mixture_TK[:, 2:] / mixture_TK[:, 1:2], np.tile(prior_K[2:] / prior_K[1], (STEPS, 1)))
    moved = policy.health()["moved"]
    assert list(moved) == ["0"]
    assert moved["0"]["share_over_target"] == pytest.approx(1 / 200)
    assert 0 < moved["0"]["since_step"] < STEPS / 4


@pytest.mark.parametrize(
    ("num", "useless"), [(2, [0]), (3, [0]), (3, [0, 1]), (4, [0, 1]), (8, [0, 1, 2, 3]), (22, range(11))]
)
def test_the_middle_is_that_of_what_is_learnt_however_much_is_not(num, useless):
    policy = ado.make_policy("target", np.ones(num), total_steps=STEPS)
    mixture_TK = run(policy, alike(num, useless))
    learnt_K = np.array([index not in useless for index in range(num)])
    assert mixture_TK[-1][~learnt_K].max() <= 0.011
    np.testing.assert_allclose(mixture_TK[-1][learnt_K], mixture_TK[-1][learnt_K].mean())


@pytest.mark.parametrize("useless", [[], [0]])
def test_one_domain_has_all_of_it(useless):
    mixture_TK = run(ado.make_policy("target", [3.0], total_steps=200), alike(1, useless), 200)
    np.testing.assert_array_equal(mixture_TK, 1.0)


@pytest.mark.parametrize("num", [2, 3])
def test_domains_that_all_cannot_be_learnt_keep_their_target(num):
    """There is no one to give the shares to: the middle is among them."""
    policy = ado.make_policy("target", np.arange(1.0, num + 1.0), total_steps=STEPS)
    mixture_TK = run(policy, alike(num, range(num)))
    np.testing.assert_array_equal(mixture_TK, np.tile(policy.target_K, (STEPS, 1)))


def test_a_domain_that_surely_learns_faster_gains():
    domains = alike(5)
    domains.beta_K = domains.beta_K * np.array([1.0, 1.0, 1.0, 1.0, 6.0])
    policy = ado.make_policy("target", [4.0, 3.0, 2.0, 1.0, 0.5], total_steps=STEPS)
    mixture_TK = run(policy, domains)
    assert mixture_TK[-1, 4] > 1.5 * policy.target_K[4]


def test_a_cut_domain_that_learns_from_the_others_is_given_back_its_share():
    """Flat at first, later falling although it is hardly drawn: what is learnt elsewhere has reached it."""
    domains = alike(4, useless=[0])
    policy = ado.make_policy("target", np.ones(4), total_steps=STEPS)
    mixture_K = policy.mixture
    shares = []
    for step in range(STEPS):
        loss_K, count_K = domains.step(mixture_K)
        if step > 400:
            loss_K[0] -= 1.2 * np.log(step / 400)  # faster than any of the others
        mixture_K = policy.update(loss_K, count_K)
        shares.append(mixture_K[0])
    assert min(shares[:500]) < 0.05
    assert shares[-1] > 0.2


def test_a_run_of_unknown_length_is_mixed_as_a_long_one_of_known_length():
    """From 16,000 steps on the defaults no longer follow the length; all else is in samples of the run so far."""
    prior_K = np.array([0.4, 0.24, 0.18, 0.12, 0.06])
    unknown, known = (ado.make_policy("target", prior_K, total_steps=steps) for steps in (None, 16_000))
    mixture_TK = run(unknown, alike(5, useless=[0]), 3000)
    np.testing.assert_array_equal(mixture_TK, run(known, alike(5, useless=[0]), 3000))
    np.testing.assert_array_equal(mixture_TK[:2000], np.tile(unknown.target_K, (2000, 1)))
    assert mixture_TK[-1, 0] < 0.05


@pytest.mark.parametrize("scale", [1e-3, 1e6])
def test_elasticities_do_not_depend_on_the_unit_of_own_samples(scale):
    """n enters as n / n0 alone: counted in tokens or in thousands, a law has the same elasticity."""
    own_KM, loss_KM = np.linspace(100.0, 900.0, 20)[None], 2.0 + np.linspace(1.0, 0.6, 20)[None]
    counts_KM, samples_KM = np.ones((1, 20), dtype=bool), np.full((1, 20), 50.0)

    def fitted(unit):
        points = BlockPoints(np.arange(20), own_KM * unit, loss_KM, samples_KM, samples_KM[0])
        return fit_blocks(points, counts_KM, np.array([1000.0 * unit]), np.ones(1))

    plain, scaled = fitted(1.0), fitted(scale * 10.0)
    for name in ("elasticity", "elasticity_sd", "alpha", "log_eps"):
        np.testing.assert_allclose(scaled[name], plain[name], rtol=1e-9)  # logs of ratios round apart


def test_weights_of_the_validation_split_are_its_composition():
    policy = ado.make_policy("target", {"a": 9.0, "b": 1.0}, weights="val", val_sizes={"a": 30, "b": 90})
    np.testing.assert_array_equal(policy.mixture, [0.25, 0.75])


def validated_run(policy, domains, validation_loss, every=25):
    """As `run`, with `validation_loss(domains)` observed every so many steps."""
    mixture_K, mixtures = policy.mixture, []
    for step in range(STEPS):
        if step and step % every == 0:
            policy.observe_validation(validation_loss(domains), np.full(len(mixture_K), 100.0))
        mixture_K = policy.update(*domains.step(mixture_K))
        mixtures.append(mixture_K)
    return np.array(mixtures)


def true_loss(domains):
    return domains.eps_K + domains.beta_K * (np.maximum(domains.own_K, 1.0) / 1e4) ** -domains.alpha_K


def test_laws_of_validation_losses_cut_what_training_losses_do():
    prior_K = np.array([0.4, 0.24, 0.18, 0.18])
    policy = ado.make_policy("target", prior_K, laws="validation", total_steps=STEPS)
    mixture_TK = validated_run(policy, alike(4, useless=[0]), true_loss)
    assert list(policy.health()["moved"]) == ["0"]
    assert "validation loss" in policy.health()["moved"]["0"]["why"]
    assert mixture_TK[-1, 0] < 0.05
    unmoved = ado.make_policy("target", prior_K, laws="validation", total_steps=STEPS)
    np.testing.assert_array_equal(validated_run(unmoved, alike(4), true_loss), np.tile(unmoved.target_K, (STEPS, 1)))
    np.testing.assert_array_equal(run(unmoved, alike(4, useless=[0]), 300)[-1], unmoved.target_K)  # none came


def test_a_domain_of_few_samples_is_judged_by_text_that_it_did_not_see():
    """Its training loss falls to nothing when it is read again; held-out, repeats teach it nothing. No size is given,
    so that nothing else says that it repeats."""
    size = 2_000.0
    prior_K = np.array([0.2, 0.3, 0.3, 0.2])

    class Repeating(Domains):
        def step(self, mixture_K):
            loss_K, count_K = super().step(mixture_K)
            loss_K[0] *= (np.maximum(self.own_K[0], size) / size) ** -0.3
            return loss_K, count_K

    def held_out(domains):
        seen_K = domains.own_K.copy()
        seen_K[0] = min(seen_K[0], size)
        return domains.eps_K + domains.beta_K * (np.maximum(seen_K, 1.0) / 1e4) ** -domains.alpha_K

    def few(laws):
        laws_of = alike(4)
        policy = ado.make_policy("target", prior_K, laws=laws, total_steps=STEPS)
        domains = Repeating(laws_of.alpha_K, laws_of.eps_K, laws_of.beta_K)
        return validated_run(policy, domains, held_out)[-1, 0]

    assert few("validation") < 0.1 * prior_K[0]
    assert few("train") >= prior_K[0]


def test_the_evidence_of_a_cut_is_a_sentence_once_and_in_health():
    policy = ado.make_policy("target", {"noise": 2.0, "web": 3.0, "code": 5.0}, total_steps=STEPS)
    domains, notices = alike(3, useless=[0]), []
    for _ in range(STEPS):
        policy.update(*domains.step(policy.mixture))
        notices += policy.take_notices()
    assert len(notices) == 1
    assert notices[0].startswith("target: noise is read less from here on: with twice its samples its training loss")
    why = policy.health()["moved"]["noise"]["why"]
    low, high, middle = (float(number) for number in re.findall(r"\d\.\d{3}", why))
    moved = policy.health()["moved"]["noise"]
    assert low <= np.log(2.0) * moved["elasticity"] + 5e-4
    assert high >= np.log(2.0) * moved["elasticity"] - 5e-4
    assert 2.0 * high < middle + 2e-3  # each is rounded to 5e-4


def test_repeats_are_no_evidence_and_no_domain_is_planned_beyond_its_epochs():
    """A domain of 2,000 samples whose loss falls to nothing once it is read again, as training losses do."""
    sizes = np.array([2_000, 1_000_000, 1_000_000])
    policy = ado.make_policy(
        "target", [0.2, 0.5, 0.3], total_steps=STEPS, sizes=sizes, total_samples=STEPS * BATCH, max_epochs=4.0
    )
    domains, mixture_K = alike(3), policy.mixture
    for _ in range(STEPS):
        loss_K, count_K = domains.step(mixture_K)
        loss_K[0] *= np.exp(-max(domains.own_K[0] / sizes[0] - 1.0, 0.0))
        mixture_K = policy.update(np.maximum(loss_K, 1e-3), count_K)
    assert domains.own_K[0] <= 4.0 * sizes[0] + BATCH
    assert mixture_K.sum() == pytest.approx(1.0)


def test_what_is_read_again_moves_nothing_whatever_its_losses():
    """Losses of a domain after its first epoch against none: mixtures to the bit."""
    sizes = np.array([20_000, 1_000_000, 1_000_000])

    def mixtures(loss_of_repeats):
        policy = ado.make_policy("target", [0.3, 0.4, 0.3], total_steps=STEPS, sizes=sizes)
        domains, found = alike(3, useless=[1]), []
        for _ in range(STEPS):
            repeats = domains.own_K[0] >= sizes[0]
            loss_K, count_K = domains.step(policy.mixture)
            loss_K[0] = loss_of_repeats if repeats else loss_K[0]
            found.append(policy.update(loss_K, count_K))
        assert domains.own_K[0] > 2.0 * sizes[0]
        assert policy.health()["moved"]
        return np.array(found)

    expected = mixtures(np.nan)
    np.testing.assert_array_equal(mixtures(0.01), expected)
    np.testing.assert_array_equal(mixtures(50.0), expected)


def test_laws_go_on_where_validations_are_many_blocks_apart():
    """A refit goes by the newest blocks with a validation: most of the newest of all have none, and teach nothing."""
    policy = ado.make_policy("target", [0.4, 0.24, 0.18, 0.18], laws="validation", total_steps=STEPS)
    domains, fit_steps = alike(4, useless=[0]), set()
    for step in range(STEPS):
        if step and step % 50 == 0:
            policy.observe_validation(true_loss(domains), np.full(4, 100.0))
        policy.update(*domains.step(policy.mixture))
        fit_steps.add(policy.fit_step)
    due, step = 0, 500  # eight validations are over: enough for laws
    while step < STEPS:
        due, step = due + 1, step + step // 20
    assert len(fit_steps - {None}) > due / 2


def test_a_pause_of_six_validations_is_no_evidence():
    """All validations are of the same text: a few of them that stand still are one observation, and not six."""
    policy = ado.make_policy("target", [0.4, 0.24, 0.18, 0.18], laws="validation", total_steps=STEPS)

    def pausing(domains):
        loss_K = true_loss(domains)
        if 144 <= domains.own_K.sum() / BATCH < 288:
            loss_K[0] = paused.setdefault(0, loss_K[0])
        return loss_K

    domains, paused = alike(4), dict[int, float]()
    mixture_TK = validated_run(policy, domains, pausing, every=24)
    np.testing.assert_array_equal(mixture_TK, np.tile(policy.target_K, (STEPS, 1)))


def test_the_second_cut_waits_for_validations_after_the_first():
    policy = ado.make_policy("target", [0.4, 0.24, 0.18, 0.18], laws="validation", total_steps=STEPS)
    mixture_TK = validated_run(policy, alike(4, useless=[0]), true_loss, every=50)
    first, second = (int(np.argmax(mixture_TK[:, 0] < share * 0.4)) for share in (0.99, 0.4))
    assert first > 0
    assert second > first + 4 * 50


def test_the_middle_elasticity_by_hand():
    """Gains 0, 0.3, 0.2, 0.4: half of 0.9 is reached with the third."""
    elasticity_K, target_K = np.array([0.0, 1.0, 2.0, 4.0]), np.array([0.5, 0.3, 0.1, 0.1])
    assert middle_elasticity(elasticity_K, np.zeros(4), target_K) == 2.0
    assert np.isnan(middle_elasticity(np.zeros(3), np.ones(3), np.ones(3)))
    # Gains 0.6 and 0.8, but the second counts for a fifth at a middle of 2, and less at one of 1.
    assert middle_elasticity(np.array([1.0, 2.0]), np.array([0.0, 2.0]), np.array([0.6, 0.4])) == 1.0


@pytest.mark.parametrize("useless", [0, 10, 20])
def test_chance_in_the_estimates_makes_the_middle_no_faster(useless):
    """Elasticities of about 1, estimated with deviations from 0.2 to 0.8; `useless` more are 0."""
    generator, found = np.random.default_rng(0), []
    for _ in range(200):
        true_K = np.append(generator.uniform(0.8, 1.2, 20), np.zeros(useless))
        sd_K = generator.uniform(0.2, 0.8, len(true_K))
        estimate_K = np.maximum(true_K + sd_K * generator.standard_normal(len(true_K)), 0.0)
        found.append(middle_elasticity(estimate_K, sd_K, np.ones(len(true_K))))
    assert 0.875 < np.mean(found) < 1.125  # 1.14 to 1.22 of the estimates alone


def test_the_pull_of_an_elasticity_by_hand():
    """(e / m, sd / m, pull so far) -> pull: shrunk towards m by a prior of deviation m / 2, cut at one deviation, held
    while it looks slow."""
    policy = ado.make_policy("target", np.ones(7))
    of_middle_K, sd_K, before_K, expected_K = np.transpose(
        [
            (0.2, 0.05, 0.0, 4.0 * np.log(2.0 * (1.0 - 0.8 / 1.01))),  # surely slow
            (0.2, 0.05, -9.0, 4.0 * np.log(2.0 * (1.0 - 0.8 / 1.01))),  # as slow as it is now, not as it was
            (0.0, 0.35, 0.0, 0.0),  # known too little: 0.33 +- 0.29 with the middle's weight
            (0.0, 0.35, -2.0, -2.0),  # cut before, and still looks slow
            (0.66, 0.2, -2.0, 0.0),  # cut before, and looks like the others
            (0.6, 0.05, 0.0, 0.0),  # slower than the middle, inside the dead zone
            (3.0, 0.1, 0.0, 4.0 * np.log((1.0 + 2.0 / 1.04 - 0.1 / np.sqrt(1.04)) / 2.0)),  # surely fast
        ]
    )
    policy._middle = 0.7
    policy.memory["elasticity"], policy.memory["elasticity_sd"] = 0.7 * of_middle_K, 0.7 * sd_K
    policy.memory["pull"] = before_K
    pull_K, slow_K = policy._pull()
    np.testing.assert_allclose(pull_K, expected_K, atol=1e-12)
    assert slow_K.tolist() == [True, True] + 5 * [False]


@pytest.mark.parametrize("prior", [[0.02, 0.25, 0.73], [0.02, 0.9, 0.08]])
def test_laws_begin_where_the_mixture_of_the_target_was_first_drawn(prior):
    """Both domains learn alike from the whole of the text. The first, drawn 25 times as often from step 140 on, would
    look as if its own samples hardly taught it anything; and the second, which had many, as if few more taught much."""
    policy = ado.make_policy("target", prior, weights=[0.5, 0.5, 0.0], total_steps=STEPS)
    generator, mixture_K = np.random.default_rng(0), np.array(prior)
    for step in range(STEPS):
        count_K = generator.multinomial(BATCH, mixture_K).astype(float)
        noise_K = 0.5 * generator.standard_normal(3) / np.sqrt(np.maximum(count_K, 1.0))
        used_K = policy.update(np.where(count_K > 0, 5.0 - 0.3 * np.log(step + 20.0) + noise_K, np.nan), count_K)
        np.testing.assert_array_equal(used_K, policy.target_K)
        mixture_K = policy.target_K if step >= 140 else mixture_K
    assert policy.health()["refits"] > 20


@pytest.mark.parametrize("at", [0, 37, 160, 700])
def test_its_state_goes_on_to_the_bit(at):
    def fresh():
        return ado.make_policy("target", [0.4, 0.3, 0.2, 0.1], total_steps=STEPS, sizes=[9e4] * 4, total_samples=3e5)

    domains = alike(4, useless=[0])
    stream = [domains.step(np.full(4, 0.25)) for _ in range(900)]
    whole, early = fresh(), fresh()
    expected = [whole.update(*step) for step in stream][at:]
    for step in stream[:at]:
        early.update(*step)
    resumed = fresh()
    resumed.load_state_dict(json.loads(json.dumps(early.state_dict())))
    np.testing.assert_array_equal([resumed.update(*step) for step in stream[at:]], expected)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"weights": "sise"}, "weights 'sise'"),
        ({"weights": [1.0, 2.0]}, "3 domains need 3 numbers"),
        ({"dead_zone": 0.5}, "dead_zone is 0.5"),
        ({"damping": 1.5}, "damping is 1.5"),
        ({"floor": 0.5}, "0.5 x 3 = 1.5 > 1"),
        ({"max_epochs": 0}, "max_epochs is 0"),
        ({"weights": "val"}, "validation split's sizes are unknown"),
        ({"weights": "val", "val_sizes": [0, 0, 0]}, "validation split: all 3 weights are 0"),
        ({"laws": "validation", "evaluate_every_steps": 0}, "evaluate.every_steps"),
        ({"laws": "val"}, "laws is 'val'"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, text):
    with pytest.raises(ado.ConfigError, match=text):
        ado.make_policy("target", np.ones(3), **options)
