"""The benchmarks of the fit and of the policy measure what they say, in small."""

import json

import numpy as np
import pytest
from scipy.optimize import minimize

from ado_kernels import scaling_law_fit
from ado_kernels.fit.numba_search import TOLERANCE
from ado_kernels.fit.numba_smoothing import prepare_losses
from ado_kernels.fit.objective import FitOptions, objective
from ado_stream.simulate.closed_loop import Outcome, read_spec
from ado_stream.simulate.default_spec import default_spec
from benchmarks import bench_fit, bench_policy, bench_sensitivity, common


@pytest.mark.parametrize(
    "theta",
    [(2.0, 0.7, 0.4), (3.0, 0.9, 0.05), (7.0, 0.2, 0.9), (1.0, 0.6, -0.2)],
    ids=["free", "slow", "past three kinks", "below alpha's kink"],
)
def test_the_gradient_that_scipy_is_given_is_that_of_the_objective(theta):
    """Central differences of F in float64, 5,000 points on both sides of the Huber loss's corners."""
    counts_T, losses_KT = bench_fit.history(1, steps=5000)
    data = (np.log(counts_T), np.log(losses_KT[0]), 1e-3)
    value, gradient_P = bench_fit.value_and_gradient(np.array(theta), *data)
    assert value == objective(np.array(theta), *data)
    for index in range(3):
        step = np.zeros(3)
        step[index] = 1e-6
        numeric = (objective(theta + step, *data) - objective(theta - step, *data)) / 2e-6
        # F is about 5 there, so rounding leaves 5 x 1e-16 / 1e-6; a point that crosses a corner moves it by less
        assert gradient_P[index] == pytest.approx(numeric, abs=2e-7, rel=1e-6)


def allowance(theta_P, log_count_M, log_loss_M, delta):
    """How far a minimum of F may lie above another's: what the search leaves, and rounding.

    The search stops at gains under TOLERANCE of F + 0.001. It minimises F with exp and log that are off by 4e-13
    (test_exp_and_log_equal_libm); a residual is a difference of numbers of at most `size`, each rounded, and moves F by
    delta at most; the sum of M terms is rounded M times. Two points are compared, so rounding counts twice.
    """
    eps = np.finfo(np.float64).eps
    value = objective(theta_P, log_count_M, log_loss_M, delta)
    size = np.abs(theta_P[:2]).max() + np.abs(theta_P[2] * log_count_M).max() + np.abs(log_loss_M).max()
    of_terms = len(log_loss_M) * delta * (4e-13 + 4 * eps * size)
    of_sum = eps * (len(log_loss_M) + 4) * (abs(value) + 0.001)
    return TOLERANCE * (value + 0.001) + 2 * (of_terms + of_sum)


def test_the_fit_ends_at_a_minimum_that_scipy_does_not_undercut():
    """Where scipy itself ends depends on how its processor rounds; it is asked for nothing but a lower F."""
    found = bench_fit.against_scipy(num_starts=24, steps=3000)
    counts_T, losses_KT = bench_fit.history(1, steps=3000)
    points_M = counts_T[bench_fit.OPTIONS.ignore_steps :: bench_fit.OPTIONS.every]
    smooth_M = prepare_losses(losses_KT, bench_fit.OPTIONS)[0]
    theta_P = scaling_law_fit(points_M, smooth_M[None], FitOptions(smooth_window=0, every=1), "numba").theta[0]
    data = np.log(points_M), np.log(smooth_M), bench_fit.OPTIONS.delta
    ours, allowed = objective(theta_P, *data), allowance(theta_P, *data)
    assert found["points"] == len(points_M) == 200
    assert found["scipy_best_above_ours"] * (ours + 0.001) > -allowed
    assert found["ratio"] == pytest.approx(1e3 * found["scipy_s_scaled_to_512_starts"] / found["ours_ms"])

    descent = minimize(bench_fit.value_and_gradient, theta_P, data, "L-BFGS-B", jac=True, options={"ftol": 0.0})
    simplex = minimize(objective, theta_P, data, "Nelder-Mead", options={"xatol": 1e-9, "fatol": allowed})
    assert min(descent.fun, simplex.fun) > ours - allowed
    direction_NP = np.random.default_rng(0).standard_normal((100, 3))
    direction_NP = np.concatenate([np.eye(3), -np.eye(3), direction_NP])
    for size in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2):
        least = min(objective(theta_P + size * direction_P, *data) for direction_P in direction_NP)
        assert least > ours - allowed
    assert least > ours + 1000 * allowed, "a step of 0.01 leaves the minimum: what is allowed hides no real descent"


