"""Retries: a cap in attempts, a deadline in seconds, pauses with full jitter, no shorter than a store asks for.

Invariant: no call outlives `total_deadline_s` by more than one `read_timeout_s`, and every wait can be stopped.
Source of the jitter: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 ("full jitter").
"""

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from ado_stream.errors import AccessDenied, AdoStreamError, ConfigError, DataError, NotFound, StorageError, Throttled
from ado_stream.redact import without_user

T = TypeVar("T")
_MAX_DIGITS = 9
POLL_S = 0.02  # between checks while waiting for other processes, which cannot notify


@dataclass(frozen=True)
class RetryPolicy:
    """Bounds of one object's download; times in seconds. Every attempt and pause ends when `stop` is set.

    An attempt that receives fewer than `min_bytes_per_s` over a `read_timeout_s` counts as stalled and is repeated.
    `max_downloads` bounds how often an object is downloaded whole when its content differs from the index.
    """

    attempts: int = 12
    total_deadline_s: float = 300.0
    read_timeout_s: float = 30.0
    base_delay_s: float = 0.25
    max_delay_s: float = 10.0
    min_bytes_per_s: float = 16_384.0
    max_downloads: int = 3
    random: Callable[[], float] = random.random  # uniform in [0, 1); tests inject their own
    clock: Callable[[], float] = time.monotonic
    stop: threading.Event | None = None

    def __post_init__(self) -> None:
        if min(self.attempts, self.max_downloads) < 1 or min(self.total_deadline_s, self.read_timeout_s) <= 0:
            raise ConfigError(f"{self}: attempts and max_downloads must be at least 1, deadlines positive.")

    def delay_s(self, attempt: int) -> float:
        """Seconds to wait after failed attempt number `attempt` (1, 2, ...): uniform in [0, min(max, base 2^(n-1)))."""
        return self.random() * min(self.max_delay_s, self.base_delay_s * 2.0 ** min(attempt - 1, 60))


_ADVICE = {
    NotFound: "Check the path or URL, and that index.json lists what is there.",
    AccessDenied: "Renew or fix the credentials or permissions (on S3, 403 also hides a missing key without "
    "s3:ListBucket).",
    DataError: "Open the data again; a saved state of the old data does not fit the new.",
    Throttled: "Lower the number of io threads, or try again later.",
}


class AttemptError(Exception):
    """One attempt failed: the public error to raise at the end, whether a retry can help, and the least pause."""

    def __init__(self, error: type[AdoStreamError], reason: str, *, transient: bool, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.error, self.reason, self.transient, self.wait_s = error, reason, transient, wait_s


def retry_after_s(headers: object) -> float:
    """The seconds of Retry-After in an answer's headers; 0 where there is none, or a date."""
    value = headers.get("retry-after") if isinstance(headers, Mapping) else None
    return float(value) if isinstance(value, str) and value.isdecimal() and len(value) < _MAX_DIGITS else 0.0


class StoppedError(StorageError):
    """The download or wait was cancelled: the loader is closing, or another of several reads failed."""


def raise_if_stopped(stop: threading.Event | None, what: str) -> None:
    """Raises StoppedError when `stop` is set."""
    if stop is not None and stop.is_set():
        raise StoppedError(f"{what}: cancelled, as the loader is closing or another read failed.")


class Deadline:
    """A bounded wait for other threads or processes, in short sleeps."""

    def __init__(self, seconds: float, what: str = "", stop: threading.Event | None = None) -> None:
        self.seconds, self.what, self.stop = seconds, what, stop
        self._until = time.monotonic() + seconds

    @property
    def passed(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() >= self._until

    def wait(self) -> bool:
        """Sleeps briefly; False when the deadline has passed. Raises StoppedError when `stop` is set."""
        raise_if_stopped(self.stop, self.what)
        time.sleep(POLL_S)
        return not self.passed


class DownloadMonitor:
    """Ends a download that is stopped, past its deadline, or too slow."""

    def __init__(self, policy: RetryPolicy, what: str) -> None:
        self.policy, self.what = policy, what
        self.started = policy.clock()
        self.begin_attempt()

    def begin_attempt(self) -> None:
        """Resets the count of bytes."""
        self._window_start, self._window_bytes = self.policy.clock(), 0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the first attempt began."""
        return self.policy.clock() - self.started

    @property
    def remaining_s(self) -> float:
        """Seconds left until the total deadline; negative after it."""
        return self.policy.total_deadline_s - self.elapsed_s

    def check(self) -> None:
        """Raises StoppedError when the policy's `stop` is set, AttemptError past the total deadline."""
        raise_if_stopped(self.policy.stop, self.what)
        if self.remaining_s < 0:
            raise AttemptError(StorageError, "total deadline reached while receiving", transient=False)

    def received(self, num_bytes: int) -> None:
        """Counts received bytes; raises as `check`, and AttemptError after a read timeout with too few."""
        self.check()
        self._window_bytes += num_bytes
        window_s = self.policy.clock() - self._window_start
        if window_s >= self.policy.read_timeout_s:
            rate = self._window_bytes / window_s
            if rate < self.policy.min_bytes_per_s:
                raise AttemptError(StorageError, f"only {rate:.0f} bytes/s for {window_s:.1f} s", transient=True)
            self.begin_attempt()

    def pause(self, seconds: float) -> None:
        """Sleeps until the time is over or the policy's `stop` is set."""
        if self.policy.stop is None:
            time.sleep(seconds)
        else:
            self.policy.stop.wait(seconds)


def with_retries(call: Callable[[], T], monitor: DownloadMonitor) -> tuple[T, int]:
    """The result of `call` and the number of attempts it took.

    `call` raises AttemptError for a failed attempt; any other exception passes through.

    Raises:
        StorageError: or NotFound, AccessDenied, Throttled, as the last AttemptError says, with attempts and seconds.
    """
    policy = monitor.policy
    for attempt in range(1, policy.attempts + 1):
        monitor.begin_attempt()
        try:
            monitor.check()
            return call(), attempt
        except AttemptError as failure:
            delay_s = failure.wait_s + policy.delay_s(attempt)  # jitter on top: all ranks were asked to wait as long
            if not failure.transient or attempt == policy.attempts or delay_s >= monitor.remaining_s:
                tries = f"{attempt} attempt{'s' if attempt > 1 else ''}"
                reason = without_user(failure.reason, monitor.what)
                text = f"{monitor.what}: {reason} ({tries} in {monitor.elapsed_s:.1f} s)."
                # Without its cause: the clients' messages, printed in a traceback, may hold credentials.
                advice = f"\n  {_ADVICE[failure.error]}" if failure.error in _ADVICE else ""
                raise failure.error(text + advice) from None
        monitor.pause(delay_s)
    raise AssertionError("the last attempt returns or raises")
