"""The fit on a real GPU reaches the minima that the CPU's does: golden records, hard histories, a CUDA graph.

Bars: those of test_fit_minimum.py, and F written out in float64. Without a GPU the same tests run on the CPU's fit, on
less.
"""

import numpy as np
import pytest
import torch

from ado_kernels import scaling_law_fit
from ado_kernels.fit.numba_smoothing import prepare_losses
from ado_kernels.fit.objective import FitOptions, log_law, objective
from tests.kernels.devices import ON_GPU, each, gpu_only
from tests.kernels.test_fit_minimum import AS_IS, BAR, CASES, PAST, assert_golden, histories, pushed_past, refits_of

pytestmark = [pytest.mark.gpu] if ON_GPU else []
BACKEND = "triton" if ON_GPU else "numba"


def assert_objective_is_written_out(found, counts_T, loss_KT, options):
    """F and the middle residual at the parameters, in plain NumPy; exp and log are off by 4e-13, a sum by its terms.

    Of an even number the GPU takes the lower of the two middle residuals, NumPy their mean.
    """
    kept = np.log(counts_T[options.ignore_steps :: options.every])
    smooth_KM = prepare_losses(loss_KT, options)
    for k in range(len(loss_KT)):
        plain = objective(found.theta[k], kept, np.log(smooth_KM[k]), options.delta)
        assert found.objective[k] == pytest.approx(plain, abs=4e-13 * options.delta * len(kept), rel=1e-12)
        residual_M = np.sort(np.abs(np.log(smooth_KM[k]) - log_law(found.theta[k], kept)))
        lower, upper = residual_M[(len(kept) - 1) // 2], residual_M[len(kept) // 2]
        assert lower - 1e-12 <= found.residual_scale[k] <= upper + 1e-12


@each("case", CASES, CASES[:1])
def test_golden_minima(golden, case):
    fits = list(refits_of(golden, case, BACKEND))
    assert_golden(fits)
    for found, counts_T, loss_KT, options, *_ in fits:
        assert_objective_is_written_out(found, counts_T, loss_KT, options)


@each("num_points", [60, 240, 3000, 30000], [60])
@pytest.mark.parametrize("options", [AS_IS, FitOptions()], ids=["as they are", "smoothed"])
def test_hard_histories_are_not_above_the_cpu(num_points, options):
    """Flat, rising, spiky, heavy-tailed, bent, with a bump."""
    counts_T, loss_KT, names = histories(num_points)
    found, cpu = (scaling_law_fit(counts_T, loss_KT, options, backend) for backend in (BACKEND, "numba"))
    assert_objective_is_written_out(found, counts_T, loss_KT, options)
    assert (found.num_points == cpu.num_points).all()
    for k, name in enumerate(names):
        assert found.objective[k] <= cpu.objective[k] + BAR * (cpu.objective[k] + 0.001), name


@pytest.mark.parametrize("case", PAST)
def test_minima_past_a_kink(case):
    """A wide Huber loss lets the data push through a penalty."""
    parameter, kink, *_ = PAST[case]
    counts_T, loss_T = pushed_past(case, 1500)
    options = FitOptions(smooth_window=0, every=1, delta=0.3)
    found, cpu = (scaling_law_fit(counts_T, loss_T[None], options, backend) for backend in (BACKEND, "numba"))
    assert found.objective[0] <= cpu.objective[0] + BAR * (cpu.objective[0] + 0.001)
    assert abs(found.theta[0, parameter] - kink) > 0.01
    assert found.at_bound[0, parameter]


def test_missing_points_late_domains_and_domains_without_any():
    counts_T, loss_KT, _ = histories(600)
    loss_KT[0, 5:40] = np.nan
    loss_KT[1, :500] = np.nan
    loss_KT[2] = np.nan
    loss_KT[3, ::7] = [np.inf, -1.0, 0.0] * 28 + [np.inf, -1.0]
    found, cpu = (scaling_law_fit(counts_T, loss_KT, FitOptions(), backend) for backend in (BACKEND, "numba"))
    assert (found.num_points == cpu.num_points).all()
    assert found.valid.tolist() == cpu.valid.tolist() == [True, True, False] + [True] * 5
    kept = cpu.valid
    assert (found.objective[kept] <= cpu.objective[kept] + BAR * (cpu.objective[kept] + 0.001)).all()


@gpu_only
def test_a_cuda_graph_fits_new_losses():
    """Nothing waits for the device: recorded on one history, replayed on another, the same numbers as at once."""
    from ado_kernels.fit.triton_fit import fit_on_device

    counts_T, loss_KT, _ = histories(600)
    counts, held, fresh = (torch.from_numpy(value).cuda() for value in (counts_T, loss_KT, loss_KT[::-1].copy()))
    options = FitOptions()
    expected = fit_on_device(counts, fresh, options)
    graph = torch.cuda.CUDAGraph()
    fit_on_device(counts, held, options)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        captured = fit_on_device(counts, held, options)
    held.copy_(fresh)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, expected)


@pytest.mark.gpu(count=2)
def test_tensors_of_another_device_than_the_current_one():
    from ado_kernels.fit.triton_fit import fit_on_device

    arrays = [torch.from_numpy(value) for value in histories(600)[:2]]
    one, other = (fit_on_device(*(array.to(f"cuda:{i}") for array in arrays), FitOptions()) for i in (1, 0))
    assert one.device.index == 1
    assert torch.equal(one.cpu(), other.cpu())
