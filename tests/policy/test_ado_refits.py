"""When ADO refits, on which points and backend; the state after a fit, and after a failed one."""

import numpy as np
import pytest
import torch

import ado_stream as ado
from ado_stream.policy import scaling_laws
from ado_stream.simulate.closed_loop import read_spec, simulate

PRIOR = {"web": 5.0, "code": 3.0, "math": 2.0}
K = len(PRIOR)
SCHEDULE = {"start_step": 20, "interval": 20, "ignore_steps": 0, "fit": ado.FitConfig(every=1)}


def _stream(loss_stream, steps):
    loss_TK, _ = loss_stream(K, steps)
    return np.where(np.isnan(loss_TK), 2.0, loss_TK), np.tile([32, 20, 12], (steps, 1))


def _run(policy, loss_TK, count_TK):
    return np.array([policy.update(loss_K, count_K) for loss_K, count_K in zip(loss_TK, count_TK, strict=True)])


# Fits that fail -----------------------------------------------------------------------------------------------------


class CompilationError(Exception):
    """Compilers raise types of their own that no list here could name."""


@pytest.mark.parametrize(
    "failure",
    [
        RuntimeError("can't start new thread"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        ImportError("libcuda.so.1"),
        MemoryError(),
        ValueError("singular"),
        OSError("cannot fork"),
        CompilationError("at 3:7"),
    ],
    ids=repr,
)
def test_any_exception_of_the_kernel_at_a_refit_keeps_the_laws(failure, loss_stream, monkeypatch):
    loss_TK, count_TK = _stream(loss_stream, 100)
    kernel, calls = scaling_laws.scaling_law_fit, []

    def fails_twice(*arguments):
        calls.append(None)
        if len(calls) in (2, 3):
            raise failure
        return kernel(*arguments)

    monkeypatch.setattr(scaling_laws, "scaling_law_fit", fails_twice)
    policy = ado.AdoPolicy(PRIOR, ado.AdoConfig(**SCHEDULE))
    mixture_TK = _run(policy, loss_TK, count_TK)
    fits = iter(range(4))

    def keeps(counts, losses, config):
        nonlocal kept
        if next(fits) in (0, 3):
            kept = ado.fit_scaling_laws(counts, losses, config, "numba")
        return kept

    kept = None
    monkeypatch.setattr(scaling_laws, "scaling_law_fit", kernel)
    np.testing.assert_array_equal(
        mixture_TK, _run(ado.AdoPolicy(PRIOR, ado.AdoConfig(**SCHEDULE), keeps), loss_TK, count_TK)
    )
    health = policy.health()
    assert (health["refits"], health["failed_refits"], set(health["held_laws"].values())) == (2, 2, {2})
    assert (policy.step, policy.fit_step, policy.attempt_step) == (100, 80, 80)


def test_a_fitter_of_other_domains_fails_like_any_other(loss_stream):
    policy = ado.AdoPolicy(PRIOR, ado.AdoConfig(**SCHEDULE), lambda *_: ado.ScalingLawFit([1.0], [0.6], [0.3]))
    np.testing.assert_array_equal(_run(policy, *_stream(loss_stream, 40))[-1], policy.prior_K)
    assert (policy.health()["failed_refits"], policy.attempt_step, policy.fit_step) == (1, 20, None)


# The backend --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [None, "numba", "triton", "auto"])
def test_the_backend_is_the_configured_one_whatever_is_imported(asked, loss_stream, monkeypatch):
    kernel, used = scaling_laws.scaling_law_fit, []

    def spy(counts, losses, options, backend):
        used.append(backend)
        return kernel(counts, losses, options, "numba")

    monkeypatch.setattr(scaling_laws, "scaling_law_fit", spy)
    policy = ado.AdoPolicy(PRIOR, ado.AdoConfig(**SCHEDULE, **({} if asked is None else {"fit_backend": asked})))
    used.clear()
    _run(policy, *_stream(loss_stream, 50))
    assert used == [asked or "numba"] * 2


def test_a_backend_that_is_unknown_or_missing_is_refused_at_construction(monkeypatch):
    with pytest.raises(ado.ConfigError, match="fit_backend is 'cuda'; expected one of auto, numba, triton"):
        ado.AdoPolicy(PRIOR, ado.AdoConfig(fit_backend="cuda"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ado.ConfigError, match="fit backend 'triton' cannot run here: .*CUDA GPU"):
        ado.AdoPolicy(PRIOR, ado.AdoConfig(fit_backend="triton"))


# What is left of a fit ----------------------------------------------------------------------------------------------


def test_all_fields_of_a_fit_are_kept_with_its_law(loss_stream):
    """Two real fits, the second invalid for one domain, which keeps every field of its older law."""
    found = []

    def fitter(counts, losses, config):
        found.append(ado.fit_scaling_laws(counts, losses, config))
        found[-1].valid[1] = len(found) == 1
        return found[-1]

    policy = ado.AdoPolicy(PRIOR, ado.AdoConfig(**SCHEDULE), fitter)
    _run(policy, *_stream(loss_stream, 50))
    first, second = found
    reloaded = ado.AdoPolicy(PRIOR, ado.AdoConfig(**SCHEDULE), fitter)
    reloaded.load_state_dict(policy.state_dict())
    for fit in (policy.fit, reloaded.fit):
        for name in ("log_beta", "log_eps", "alpha", "objective", "residual_scale", "num_points", "at_bound"):
            old_K, new_K = getattr(first, name), getattr(second, name)
            np.testing.assert_array_equal(getattr(fit, name), [new_K[0], old_K[1], new_K[2]])
        assert fit.num_points.tolist() == [41, 21, 41]
        assert (fit.residual_scale > 0).all()
        assert fit.valid.tolist() == [True, False, True]


# From how many points -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("min_points", "every", "expected"),
    [
        (None, 10, [(20, 3), (40, 5), (60, 7), (80, 9)]),  # of a run of unknown length: as the schedule says
        (8, 10, [(80, 9)]),
        (8, 5, [(40, 9), (60, 13), (80, 17)]),
    ],
)
def test_no_refit_is_made_from_fewer_points_than_asked_for(min_points, every, expected, loss_stream, quick_fit):
    refits = []

    def fitter(counts, losses, config):
        refits.append((policy.step, losses[:, config.kept].shape[1]))
        return quick_fit(counts, losses, config)

    config = ado.AdoConfig(**{**SCHEDULE, "fit": ado.FitConfig(every=every)}, min_points=min_points)
    policy = ado.AdoPolicy(PRIOR, config, fitter)
    _run(policy, *_stream(loss_stream, 100))
    assert refits == expected
    assert policy.health()["refits"] == len(expected)


@pytest.mark.parametrize("total_steps", [7, 12, 20, 40, 100, 300, 1000, 3000])
def test_by_default_a_short_run_fits_eight_points_or_a_quarter_of_its_steps(total_steps, loss_stream, quick_fit):
    points = []

    def fitter(counts, losses, config):
        points.append(losses[:, config.kept].shape[1])
        return quick_fit(counts, losses, config)

    policy = ado.AdoPolicy(PRIOR, None, fitter, total_steps=total_steps)
    _run(policy, *_stream(loss_stream, total_steps))
    assert min(points) >= min(8, max(1, total_steps // 4))
    assert len(points) > total_steps / (3 * policy.plan.interval), "most of the planned refits are made"


@pytest.mark.parametrize("total_steps", [60, 100, 150, 300])
def test_the_first_law_of_a_short_run_is_fitted_to_points_spread_over_it(total_steps, loss_stream, quick_fit):
    """Its points are spread over the run: eight steps in a row determine no slope."""
    spans = []

    def fitter(counts, losses, config):
        spans.append(counts[config.kept][-1] / counts[config.kept][0])
        return quick_fit(counts, losses, config)

    _run(ado.AdoPolicy(PRIOR, None, fitter, total_steps=total_steps), *_stream(loss_stream, total_steps))
    assert spans[0] > 2.5


@pytest.mark.parametrize(
    ("settings", "total_steps", "every"),
    [
        ({}, 20, 1),
        ({}, 100, 3),
        ({}, 300, 10),
        ({}, 60_000, 10),
        ({}, None, 10),
        ({"fit": ado.FitConfig()}, 300, 10),
        ({"fit": ado.FitConfig(every=4)}, 60_000, 4),
    ],
)
def test_short_runs_keep_more_than_every_tenth_step(settings, total_steps, every):
    assert ado.AdoPolicy(PRIOR, ado.AdoConfig(**settings), total_steps=total_steps).plan.fit.every == every


def test_the_reference_keeps_its_thinning_and_fits_a_single_point(quick_fit, loss_stream):
    config = ado.AdoConfig.reference(start_step=20, ignore_steps=20, interval=20)
    policy = ado.AdoPolicy(PRIOR, config, quick_fit, total_steps=300)
    assert (policy.plan.fit.every, policy.plan.min_points) == (10, 1)
    _run(policy, *_stream(loss_stream, 21))
    assert policy.fit_step == 20


@pytest.mark.parametrize(
    "settings",
    [
        {"ignore_steps": 100},
        {"ignore_steps": 90, "min_points": 11},
        {"start_step": 10, "fit": ado.FitConfig(every=20)},
        {"ignore_steps": 93, "interval": 2},
    ],
)
def test_a_run_whose_last_refit_lacks_points_is_refused(settings):
    with pytest.raises(ado.ConfigError, match="would never act.*first refit at step 1[0-9][0-9], .*; the last is 99"):
        ado.AdoPolicy(PRIOR, ado.AdoConfig(**settings), total_steps=100)


@pytest.mark.parametrize(
    ("settings", "lag", "drawn_at"),
    [
        ({"start_step": 290, "interval": 1, "ignore_steps": 0}, 8, 299),
        ({"start_step": 291, "interval": 1, "ignore_steps": 0}, 8, 300),
        ({"start_step": 298, "interval": 1, "ignore_steps": 0}, 0, 299),
        ({"start_step": 299, "interval": 1, "ignore_steps": 0}, 0, 300),
        ({"start_step": 0, "interval": 1, "ignore_steps": 0, "min_points": 1, "hold_steps": 145}, 153, 154),
        ({"start_step": 1, "interval": 1, "ignore_steps": 0, "min_points": 1, "hold_steps": 145}, 153, 299),
        ({"start_step": 1, "interval": 1, "ignore_steps": 0, "min_points": 1, "hold_steps": 145}, 154, 300),
        ({}, 1000, 1103),
    ],
)
def test_a_run_that_ends_before_the_first_refit_takes_effect_is_refused(settings, lag, drawn_at):
    """The mixture after step s is drawn at step s + 1 + lag; the last of 300 steps is 299. The closed loop agrees."""
    spec = {"steps": 300, "mixture_lag": lag, "domains": 3, "policies": {"ado": settings, "natural": {}}}
    if drawn_at > 299:
        with pytest.raises(
            ado.ConfigError, match=f"would never act.*with mixture_lag {lag} is drawn at step {drawn_at}"
        ):
            read_spec(spec).make("ado")
        return
    spec = read_spec(spec)
    own, natural = (simulate(spec, spec.make(label)).mixture_SK for label in ("ado", "natural"))
    moved = np.flatnonzero(np.abs(own - natural)[:300].max(axis=1) > 1e-6)
    assert moved[0] == drawn_at


# Forecasts ----------------------------------------------------------------------------------------------------------


def test_forecast_errors_are_of_the_law_before_the_refit(loss_stream):
    """A law of 2 for all, losses of 2.2: every step is a refit, and every forecast before it was 10 % too low."""
    law = ado.ScalingLawFit(np.full(K, -50.0), np.full(K, np.log(2.0)), np.full(K, 0.3))
    policy = ado.AdoPolicy(PRIOR, ado.AdoConfig(start_step=0, interval=1, ignore_steps=0), lambda *_: law)
    policy.update(np.full(K, 2.2), [1, 1, 1])
    assert policy.health()["forecast_error"]["web"] == {"mean": None, "mean_abs": None}
    policy.update([2.2, np.nan, 1.8], [1, 0, 1])
    assert policy.health()["forecast_error"] == {
        "web": {"mean": pytest.approx(0.1), "mean_abs": pytest.approx(0.1)},
        "code": {"mean": None, "mean_abs": None},
        "math": {"mean": pytest.approx(-0.1), "mean_abs": pytest.approx(0.1)},
    }
