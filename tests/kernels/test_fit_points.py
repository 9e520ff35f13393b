"""The sums over points: vectorised exp and log against libm, gradient and matrices against finite differences."""

import numpy as np
import pytest

from ado_kernels.fit.numba_points import fast_exp, fast_log, huber_sum, newton_sums
from ado_kernels.fit.numba_step import model_step, penalty_value, solve_held
from ado_kernels.fit.objective import objective, penalty
from ado_kernels.fit.step_algebra import FACE_ALPHA_HIGH, GRADIENT, INNER, LOSS, NO_FACE, NUM_SUMS, OUTER

THETA = np.array([2.4, 0.7, 0.32])


@pytest.fixture
def points():
    generator = np.random.default_rng(5)
    x = np.log(256.0 * np.arange(100, 400))
    y = np.logaddexp(THETA[0] - THETA[2] * x, THETA[1]) + 0.002 * generator.standard_normal(x.size)
    return x, y, generator.uniform(0.5, 3.0, x.size)


def test_exp_and_log_equal_libm():
    """Degree 10 on [-ln2/2, ln2/2] leaves 3e-13 relative; the series of log to w^15 leaves 4e-13 times w."""
    x = np.linspace(-600.0, 600.0, 20001)
    assert np.max(np.abs(np.array([fast_exp(v) for v in x]) / np.exp(x) - 1.0)) < 4e-13
    s = np.concatenate([1.0 + np.geomspace(1e-17, 1.0, 2000), np.geomspace(1.0, 1e250, 4000)])
    assert np.max(np.abs(np.array([fast_log(v) for v in s]) - np.log(s)) / np.maximum(1.0, np.log(s))) < 5e-14


def test_vectorised_sum_equals_plain_f(points):
    """The loop is compiled with reassociation: were exp's rounding trick folded away, F would be off by whole units."""
    x, y, _ = points
    ones = np.ones(x.size)
    assert huber_sum(THETA, (x, y, ones), 1e-3) + penalty(THETA) == pytest.approx(
        objective(THETA, x, y, 1e-3), rel=1e-10
    )


def test_gradient_equals_central_differences(points):
    """Step 1e-6 on a sum near 1: truncation 1e-9, rounding 1e-10."""
    sums = np.empty(NUM_SUMS)
    newton_sums(THETA, points, 0.01, sums)
    assert sums[LOSS] == pytest.approx(huber_sum(THETA, points, 0.01), rel=1e-12)
    for p in range(3):
        step = np.zeros(3)
        step[p] = 1e-6
        slope = (huber_sum(THETA + step, points, 0.01) - huber_sum(THETA - step, points, 0.01)) / 2e-6
        assert sums[GRADIENT[p]] == pytest.approx(slope, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("delta", [1e-3, 1.0])
def test_matrices_equal_their_definition(points, delta):
    x, y, w = points
    sums = np.empty(NUM_SUMS)
    newton_sums(THETA, points, delta, sums)
    share = 1.0 / (1.0 + np.exp(-(THETA[0] - THETA[1] - THETA[2] * x)))
    jacobian = np.stack([share, 1.0 - share, -x * share], axis=1)
    size = np.abs(y - np.logaddexp(THETA[0] - THETA[2] * x, THETA[1]))
    order = ([0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2])
    inner = (jacobian * (w * (size <= delta))[:, None]).T @ jacobian
    outer = (jacobian * (w * (size > delta) * delta / size)[:, None]).T @ jacobian
    assert np.allclose(sums[list(INNER)], inner[order], rtol=1e-9, atol=1e-12)
    assert np.allclose(sums[list(OUTER)], outer[order], rtol=1e-9, atol=1e-12)


def test_penalty_equals_its_formula():
    for theta in ([7.0, 0.2, 0.9], [6.5, 0.5, 0.8], [0.0, 1.0, -0.3], [6.4, 0.6, 0.0005]):
        assert penalty_value(*theta) == penalty(np.array(theta))


def test_solve_keeps_what_is_held():
    generator = np.random.default_rng(0)
    root = generator.standard_normal((3, 3))
    matrix = root @ root.T + 0.1 * np.eye(3)
    gradient = generator.standard_normal(3)
    for held in ((False, False, False), (True, False, False), (False, True, True), (True, True, False)):
        d = np.array([0.3, -0.2, 0.1])
        fixed = d.copy()
        six = tuple(matrix[[0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]])
        assert solve_held(six, tuple(gradient), held, d)
        free = ~np.array(held)
        expected = fixed.copy()
        right = -(gradient + matrix[:, ~free] @ fixed[~free])
        expected[free] = np.linalg.solve(matrix[np.ix_(free, free)], right[free])
        assert np.allclose(d, expected, rtol=1e-12)


def test_a_step_never_leaves_its_face(points):
    theta = np.array([2.4, 0.7, 0.8])
    sums, new = np.empty(NUM_SUMS), np.empty(3)
    newton_sums(theta, points, 1e-3, sums)
    assert model_step(theta, sums, points[0].mean(), 1.0, FACE_ALPHA_HIGH, new) < 0.0
    assert new[2] == 0.8
    assert model_step(theta, sums, points[0].mean(), 1.0, NO_FACE, new) < 0.0
