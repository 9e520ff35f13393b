"""A log line when a wait for the network takes long."""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ado_stream.redact import redact

_AFTER_S = 2.0
_log = logging.getLogger(__name__)


@contextmanager
def slow_notice(what: str) -> Iterator[None]:
    """Logs a warning, "waiting for `what`" (a URL, or in words), when the block takes longer than two seconds."""
    timer = threading.Timer(_AFTER_S, _log.warning, ("waiting for %s", remote_text(what)))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def remote_text(url: str) -> str:
    """`url`, with the host that S3_ENDPOINT_URL names where it is one of S3, for messages; without credentials."""
    host = os.environ.get("S3_ENDPOINT_URL", "").partition("://")[2].partition("/")[0].rpartition("@")[2]
    return redact(f"{url} (S3_ENDPOINT_URL: {host})" if url.startswith("s3://") and host else url)
