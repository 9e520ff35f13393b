"""The retry rules against a clock and a random source of our own: no sleeping, exact numbers."""

import threading

import pytest

from ado_stream.errors import ConfigError, NotFound, StorageError, Throttled
from ado_stream.storage.retry import (
    AttemptError,
    DownloadMonitor,
    RetryPolicy,
    StoppedError,
    retry_after_s,
    with_retries,
)


class Clock:
    """Seconds that pass only when told."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """A clock that `time.sleep` of the retries moves."""
    clock = Clock()
    monkeypatch.setattr(
        "ado_stream.storage.retry.time.sleep", lambda seconds: setattr(clock, "now", clock.now + seconds)
    )
    return clock


def failing(times, error=Throttled, transient=True, wait_s=0.0):
    """A call that fails so many times, then returns "done"."""
    left = [times]

    def call():
        if left[0] > 0:
            left[0] -= 1
            raise AttemptError(error, "HTTP 503", transient=transient, wait_s=wait_s)
        return "done"

    return call


def test_delays_double_up_to_the_cap_and_are_jittered_from_zero():
    highest = RetryPolicy(base_delay_s=0.5, max_delay_s=10.0, random=lambda: 1.0)
    assert [highest.delay_s(n) for n in range(1, 8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert RetryPolicy(random=lambda: 0.0).delay_s(5) == 0.0
    assert RetryPolicy(random=lambda: 0.25).delay_s(10_000) == 2.5


def test_success_after_failures_counts_the_attempts(clock):
    policy = RetryPolicy(random=lambda: 1.0, clock=clock, base_delay_s=1.0)
    assert with_retries(failing(3), DownloadMonitor(policy, "s3://b/k")) == ("done", 4)
    assert clock.now == 1.0 + 2.0 + 4.0


def test_attempts_are_capped_and_the_message_names_object_attempts_seconds_advice(clock):
    policy = RetryPolicy(attempts=3, random=lambda: 1.0, clock=clock, base_delay_s=1.0)
    with pytest.raises(Throttled) as caught:
        with_retries(failing(99), DownloadMonitor(policy, "s3://b/k"))
    assert (
        str(caught.value)
        == "s3://b/k: HTTP 503 (3 attempts in 3.0 s).\n  Lower the number of io threads, or try again later."
    )


def test_no_pause_crosses_the_total_deadline(clock):
    policy = RetryPolicy(attempts=1000, total_deadline_s=10.0, random=lambda: 1.0, clock=clock, base_delay_s=1.0)
    with pytest.raises(Throttled, match="4 attempts in 7.0 s"):  # 1 + 2 + 4; the next pause of 8 s would end at 15
        with_retries(failing(9999), DownloadMonitor(policy, "s3://b/k"))
    assert clock.now <= 10.0


def test_a_pause_is_no_shorter_than_the_store_asks_for(clock):
    policy = RetryPolicy(random=lambda: 1.0, clock=clock, base_delay_s=1.0)
    assert with_retries(failing(2, wait_s=30.0), DownloadMonitor(policy, "s3://b/k")) == ("done", 3)
    assert clock.now == 30.0 + 1.0 + 30.0 + 2.0
    with pytest.raises(Throttled, match=r"\(1 attempt in"):  # it would be over after the deadline
        with_retries(failing(1, wait_s=400.0), DownloadMonitor(policy, "s3://b/k"))


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "12"}, 12.0),
        ({"retry-after": "Fri, 27 Nov 2026 10:00:00 GMT"}, 0.0),
        ({"retry-after": "9" * 400}, 0.0),
        ({"retry-after": "-1"}, 0.0),
        ({}, 0.0),
        (None, 0.0),
    ],
)
def test_seconds_to_wait_are_read_or_nothing(headers, expected):
    assert retry_after_s(headers) == expected


def test_what_trying_again_cannot_help_ends_at_once(clock):
    with pytest.raises(NotFound, match=r"\(1 attempt in 0.0 s\)"):
        with_retries(failing(9, NotFound, transient=False), DownloadMonitor(RetryPolicy(clock=clock), "s3://b/k"))


def test_other_exceptions_pass_through_untouched(clock):
    def broken():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        with_retries(broken, DownloadMonitor(RetryPolicy(clock=clock), "s3://b/k"))


def test_the_least_rate_is_asked_over_a_whole_read_timeout(clock):
    monitor = DownloadMonitor(RetryPolicy(read_timeout_s=10.0, min_bytes_per_s=100.0, clock=clock), "s3://b/k")
    for _ in range(9):
        clock.now += 1.0
        monitor.received(1)
    clock.now += 1.0
    monitor.received(991)  # 1,000 bytes in 10 s: just enough
    clock.now += 10.0
    with pytest.raises(AttemptError, match="only 100 bytes/s for 10.0 s") as caught:
        monitor.received(999)
    assert caught.value.transient


def test_past_the_deadline_receiving_ends_for_good(clock):
    monitor = DownloadMonitor(RetryPolicy(total_deadline_s=5.0, clock=clock), "s3://b/k")
    clock.now = 5.1
    with pytest.raises(AttemptError, match="deadline") as caught:
        monitor.received(1 << 30)
    assert not caught.value.transient


def test_a_set_stop_ends_the_pause_between_attempts():
    stop = threading.Event()
    policy = RetryPolicy(base_delay_s=60.0, max_delay_s=60.0, random=lambda: 1.0, stop=stop)
    threading.Timer(0.05, stop.set).start()
    with pytest.raises(StoppedError):
        with_retries(failing(9), DownloadMonitor(policy, "s3://b/k"))


@pytest.mark.parametrize(
    "bad", [{"attempts": 0}, {"max_downloads": 0}, {"total_deadline_s": 0}, {"read_timeout_s": -1}]
)
def test_impossible_bounds_are_config_errors(bad):
    with pytest.raises(ConfigError):
        RetryPolicy(**bad)


def test_errors_are_storage_errors():
    assert issubclass(StoppedError, StorageError)
