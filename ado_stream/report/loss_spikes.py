"""Steps whose loss stood out, in total and by domain, from a run's record alone.

A loss is compared with the same domain's last `window` losses before it: it stands out where it lies `threshold` robust
deviations above their median m. A robust deviation is 1.4826 times the median distance from m (of normal noise, its
standard deviation), and at least a thousandth of m, for losses that hardly vary. Medians: spikes in the window change
neither, as long as they are fewer than half. The first MIN_LOSSES of a domain are not judged. A loss that is not finite
always stands out. After a lasting rise every step is listed until half the window lies behind it.
"""

from dataclasses import dataclass

import numpy as np

from ado_stream.report.run_data import Run
from ado_stream.value_types import Floats

WINDOW, THRESHOLD, MIN_LOSSES = 64, 6.0, 16
_NORMAL = 1.4826
_LEAST = 1e-3
_LOSSES_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class Spike:
    """domain: None for the loss of all tokens. loss: NaN if not finite. deviations above median: inf then."""

    step: int
    domain: str | None
    loss: float
    median: float
    deviations: float


def find_spikes(run: Run, window: int = WINDOW, threshold: float = THRESHOLD) -> list[Spike]:
    """The spikes of a run by step, that of all tokens first, then those of the highest deviations."""
    num_drawn_S = run.samples_SK.sum(axis=1)
    series: list[tuple[str | None, Floats, Floats]] = [(None, run.loss_S, num_drawn_S)]
    series += [(name, run.domain_loss_SK[:, k], run.samples_SK[:, k]) for k, name in enumerate(run.domains)]
    spikes = []
    for domain, loss_S, drawn_S in series:
        place_M = np.flatnonzero(drawn_S > 0)  # elsewhere there is no loss
        median_M, deviations_M = deviations(loss_S[place_M], window)
        for m in np.flatnonzero(deviations_M >= threshold).tolist():
            step, loss = int(run.step_S[place_M[m]]), float(loss_S[place_M[m]])
            spikes.append(Spike(step, domain, loss, float(median_M[m]), float(deviations_M[m])))
    return sorted(spikes, key=lambda spike: (spike.step, spike.domain is not None, -spike.deviations))


def deviations(loss_M: Floats, window: int) -> tuple[Floats, Floats]:
    """(M,) medians of the finite losses before each, and (M,) how many robust deviations each lies above; inf: not
    finite, NaN: fewer than MIN_LOSSES (or `window`, if that is less) come before."""
    finite_M = np.isfinite(loss_M)
    median_M, deviations_M = np.full(loss_M.size, np.nan), np.where(finite_M, np.nan, np.inf)
    place_F = np.flatnonzero(finite_M)
    padded = np.concatenate([np.full(window, np.nan), loss_M[place_F]])  # entry f of windows: the losses before f
    first = min(MIN_LOSSES, window)
    for begin in range(first, place_F.size, _LOSSES_AT_ONCE):
        end = min(begin + _LOSSES_AT_ONCE, place_F.size)
        before_FW = np.lib.stride_tricks.sliding_window_view(padded[begin : end + window - 1], window)
        median_F = np.nanmedian(before_FW, axis=1)
        spread_F = _NORMAL * np.nanmedian(np.abs(before_FW - median_F[:, None]), axis=1)
        scale_F = np.maximum(spread_F, _LEAST * np.abs(median_F))
        place = place_F[begin:end]
        median_M[place] = median_F
        deviations_M[place] = (loss_M[place] - median_F) / np.maximum(scale_F, np.finfo(np.float64).tiny)
    return median_M, deviations_M
