"""Which mixture is in force at which step: the meeting point of whoever decides and whoever draws.

Invariant: a step's mixture never changes once the step was drawn. Every wait ends: with the mixture, with `stop`, or
with an error that names the missing call.
"""

import threading
import time

import numpy as np

from ado_stream.errors import ConfigError, PolicyError
from ado_stream.stream.mailbox import Mailbox

_GLANCE_S = 0.05  # between looks at what another process may have posted


class MixtureBoard:
    """Mixtures by step. With a lag, steps 0 .. lag take the prior unless published, later ones wait to be published.

    lag None: a step without a mixture of its own takes the last one published for an earlier step, else the prior.
    """

    def __init__(self, prior_K: np.ndarray, lag: int | None):
        self.prior_K, self.lag = prior_K, lag
        self._published: dict[int, np.ndarray] = {}
        self._drawn: dict[int, np.ndarray] = {}
        self._held_K = prior_K
        self._next_to_draw = 0
        self._changed = threading.Condition()
        self._mailbox = Mailbox(prior_K.size)

    def publish(self, step: int, mixture_K: np.ndarray) -> None:
        """Sets the mixture of `step`. The same one again is harmless.

        mixture_K: (K,) float >= 0 that sum to 1 within 1e-6. Raises PolicyError for other input, and when the step
        was already drawn with another mixture.
        """
        mixture_K = self._checked(step, mixture_K)
        if not self._mailbox.is_read_here:
            self._mailbox.post(step, mixture_K)
            if self._mailbox.is_read_elsewhere:
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
            self._published[step] = mixture_K
            self._changed.notify_all()

    def open(self) -> None:
        """Says that this process draws: the one that publishes, or a forked copy of it."""
        self._mailbox.open()

    def close(self) -> None:
        """Says that it draws no more."""
        self._mailbox.close()

    @property
    def is_read_elsewhere(self) -> bool:
        """Whether a forked copy in another process draws, so that nothing is known here of where it stands."""
        return self._mailbox.is_read_elsewhere

    def known(self, step: int) -> np.ndarray | None:
        """The mixture of `step` if it is decided already, else None."""
        with self._changed:
            return self._find(step)

    def take(self, step: int, deadline_s: float, stop: threading.Event) -> np.ndarray | None:
        """The mixture of `step`, fixed from now on; None if `stop` was set first.

        Waits up to `deadline_s`, then raises PolicyError that names the missing call.
        """
        end = time.monotonic() + deadline_s
        with self._changed:
            while True:
                self._published.update(self._mailbox.collect(self._next_to_draw))
                if (mixture_K := self._find(step)) is not None:
                    break
                if stop.is_set():
                    return None
                if time.monotonic() >= end:
                    raise PolicyError(self.missing(step) + f"\n  Waited {deadline_s:.0f} s.")
                self._changed.wait(min(_GLANCE_S, max(0.0, end - time.monotonic())))
            self._drawn[step] = mixture_K
            self._held_K = mixture_K
            self._published.pop(step, None)
            self._next_to_draw = step + 1
            return mixture_K

    def missing(self, step: int) -> str:
        """What to call so that `step` can be drawn."""
        told = step - 1 - (self.lag or 0)
        return (
            f"the mixture of step {step} is not known: loader.observe() was not called for step {told} (mixture_lag "
            f"{self.lag}), nor dataset.publish({step}, mixture).\n"
            f"  Call one of them at every step, or keep one mixture with mixture_lag=None."
        )

    def wake(self) -> None:
        """Lets a waiting `take` look at its `stop`."""
        with self._changed:
            self._changed.notify_all()

    def forget(self, before: int) -> None:
        """Drops the record of drawn steps before `before`."""
        with self._changed:
            while self._drawn and (oldest := next(iter(self._drawn))) < before:  # drawn in the order of steps
                del self._drawn[oldest]

    def pending(self, first: int) -> dict[int, np.ndarray]:
        """Every decided mixture from step `first` on, drawn or not, and under the key -1 the one held without a lag."""
        with self._changed:
            found = {step: mixture for step, mixture in (self._drawn | self._published).items() if step >= first}
            held = [step for step in self._drawn if step < first]
            if self.lag is None:
                found[-1] = self._drawn[max(held)] if held else self.prior_K if first == 0 else self._held_K
            return found

    def load(self, first: int, pending: dict[int, np.ndarray]) -> None:
        """Starts over at step `first` with the mixtures of `pending`."""
        with self._changed:
            self._mailbox.clear()
            self._published = {step: mixture for step, mixture in pending.items() if step >= first}
            self._held_K = pending.get(-1, self.prior_K)
            self._drawn = {}
            self._next_to_draw = first
            self._changed.notify_all()

    def _find(self, step: int) -> np.ndarray | None:
        if step in self._drawn:
            return self._drawn[step]
        if step in self._published:
            return self._published[step]
        if self.lag is None:
            return (
                self._published[max(earlier)] if (earlier := [s for s in self._published if s < step]) else self._held_K
            )
        return self.prior_K if step <= self.lag else None

    def _checked(self, step: int, mixture: np.ndarray) -> np.ndarray:
        mixture_K = np.array(mixture, np.float64)
        if mixture_K.shape != self.prior_K.shape:
            raise PolicyError(
                f"publish({step}, ...): shape {mixture_K.shape}; expected {self.prior_K.shape}, one per domain."
            )
        if not np.isfinite(mixture_K).all() or (mixture_K < 0).any() or abs(mixture_K.sum() - 1) > 1e-6:
            raise PolicyError(
                f"publish({step}, ...): not a mixture; smallest {mixture_K.min()}, sum {mixture_K.sum()}. Expected "
                f"probabilities >= 0 that sum to 1."
            )
        if step < 0:
            raise ConfigError(f"publish({step}, ...): steps begin at 0.")
        return mixture_K
