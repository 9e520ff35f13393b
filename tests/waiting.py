"""Waits of the tests: for an event, with a deadline that no busy machine reaches."""

import time
from collections.abc import Callable


def wait_until(reached: Callable[[], object], timeout_s: float = 120.0) -> None:
    """Returns once `reached` is true."""
    deadline = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < deadline, f"not reached within {timeout_s:.0f} s"
        time.sleep(0.002)
