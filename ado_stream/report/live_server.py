"""Serves the report of running jobs: the page on 127.0.0.1, and a message to it after each change of a record.

Invariant: only this machine is served. A page of another site that has its name resolve to 127.0.0.1 sends its own
name in Host, and is refused. The page is drawn once per change for any number of viewers, and drawing takes at most a
tenth of the time, since it may share processors with training.
"""

import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from typing import cast

from ado_stream.errors import AdoStreamError, ConfigError
from ado_stream.record import FILE_NAME
from ado_stream.report.report_page import live_page
from ado_stream.visible import show

_POLL_S = 0.5
_DRAWING_FRAC = 0.1


class LiveReport:
    """The page of the runs as last drawn, and its version, which counts the changes."""

    def __init__(self, run_dirs: Sequence[Path]):
        self._run_dirs = run_dirs
        self._changed = threading.Condition()
        self._seen: object = None
        self.version = 0
        self.page = b""

    def draw(self) -> float:
        """Draws the page if a record changed; the seconds that it took. Raises NotFound or DataError."""
        stats = [(run_dir / FILE_NAME).stat() for run_dir in self._run_dirs]
        seen = [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats]
        if seen == self._seen:
            return 0.0
        started = time.monotonic()
        page = live_page(self._run_dirs).encode()
        with self._changed:
            self._seen, self.page, self.version = seen, page, self.version + 1
            self._changed.notify_all()
        return time.monotonic() - started

    def wait(self, version: int, timeout_s: float) -> int:
        """The version, once it is another than `version` or after `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self.version != version, timeout_s)
            return self.version


class LiveServer:
    """Serves `report` on 127.0.0.1:PORT; 0 takes a free port. Raises ConfigError for one that is taken."""

    def __init__(self, report: LiveReport, port: int = 0):
        self._report = report
        handler = type("Handler", (_Handler,), {"report": report})
        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        except OSError as error:
            raise ConfigError(
                f"port {port} of 127.0.0.1: {error.strerror}. Take another, or 0 for a free one."
            ) from None
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def serve(self, stop: threading.Event) -> None:
        """Serves and follows the records until `stop` is set."""
        thread = threading.Thread(target=self._server.serve_forever, name="live report", daemon=True)
        thread.start()
        fault = ""
        try:
            while not stop.is_set():
                drawing_s, last_fault, fault = 0.0, fault, ""
                try:
                    drawing_s = self._report.draw()
                except (AdoStreamError, OSError) as error:  # a record is being replaced; the page stays as it was
                    fault = f"not drawn: {error}"
                if fault not in ("", last_fault):
                    show(fault)
                stop.wait(max(_POLL_S, drawing_s * (1 / _DRAWING_FRAC - 1)))
        finally:
            self._server.shutdown()
            self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    report: LiveReport
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        port = cast(HTTPServer, self.server).server_port
        if self.headers.get("Host") not in (f"127.0.0.1:{port}", f"localhost:{port}"):
            self.send_error(403, "served to this machine only")
        elif self.path == "/":
            self._send("text/html; charset=utf-8", self.report.page)
        elif self.path == "/events":
            self._send_events()
        else:
            self.send_error(404)

    def _send(self, kind: str, body: bytes | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.send_header("X-Frame-Options", "DENY")
        if body is not None:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.close_connection = True
        self.wfile.write(body or b"")

    def _send_events(self) -> None:
        self._send("text/event-stream", None)
        version = 0  # so that the first message comes at once: the page may have changed since it was loaded
        try:
            while True:
                newer = self.report.wait(version, timeout_s=15.0)
                # a comment now and then: writing it finds out that the page is closed
                self.wfile.write(b": still here\n\n" if newer == version else b"data: %d\n\n" % newer)
                version = newer
        except OSError:
            return

    def log_message(self, format: str, *arguments: object) -> None:  # the base class's name for it
        """Nothing: the console is for what changes."""
