"""Mixtures by step: published by the training loop, taken by the thread that draws, perhaps in a forked process.

Invariant: a step's mixture never changes once the step was drawn. Every wait ends: with the mixture, with `stop`, or
with an error that names the missing call.
"""

import threading
import time

import numpy as np

from ado_stream.errors import PolicyError
from ado_stream.option_checks import floats, whole
from ado_stream.stream.shared_mixtures import SharedMixtures
from ado_stream.value_types import Floats

_POLL_S = 0.05  # between checks of what another process may have posted, which cannot notify


def is_mixture(mixture_K: Floats) -> bool:
    """Whether these are probabilities: >= 0, with a sum of 1 within 1e-6."""
    return bool(np.isfinite(mixture_K).all() and (mixture_K >= 0).all() and abs(mixture_K.sum() - 1) <= 1e-6)


class MixtureBoard:
    """Mixtures by step. With a lag, steps 0 .. lag take the prior unless published, later ones wait to be published.

    lag None: a step without a mixture of its own takes the last one published for an earlier step, else the prior.

    After a fork (a DataLoader's worker), the copy that draws is in the worker and the one that publishes is not; they
    share `_shared` alone.
    """

    def __init__(self, prior_K: Floats, lag: int | None):
        self.prior_K, self.lag = prior_K, lag
        self._published: dict[int, Floats] = {}
        self._drawn: dict[int, Floats] = {}
        self._last_drawn_K = prior_K
        self._next_to_draw = 0
        self._any_published = False  # since the start or the last load
        self._changed = threading.Condition()
        self._shared = SharedMixtures(prior_K.size)

    def publish(self, step: int, mixture_K: Floats) -> None:
        """Sets the mixture of `step`. The same one again is harmless.

        mixture_K: (K,) float >= 0 that sum to 1 within 1e-6. Raises PolicyError for other input, ConfigError for what
        is no step, and PolicyError when the step was already drawn with another mixture; nothing has changed then.
        """
        step = whole("publish: step", step)
        mixture_K = self._checked(step, mixture_K)
        # Post before checking who reads: a worker that opens in between collects it, and until one opens it is kept
        # here.
        if not self._shared.is_read_here:
            self._shared.post(step, mixture_K)
            if self._shared.is_read_elsewhere:
                return
        with self._changed:
            if step < self._next_to_draw:
                drawn = self._drawn.get(step)
                if drawn is None or not np.array_equal(drawn, mixture_K):
                    raise PolicyError(
                        f"publish({step}, ...): step {step} was already drawn with another mixture; the next step to "
                        f"draw is {self._next_to_draw}.\n  Publish earlier, or give the data set a larger mixture_lag."
                    )
                return
            self._any_published = True
            self._published[step] = mixture_K
            self._changed.notify_all()

    def open(self) -> None:
        """Makes this process the one that draws: the publishing one or a fork of it."""
        self._shared.open()

    def close(self) -> None:
        """Ends drawing in this process."""
        self._shared.close()

    @property
    def is_read_elsewhere(self) -> bool:
        """Whether another process draws; its step and cursors are then unknown here."""
        return self._shared.is_read_elsewhere

    def known(self, step: int) -> Floats | None:
        """The mixture of `step` if it is published or follows from the lag, else None."""
        with self._changed:
            return self._find(step)

    def check_publisher(self, step: int) -> None:
        """Raises PolicyError when `step` has no mixture and none was ever published, so that none can be expected.

        For the consumer, which has all steps before `step`. A fork waits: another process publishes to it.
        """
        if not self._any_published and not self._shared.is_fork and self.known(step) is None:
            raise PolicyError(self._missing(step))

    def take(self, step: int, timeout_s: float, stop: threading.Event) -> Floats | None:
        """The mixture of `step`, fixed from now on; None if `stop` was set first.

        Waits up to `timeout_s`, then raises a PolicyError that names the missing call.
        """
        end = time.monotonic() + timeout_s
        with self._changed:
            while True:
                self._published.update(self._shared.collect(self._next_to_draw))
                if (mixture_K := self._find(step)) is not None:
                    break
                if stop.is_set():
                    return None
                if time.monotonic() >= end:
                    raise PolicyError(self._missing(step) + f"\n  Waited {timeout_s:.0f} s.")
                self._changed.wait(min(_POLL_S, max(0.0, end - time.monotonic())))
            self._drawn[step] = self._last_drawn_K = mixture_K
            self._published.pop(step, None)
            self._next_to_draw = step + 1
            return mixture_K

    def wake(self) -> None:
        """Makes a waiting `take` check its `stop`."""
        with self._changed:
            self._changed.notify_all()

    def forget(self, before: int) -> None:
        """Drops the record of drawn steps before `before`."""
        with self._changed:
            while self._drawn and (oldest := next(iter(self._drawn))) < before:  # drawn in the order of steps
                del self._drawn[oldest]

    def pending(self, first: int) -> dict[int, Floats]:
        """Every mixture known from step `first` on, drawn or not; without a lag also, as -1, that of step first - 1."""
        with self._changed:
            found = {step: mixture for step, mixture in (self._drawn | self._published).items() if step >= first}
            if self.lag is None:
                # Drawing may be ahead of `first`: `_last_drawn_K` is then a later step's.
                earlier = [step for step in self._drawn if step < first]
                found[-1] = self._drawn[max(earlier)] if earlier else self.prior_K if first == 0 else self._last_drawn_K
            return found

    def load(self, first: int, pending: dict[int, Floats]) -> None:
        """Restarts at step `first` with the mixtures of `pending`."""
        with self._changed:
            self._shared.clear()
            self._published = {step: mixture for step, mixture in pending.items() if step >= first}
            self._any_published = False
            self._last_drawn_K = pending.get(-1, self.prior_K)
            self._drawn = {}
            self._next_to_draw = first
            self._changed.notify_all()

    def _find(self, step: int) -> Floats | None:
        if step in self._drawn:
            return self._drawn[step]
        if step in self._published:
            return self._published[step]
        if self.lag is None:
            earlier = [other for other in self._published if other < step]
            return self._published[max(earlier)] if earlier else self._last_drawn_K
        return self.prior_K if step <= self.lag else None

    def _missing(self, step: int) -> str:
        """What to call so that `step` can be drawn."""
        observed = step - 1 - (self.lag or 0)
        return (
            f"the mixture of step {step} is missing: neither loader.observe() for step {observed} (mixture_lag "
            f"{self.lag}) nor dataset.publish({step}, mixture) was called.\n"
            f"  Call one of them at every step, or keep one mixture with mixture_lag=None."
        )

    def _checked(self, step: int, mixture: Floats) -> Floats:
        mixture_K = floats(mixture)
        if mixture_K is None:
            raise PolicyError(f"publish({step}, ...): {mixture!r:.80} is no array of numbers.")
        if mixture_K.shape != self.prior_K.shape:
            raise PolicyError(
                f"publish({step}, ...): shape {mixture_K.shape}; expected {self.prior_K.shape}, one per domain."
            )
        if not is_mixture(mixture_K):
            raise PolicyError(
                f"publish({step}, ...): not a mixture; smallest {mixture_K.min()}, sum {mixture_K.sum()}. Expected "
                f"probabilities >= 0 that sum to 1."
            )
        return mixture_K