def test_the_fit_is_timed_on_what_the_policy_keeps():
    counts_T, losses_KT = bench_fit.history(2, steps=600)
    count_M, loss_KM, options = bench_fit.policys(counts_T, losses_KT)
    np.testing.assert_array_equal(loss_KM, losses_KT)
    np.testing.assert_array_equal(count_M, counts_T)
    assert not loss_KM.flags.c_contiguous
    assert options == FitOptions(ignore_steps=1000)


def test_a_bar_that_is_missed_is_said_to_be(capsys, tmp_path, monkeypatch):
    low = {"within_1e-6_frac": 0.98, "worst_above_reference": 1e-6}
    held = bench_fit.bars([{"domains": 22, "evaluations": 40.0}, {"domains": 1000, "evaluations": 40.1}], low)
    assert [bar["pass"] for bar in held] == [True, False, False, True]
    default = {"additions": 250.0, "late_us": 20.0, "late_over_early": 1.22, "late_step": 10_000}
    runs = {
        f"simulate_K{num}": {"steps": 60_000, "processor_seconds": seconds}
        for num, seconds in ((22, 7.1), (1000, 150.0))
    }
    state = {"state_K1000": {"megabytes": 40.0}}
    payload = {"update_K22": {"default": default}, "update_K1000": {"late_us": 100.0}, **state, **runs}
    refit = bench_policy.bars({**payload, "target_refit_K1000": {"refit_ms": 51.0}})
    assert [bar["pass"] for bar in refit] == [True, False, True, False, True, False]
    held += bench_policy.bars(payload)
    assert [bar["pass"] for bar in held[4:]] == [True, False, True, True, False]
    assert [bar["measured"] for bar in held[7:]] == pytest.approx([7.1 / 1.2, 25.0])
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    path = common.write_result("fit", {"fits": []}, held)
    assert json.loads(path.read_text())["bars"] == held
    assert [line.split()[0] == "pass" for line in capsys.readouterr().out.splitlines()[-9:]] == [
        bar["pass"] for bar in held
    ]


def test_an_evaluation_is_f_without_its_penalties_on_the_points_that_a_fit_keeps():
    counts_T, losses_KT = bench_fit.history(2, steps=1500)
    kept = slice(1000, None, bench_fit.OPTIONS.every)
    points = [(np.log(counts_T[kept]), np.log(losses_T[kept]), 1e-3) for losses_T in losses_KT]
    free = np.array([2.0, 0.7, 0.4])  # between the kinks; the constant of F is -0.001
    expected = sum(objective(free, *each) + 0.001 for each in points)
    assert bench_fit.evaluate(counts_T, losses_KT) == pytest.approx(expected, rel=1e-9)


def test_how_low_the_fit_gets_is_taken_from_the_golden_records(tmp_path):
    """A record of our own making: known minima below what the fit ends at by 0, 0.5e-6 and 3e-6 of F + 0.001, and a
    reference that ended 4e-6 below, at the same place, and nowhere."""
    _, losses_KT = bench_fit.history(3, steps=1200)
    counts = np.full((1200, 3), 86, dtype=np.uint16)
    losses_TK = losses_KT.T.astype(np.float32)
    fitted = bench_fit.scaling_law_fit(
        256.0 * np.arange(1, 1001), losses_TK[:1000].T.astype(np.float64), FitOptions(ignore_steps=100), "numba"
    )
    ends_K = fitted.objective + 0.001
    meta = {"B": 256, "ignore_steps": 100}
    refits = {"refit_step": [300, 999], "refit_points": [21, 90]}  # the first has too few points to count
    np.savez(tmp_path / "own.npz", meta=json.dumps(meta), counts=counts, loss=losses_TK, **refits)
    (tmp_path / "objective").mkdir()
    best_K = ends_K / (1 + np.array([0.0, 0.5e-6, 3e-6])) - 0.001
    reference_K = ends_K / (1 + np.array([4e-6, 0.0, np.nan])) - 0.001
    unused_K = np.full(3, -1.0)
    known = {"objective_best": [unused_K, best_K], "objective_reference": [unused_K, reference_K]}
    np.savez(tmp_path / "objective" / "own.npz", **known)
    found = bench_fit.lowness(tmp_path)
    assert found["fits"] == 3
    assert found["within_1e-6_frac"] == pytest.approx(2 / 3)
    assert found["worst"] == pytest.approx(3e-6, rel=1e-6)
    assert found["worst_above_reference"] == pytest.approx(4e-6, rel=1e-6)


