"""scaling_law_fit around the minimum: smoothing, missing points, order, threads, refusals."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numba
import numpy as np
import pytest
import torch
from scipy.signal import savgol_filter

from ado_kernels import scaling_law_fit
from ado_kernels.fit import fit_dispatch
from ado_kernels.fit.numba_smoothing import prepare_losses
from ado_kernels.fit.objective import FitOptions
from tests.rounding import rounding


def noisy_laws(num_domains=5, steps=900, seed=1):
    generator = np.random.default_rng(seed)
    counts = 256.0 * np.arange(1, steps + 1)
    law = generator.uniform(1.7, 3.0, (num_domains, 1)) + 30.0 * counts ** -generator.uniform(
        0.2, 0.6, (num_domains, 1)
    )
    return counts, law * np.exp(0.02 * generator.standard_normal((num_domains, steps)))


def lost_to_factorisation(window):
    """How far scipy's cubic of a window, and ours, may be off, relative to the losses.

    A factorisation returns the exact solution of a problem whose powers are off by their rounding, as a sum over window
    and coefficients; the powers' condition amplifies that.
    """
    powers = np.arange(window, dtype=float)[:, None] - window // 2
    return np.linalg.cond(powers ** np.arange(4)) * rounding(4 * window, torch.float64)


@pytest.mark.parametrize(("steps", "window"), [(900, 101), (101, 101), (100, 99), (60, 59), (7, 7), (6, 5)])
def test_smoothing_equals_scipy(steps, window):
    lost = lost_to_factorisation(window)
    assert lost < 1e-7, "an error would not show"
    _, losses = noisy_laws(steps=steps)
    expected = savgol_filter(losses, window, 3, axis=1, mode="interp")
    assert np.allclose(prepare_losses(losses, FitOptions(every=1)), expected, rtol=lost, atol=0)
    thinned = prepare_losses(losses, FitOptions(ignore_steps=5, every=10))
    assert np.allclose(thinned, expected[:, 5::10], rtol=lost, atol=0)


def test_under_five_steps_nothing_is_smoothed():
    _, losses = noisy_laws(steps=4)
    assert np.array_equal(prepare_losses(losses, FitOptions(every=1)), losses)


def test_missing_points_are_skipped_not_spread():
    counts, losses = noisy_laws()
    missing = np.zeros(losses.shape[1], bool)
    missing[[0, 17, 300, 301, 302, 899]] = True
    holes = losses.copy()
    holes[2, missing] = [np.nan, np.inf, -np.inf, 0.0, -1.0, np.nan]
    smooth = prepare_losses(holes, FitOptions(every=1))
    assert np.array_equal(np.isnan(smooth[2]), missing)
    expected = savgol_filter(losses[2, ~missing], 101, 3)
    assert np.allclose(smooth[2, ~missing], expected, rtol=lost_to_factorisation(101), atol=0)
    whole, found = scaling_law_fit(counts, losses), scaling_law_fit(counts, holes)
    assert found.valid.all()
    assert found.num_points[2] == (~missing[::10]).sum()
    others = [0, 1, 3, 4]
    assert np.array_equal(found.theta[others], whole.theta[others])


def test_a_domain_without_points_fails_alone():
    counts, losses = noisy_laws(steps=120)
    losses[1] = np.nan
    found = scaling_law_fit(counts, losses, FitOptions(), "numba")
    assert found.valid.tolist() == [True, False, True, True, True]
    assert np.isnan(found.theta[1]).all()
    assert np.isnan(found.objective[1])
    assert found.num_points[1] == 0


@pytest.mark.parametrize("num_points", [1, 2, 3, 5])
def test_few_points_are_fitted(num_points):
    counts, losses = noisy_laws(steps=num_points)
    found = scaling_law_fit(counts, losses, FitOptions(every=1))
    assert found.valid.all()
    assert (found.num_points == num_points).all()


def test_order_of_domains_and_own_counts_do_not_matter():
    counts, losses = noisy_laws()
    order = np.array([3, 0, 4, 1, 2])
    found, permuted = scaling_law_fit(counts, losses), scaling_law_fit(counts, losses[order])
    own = scaling_law_fit(np.tile(counts, (5, 1)), losses)
    for field in ("theta", "objective", "at_bound", "residual_scale"):
        assert np.array_equal(getattr(permuted, field), getattr(found, field)[order])
        assert np.array_equal(getattr(own, field), getattr(found, field))


def test_a_history_kept_step_by_step_is_the_same():
    counts, losses = noisy_laws(steps=1100)  # over two blocks, the last one cut
    found, turned = (scaling_law_fit(counts, each) for each in (losses, np.asfortranarray(losses)))
    for one, other in zip(found, turned, strict=True):
        assert np.array_equal(one, other)


def test_same_bits_with_any_number_of_threads(monkeypatch):
    counts, losses = noisy_laws(num_domains=9)
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", threads)
        results.append(scaling_law_fit(counts, losses, backend="numba"))
    for result in results[1:]:
        assert result.theta.tobytes() == results[0].theta.tobytes()
        assert result.objective.tobytes() == results[0].objective.tobytes()


@pytest.mark.slow
def test_torch_keeps_its_number_of_threads():
    """Launchers set OMP_NUM_THREADS=1; Numba's pool, once started, would give torch as many threads as Numba has."""
    code = "import numpy as np, torch; from ado_kernels import scaling_law_fit; before = torch.get_num_threads(); "
    code += "scaling_law_fit(np.arange(1.0, 60.0), np.ones((3, 59)), backend='numba'); "
    code += "assert torch.get_num_threads() == before == 1, torch.get_num_threads()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    environment["NUMBA_NUM_THREADS"] = str(max(2, numba.config.NUMBA_NUM_THREADS))
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)


