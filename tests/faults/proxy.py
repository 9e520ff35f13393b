"""A fault-injecting HTTP proxy in front of an S3 endpoint: what networks and stores do, on request.

Invariant: without a matching rule a request passes through unchanged; every GET is counted by path.
"""

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

S3_ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>"


@dataclass
class Rule:
    """One fault: which GETs it hits (path contains `match`) and how often.

    kind: "status" (an S3 error `status`, `code`), "cut" (half the body, then a clean close), "reset" (half, then RST),
    "stall" (half, then silence), "trickle" (1 KB/s), "flip" (one bit of the body), "delay" (`seconds`, then healthy).
    times: per path; None for ever. probability: of each GET. until: clock time after which the rule is over. signer: of
    GETs that this access key signed, "" of unsigned ones. retry_after: seconds, in the answer of kind "status".
    """

    kind: str
    match: str = ""
    times: int | None = None
    probability: float = 1.0
    until: float = float("inf")
    status: int = 503
    code: str = "SlowDown"
    seconds: float = 0.0
    signer: str | None = None
    retry_after: str = ""
    hits: Counter = field(default_factory=Counter)

    def hits_now(self, path: str, signature: str, generator: random.Random) -> bool:
        """Whether this GET of `path` gets the fault; counts it."""
        if self.signer is not None and (f"={self.signer}/" not in signature if self.signer else signature):
            return False
        over = self.times is not None and self.hits[path] >= self.times
        if over or self.match not in path or time.monotonic() > self.until or generator.random() >= self.probability:
            return False
        self.hits[path] += 1
        return True


class FaultProxy:
    """Serves on the loopback in threads of its own; `stop` and `start` keep the port."""

    def __init__(self, upstream: tuple[str, int], seed: int = 0) -> None:
        self.upstream = upstream
        self.rules: list[Rule] = []
        self.tags = "strong"  # ETags as the store gives them; or "weak", or "none"
        self.gets: Counter[str] = Counter()  # GETs by path
        self.served: Counter[str] = Counter()  # GETs by path that got the whole body
        self.released = threading.Event()  # ends every stall and trickle
        self._generator = random.Random(seed)
        self._lock = threading.Lock()
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        """The endpoint, for S3_ENDPOINT_URL."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listens; on the same port again after a stop."""
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = _Server(("127.0.0.1", self._port), handler)
        self._port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Closes the port and drops every connection."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def close(self) -> None:
        """Stops for good."""
        self.released.set()
        self.stop()

    def rule_for(self, path: str, signature: str) -> Rule | None:
        """The first rule that hits this GET."""
        with self._lock:
            self.gets[path] += 1
            return next((rule for rule in self.rules if rule.hits_now(path, signature, self._generator)), None)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, *args: object) -> None:
        self.open_sockets: set[socket.socket] = set()
        super().__init__(*args)  # type: ignore[arg-type]

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        self.open_sockets.add(request)
        super().process_request(request, client_address)

    def server_close(self) -> None:
        super().server_close()
        for connection in list(self.open_sockets):
            _reset(connection)

    def handle_error(self, request: object, client_address: object) -> None:
        """Broken connections are this server's trade."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def log_message(self, *args: object) -> None:
        """Silent."""

    def do_PUT(self) -> None:
        self._forward("PUT")

    def do_HEAD(self) -> None:
        self._forward("HEAD")

    def do_GET(self) -> None:
        rule = self.proxy.rule_for(self.path, self.headers.get("Authorization", ""))
        if rule is not None and rule.kind == "delay":
            time.sleep(rule.seconds)
            rule = None
        if rule is not None and rule.kind == "status":
            wait = {"Retry-After": rule.retry_after} if rule.retry_after else {}
            self._answer(rule.status, S3_ERROR.format(code=rule.code).encode(), wait)
            return
        self._forward("GET", rule)

    def _forward(self, method: str, rule: Rule | None = None) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        upstream = http.client.HTTPConnection(*self.proxy.upstream, timeout=30)
        try:
            upstream.request(method, self.path, self.rfile.read(length) or None, dict(self.headers))
            response = upstream.getresponse()
            body = response.read()
        finally:
            upstream.close()
        names = ("etag", "content-type", "content-range")
        kept = {name: value for name, value in response.getheaders() if name.lower() in names}
        if self.proxy.tags != "strong" and (tag := kept.pop("ETag", None)) and self.proxy.tags == "weak":
            kept["ETag"] = f"W/{tag}"
        length = int(response.getheader("Content-Length") or 0) if method == "HEAD" else None
        self._answer(response.status, body, kept, rule, length)
        if method == "GET" and response.status == 200 and rule is None:
            self.proxy.served[self.path] += 1

    def _answer(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str],
        rule: Rule | None = None,
        head_length: int | None = None,
    ) -> None:
        """head_length: what a HEAD says of the body, which it does not send."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if head_length is None else head_length))
        self.end_headers()
        if head_length is not None:
            return
        if rule is None:
            self.wfile.write(body)
        else:
            self._spoil(rule.kind, body)

    def _spoil(self, kind: str, body: bytes) -> None:
        half = len(body) // 2
        if kind == "flip":
            self.wfile.write(body[:half] + bytes([body[half] ^ 1]) + body[half + 1 :])
            return
        self.close_connection = True
        if kind == "trickle":
            for start in range(0, len(body), 256):
                self.wfile.write(body[start : start + 256])
                if self.proxy.released.wait(0.25):
                    break
            return
        self.wfile.write(body[:half])
        self.wfile.flush()
        if kind == "stall":
            self.proxy.released.wait(60)
        if kind == "reset":
            _reset(self.connection)


def _reset(connection: socket.socket) -> None:
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)
        connection.close()
    except OSError:
        return