def test_the_figures_of_the_sensitivity_table():
    """Final losses (2, 4) against (3, 7) with priors 3 to 1, and shares (0.5, 0.5) against (0.8, 0.2)."""
    prior_K = np.array([0.75, 0.25])

    def ends(loss_K, mixture_K):
        first = [9.0, 9.0]
        arrays = np.arange(2), np.array([[1.0, 0.0], mixture_K]), np.array([first, loss_K]), np.ones(2)
        return Outcome(*arrays, None)

    found, default = ends([2.0, 4.0], [0.5, 0.5]), ends([3.0, 7.0], [0.8, 0.2])
    figures = bench_sensitivity.difference(found, default, prior_K)
    assert figures == pytest.approx((1e3 * (2.5 - 4.0), 1e3 * (3.0 - 5.0), 30.0))


@pytest.mark.parametrize("steps", [300, 6000, 60_000])
def test_every_row_of_the_sensitivity_table_changes_something(steps):
    """What is in force, that is: an option spelt out as its default, or a start before the first point, is none."""

    def made(options):
        policy = read_spec({**default_spec(steps), "policies": {"ado": dict(options)}}).make("ado")
        planned = vars(policy.plan)
        return planned, {name: value for name, value in vars(policy.config).items() if name not in planned}

    plans = [made(options) for own in bench_sensitivity.variations(steps).values() for options in own.values()]
    default = made({})
    assert all(plan != default for plan in plans)
    assert all(planned["ignore_steps"] <= planned["start_step"] for planned, _ in plans)
    assert len(plans) == 26


@pytest.mark.parametrize("steps", [300, 6000, 60_000])
def test_a_row_that_moves_two_ends_of_the_schedule_names_both(steps):
    plan = bench_sensitivity.AdoConfig().plan(22, steps)
    rows = bench_sensitivity.variations(steps)
    named = 0
    for setting, other in (("start_step", "ignore_steps"), ("ignore_steps", "start_step")):
        for value, options in rows[setting].items():
            moves_both = options[other] != getattr(plan, other)
            assert (f"{other} {options[other]} too" in value) == moves_both
            assert value.startswith(f"{options[setting]} steps")
            named += moves_both
    assert named == (0 if steps == 60_000 else 2)


def test_another_seed_is_the_floor_under_what_moved(monkeypatch):
    law = {"prior": 1, "eps": 2.0, "beta": 20.0, "alpha": 0.3}
    domains = {"a": law, "b": {**law, "beta": 40.0}, "c": {**law, "prior": 3}}
    world = {"domains": domains, "noise": 0.35, "global_batch_size": 64}
    monkeypatch.setattr(bench_sensitivity, "default_spec", lambda steps: {"steps": steps, **world})
    settings = {"g2": {"1.0": {"mixture_memory": 1.0}}, "nothing": {"at all": {}}}
    rows = bench_sensitivity.table(300, [0], settings)
    moved = {row["setting"]: row["moved"] for row in rows}
    assert moved["nothing"] == 0.0
    assert 0.0 < moved["seed"] < moved["g2"]


def test_the_cost_of_an_update_is_taken_early_and_late():
    found = bench_policy.cost_of_update(3, late_step=500, blocks=2)
    assert found["additions"] > 1
    assert 0 < found["best_us"] <= min(found["early_us"], found["late_us"])
    assert bench_policy.cost_of_state(3, steps=50)["megabytes"] > 0
    assert bench_policy.closed_loop(3, steps=60)["refits"] > 10
    assert bench_policy.cost_of_refit(3, steps=400)["refits"] > 3