@pytest.mark.parametrize(
    ("has_gpu", "num_domains", "steps", "chosen"),
    [
        (True, 5, 31, "triton"),  # points of steps 1, 11, 21: 5 x 3 = 15
        (True, 5, 22, "triton"),
        (True, 5, 21, "numba"),
        (True, 4, 31, "numba"),
        (False, 5, 31, "numba"),
    ],
)
def test_auto_takes_a_gpu_where_there_is_one_and_enough_to_do(has_gpu, num_domains, steps, chosen, monkeypatch):
    loaded = []

    def load(name):
        loaded.append(name)
        return SimpleNamespace(fit=lambda *_: "fitted")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(fit_dispatch, "GPU_POINTS", 15)
    monkeypatch.setattr(fit_dispatch.importlib, "import_module", load)
    counts, losses = noisy_laws(num_domains, steps)
    assert scaling_law_fit(counts, losses, FitOptions(ignore_steps=1)) == "fitted"
    assert loaded == [f"ado_kernels.fit.{chosen}_fit"]


def test_auto_is_numba_where_torch_is_not_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(fit_dispatch, "GPU_POINTS", 1)
    assert fit_dispatch._choose_backend(np.ones((3, 100)), FitOptions()) == "numba"


def test_bounds_are_reported():
    counts = 256.0 * np.arange(1, 901)
    inside = 2.5 + 40.0 * counts**-0.4
    low = 1.2 + 4.0 * counts**-0.15  # eps under exp(0.5) = 1.65
    steep = 2.5 + 60.0 * counts**-0.9
    found = scaling_law_fit(counts, np.stack([inside, low, steep]), FitOptions(smooth_window=0))
    assert found.at_bound[:, 1].tolist() == [False, True, False]
    assert found.at_bound[:, 2].tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("counts", "losses", "message"),
    [
        (np.ones(3), np.ones(3), "losses must have shape"),
        (np.ones(4), np.ones((2, 3)), "counts must have shape"),
        (np.array([0.0, 1.0, 2.0]), np.ones((1, 3)), "above 0"),
        (np.array([1.0, np.nan, 2.0]), np.ones((1, 3)), "finite"),
        (np.array([2.0, 1.0, 3.0]), np.ones((1, 3)), "not decrease"),
    ],
)
def test_impossible_arrays_are_refused(counts, losses, message):
    with pytest.raises(ValueError, match=message):
        scaling_law_fit(counts, losses)


def test_unknown_backends_are_refused():
    counts, losses = noisy_laws(steps=50)
    for backend in ("cuda", "torch"):
        with pytest.raises(
            ValueError, match=f"unknown fit backend '{backend}'; the backends are: auto, numba, triton$"
        ):
            scaling_law_fit(counts, losses, backend=backend)


def test_without_a_gpu_the_error_says_what_to_do(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="backend='numba'"):
        scaling_law_fit(np.arange(1.0, 60.0), np.ones((1, 59)), backend="triton")


@pytest.mark.parametrize(
    "settings",
    [
        {"delta": 0.0},
        {"grid_alpha": ()},
        {"grid_log_eps": (np.nan,)},
        {"smooth_window": 10},
        {"ignore_steps": -1},
        {"every": 0},
    ],
)
def test_impossible_options_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        FitOptions(**settings)


def test_no_torch_is_imported():
    code = "import sys, numpy as np; from ado_kernels import scaling_law_fit; "
    code += "scaling_law_fit(np.arange(1.0, 60.0), np.ones((1, 59))); assert 'torch' not in sys.modules"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
