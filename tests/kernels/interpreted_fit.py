"""The fit's Triton kernels against Numba's functions, piece by piece and whole (run by test_interpreter.py).

Float64 on both sides. Tolerances: Numba's sums use polynomials for exp and log (1e-13 a term); a Newton step amplifies
them by the condition of a 3 x 3 matrix; F itself is held to F written out, 1e-12.
"""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from ado_kernels import scaling_law_fit
from ado_kernels.fit import numba_points, numba_step, triton_fit
from ado_kernels.fit.numba_search import NUM_BINS, bin_points
from ado_kernels.fit.numba_smoothing import prepare_losses
from ado_kernels.fit.objective import ALPHA_HIGH_KINK, LOG_EPS_KINK, FitOptions, objective
from ado_kernels.fit.step_algebra import NUM_SUMS
from ado_kernels.fit.triton_points import Points, bin_kernel, newton_sums
from ado_kernels.fit.triton_step import model_step
from tests.kernels.test_fit_minimum import PAST, pushed_past

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # lanes that are not used overflow
DELTA = 1e-3
SUMS = tl.constexpr(NUM_SUMS)
FEW = {"grid_log_beta": (2.0, 4.0), "grid_log_eps": (0.5, 1.0), "grid_alpha": (0.2, 0.5)}


def history(num_domains, num_steps, seed=0):
    generator = np.random.default_rng(seed)
    counts_T = 256.0 * np.arange(1, num_steps + 1)
    law_KT = 2.0 + 30.0 * counts_T ** -generator.uniform(0.2, 0.6, (num_domains, 1))
    return counts_T, law_KT * np.exp(0.01 * generator.standard_normal(law_KT.shape))


def smoothed(counts, losses_KT, options):
    size = len(range(options.ignore_steps, losses_KT.shape[1], options.every))
    points = triton_fit._empty(len(losses_KT), size, torch.device("cpu"))
    past = triton_fit._history(torch.from_numpy(counts), torch.from_numpy(losses_KT))
    triton_fit._smooth(past, points, options)
    return points


@pytest.mark.parametrize(
    "options",
    [
        FitOptions(smooth_window=11, every=3),
        FitOptions(smooth_window=101, ignore_steps=7, every=2),
        FitOptions(smooth_window=5, every=1),
        FitOptions(smooth_window=0, every=4),
    ],
)
def test_smoothing_skips_what_is_missing(options):
    counts_T, losses_KT = history(5, 61)
    losses_KT[1, :40] = np.nan  # came late
    losses_KT[2, [3, 9, 10, 33, 60]] = [np.inf, -1.0, 0.0, np.nan, np.nan]
    losses_KT[3, 3:] = np.nan  # three points: no cubic
    losses_KT[4] = np.nan
    points = smoothed(counts_T, losses_KT, options)
    expected_KM = prepare_losses(losses_KT, options)
    present_KM = np.isfinite(expected_KM)
    assert (points.w.numpy() == present_KM).all()
    np.testing.assert_allclose(points.y.numpy()[present_KM], np.log(expected_KM[present_KM]), rtol=0, atol=1e-13)
    kept = slice(options.ignore_steps, None, options.every)
    np.testing.assert_allclose(points.x.numpy(), np.log(np.tile(counts_T[kept], (5, 1))), rtol=1e-15)


def test_counts_of_the_domains_own():
    counts_T, losses_KT = history(2, 40)
    own_KT = np.stack([counts_T, 3.0 * counts_T + 5.0])
    points = smoothed(own_KT, losses_KT, FitOptions(smooth_window=0, every=1))
    np.testing.assert_allclose(points.x.numpy(), np.log(own_KT), rtol=1e-15)


def test_bins():
    """Equal widths of log n, and one bin for a domain whose count never moved."""
    generator = np.random.default_rng(1)
    x_KM = np.sort(generator.uniform(5.0, 12.0, (2, 300)))
    x_KM[1] = 7.0
    y_KM = generator.standard_normal(x_KM.shape)
    points = Points(*(torch.from_numpy(value) for value in (x_KM, y_KM, np.ones_like(x_KM))), 300)
    bins = triton_fit._empty(2, NUM_BINS, torch.device("cpu"))
    bin_kernel[(2, NUM_BINS)](points, bins, BLOCK=64)
    for k in range(2):
        filled = bins.w[k].numpy() > 0
        for ours, expected in zip((bins.x, bins.y, bins.w), bin_points(x_KM[k], y_KM[k]), strict=True):
            np.testing.assert_allclose(ours[k].numpy()[filled], expected, rtol=1e-13)


@triton.jit
def _one_step(points, theta_ptr, x0, damping, face, sums_ptr, new_ptr, DELTA: tl.constexpr):
    theta = (tl.load(theta_ptr), tl.load(theta_ptr + 1), tl.load(theta_ptr + 2))
    sums = newton_sums(points, theta, tl.full((), DELTA, tl.float64), 32)
    for i in tl.static_range(SUMS):
        tl.store(sums_ptr + i, sums[i])
    new, change = model_step(theta, sums, tl.load(x0), tl.load(damping), face)
    tl.store(new_ptr, new[0])
    tl.store(new_ptr + 1, new[1])
    tl.store(new_ptr + 2, new[2])
    tl.store(new_ptr + 3, change)


