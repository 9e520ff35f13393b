"""A log line when a wait for the network takes long."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_AFTER_S = 2.0
_log = logging.getLogger(__name__)


@contextmanager
def slow_notice(what: str) -> Iterator[None]:
    """Logs "waiting for `what`" once, as a warning, when the block takes longer than two seconds."""
    timer = threading.Timer(_AFTER_S, _log.warning, ("waiting for %s", what))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
