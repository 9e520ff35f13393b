"""Histories of many domains as one array each of log n, log loss and weight, for backends that work on all at once.

A domain's points come first in its row; the rest has weight 0 and repeats the first point, so that every formula stays
finite there.
"""

from typing import NamedTuple

import numpy as np

from ado_kernels.fit.problem import FitOptions, log_law
from ado_kernels.fit.smoothing import prepare


class Padded(NamedTuple):
    """x_KM: log n; y_KM: log loss; w_KM: 1 or 0; num_points_K: int64; x0_K: mean log n of the domain's points."""

    x_KM: np.ndarray
    y_KM: np.ndarray
    w_KM: np.ndarray
    num_points_K: np.ndarray
    x0_K: np.ndarray

    def rows(self, domains: np.ndarray) -> "Padded":
        """The same for some of the domains."""
        return Padded(*(value[domains] for value in self))

    def residual_scale(self, theta_KP: np.ndarray) -> np.ndarray:
        """(K,) median |log L_obs - log L|, NaN where there is no point."""
        scale_K = np.full(len(theta_KP), np.nan)
        for k in np.flatnonzero(self.num_points_K):
            size = slice(0, self.num_points_K[k])
            scale_K[k] = np.median(np.abs(self.y_KM[k, size] - log_law(theta_KP[k], self.x_KM[k, size])))
        return scale_K


def pad_history(counts: np.ndarray, loss_KT: np.ndarray, options: FitOptions) -> Padded:
    """Smooths and thins as `options` says; counts (T,) or (K, T)."""
    loss_KM = prepare(loss_KT, options)
    count_KM = np.broadcast_to(counts, loss_KT.shape)[:, options.ignore_steps :: options.every]
    present_KM = loss_KM > 0.0  # False for NaN
    num_points_K = present_KM.sum(axis=1)
    order_KM = np.argsort(~present_KM, axis=1, kind="stable")[:, : num_points_K.max(initial=0)]
    w_KM = np.take_along_axis(present_KM, order_KM, axis=1).astype(np.float64)
    order_KM = np.where(w_KM > 0.0, order_KM, order_KM[:, :1])
    loss_KM = np.where(present_KM, loss_KM, 1.0)
    x_KM = np.log(np.take_along_axis(count_KM, order_KM, axis=1))
    y_KM = np.log(np.take_along_axis(loss_KM, order_KM, axis=1))
    x0_K = (w_KM * x_KM).sum(axis=1) / np.maximum(num_points_K, 1)
    return Padded(x_KM, y_KM, w_KM, num_points_K, x0_K)