@pytest.mark.parametrize("face", range(5))
def test_sums_and_steps_are_numbas(face):
    """From anywhere, at any damping, held on a kink or free: the same sums, the same best piece of the model."""
    generator = np.random.default_rng(face)
    counts_T, losses_KT = history(1, 70, seed=face)
    arrays = np.log(counts_T), np.log(losses_KT[0]), generator.integers(0, 3, 70).astype(np.float64)
    x0 = float((arrays[0] * arrays[2]).sum() / arrays[2].sum())
    points = Points(*map(torch.from_numpy, arrays), 70)
    for _ in range(12):
        theta_P = np.array([generator.uniform(-2, 8), generator.uniform(-0.5, 1.5), generator.uniform(-0.1, 1.0)])
        if face:
            kinks = {1: (0, 6.5), 2: (1, 0.5), 3: (2, 0.8), 4: (2, 0.001)}
            theta_P[kinks[face][0]] = kinks[face][1]
        damping = 10.0 ** generator.uniform(-6, 3)
        ours, new = torch.empty(NUM_SUMS, dtype=torch.float64), torch.empty(4, dtype=torch.float64)
        scalars = (torch.tensor(value, dtype=torch.float64) for value in (x0, damping))
        _one_step[(1,)](points, torch.from_numpy(theta_P), *scalars, face, ours, new, DELTA=DELTA)
        sums, new_P = np.empty(NUM_SUMS), np.empty(3)
        numba_points.newton_sums(theta_P, arrays, DELTA, sums)
        np.testing.assert_allclose(ours.numpy(), sums, rtol=1e-9, atol=1e-9 * np.abs(sums).max())
        change = numba_step.model_step(theta_P, ours.numpy(), x0, damping, np.int64(face), new_P)
        assert new[3].item() == pytest.approx(change, rel=1e-7, abs=1e-13)
        np.testing.assert_allclose(new[:3].numpy(), new_P, rtol=1e-5, atol=1e-7)


def fitted(counts, losses_KT, options):
    ours, numbas = (scaling_law_fit(counts, losses_KT, options, backend) for backend in ("triton", "numba"))
    np.testing.assert_allclose(
        ours.objective, numbas.objective, rtol=0, atol=1e-9 * (np.nanmax(numbas.objective) + 1e-3)
    )
    assert (ours.num_points == numbas.num_points).all()
    assert (ours.valid == numbas.valid).all()
    x_M, losses_KM = np.log(counts[options.ignore_steps :: options.every]), prepare_losses(losses_KT, options)
    for k in np.flatnonzero(ours.valid):
        present = np.isfinite(losses_KM[k])
        data = x_M[present], np.log(losses_KM[k][present]), options.delta
        assert ours.objective[k] == pytest.approx(objective(ours.theta[k], *data), abs=1e-12)
        residual = np.sort(
            np.abs(data[1] - np.logaddexp(ours.theta[k, 0] - ours.theta[k, 2] * data[0], ours.theta[k, 1]))
        )
        assert ours.residual_scale[k] == pytest.approx(residual[(len(residual) - 1) // 2], rel=1e-6)  # lower median
    return ours


def test_the_same_minima():
    """With points missing, a domain that came late, one that has nothing, and more points than bins."""
    counts_T, losses_KT = history(3, 420)
    losses_KT[0, 5:9] = np.nan
    losses_KT[1, :300] = np.nan
    losses_KT[2] = np.nan
    ours = fitted(counts_T, losses_KT, FitOptions(smooth_window=11, every=2, **FEW))
    assert ours.valid.tolist() == [True, True, False]
    assert np.isnan(ours.theta[2]).all()


def test_minima_on_kinks_are_exactly_there():
    """Not at the kink rounded to float32, which a bare constant in a kernel would be."""
    counts_T = 256.0 * np.arange(1, 61)
    noise_T = np.exp(0.003 * np.random.default_rng(2).standard_normal(60))
    losses_KT = np.stack([1.8 + 40.0 * counts_T**-0.9, 1.0 + 4.0 * counts_T**-0.2]) * noise_T
    ours = fitted(counts_T, losses_KT, FitOptions(smooth_window=0, every=1, **FEW))
    assert ours.theta[0, 2] == ALPHA_HIGH_KINK
    assert ours.theta[1, 1] == LOG_EPS_KINK


@pytest.mark.parametrize("case", PAST)
def test_minima_past_a_kink(case):
    """A wide Huber loss lets the data push a parameter through its penalty."""
    parameter, kink, *_ = PAST[case]
    counts_T, loss_T = pushed_past(case, 40)
    ours = fitted(counts_T, loss_T[None], FitOptions(smooth_window=0, every=1, delta=0.3, **FEW))
    assert abs(ours.theta[0, parameter] - kink) > 0.01
    assert ours.at_bound[0, parameter]


def test_a_count_that_never_moves():
    """No width to bin: one bin, and any constant level fits."""
    noise_T = np.exp(0.01 * np.random.default_rng(5).standard_normal(220))
    fitted(np.full(220, 64.0), 3.0 * noise_T[None], FitOptions(smooth_window=0, every=1, **FEW))
