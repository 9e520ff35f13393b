"""An HTTP server on the loopback whose answers a test writes itself: stores and proxies that keep to no standard."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Request(BaseHTTPRequestHandler):
    """A request that is being answered."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Silent."""

    @property
    def range(self) -> tuple[int, int] | None:
        """[begin, end) of the bytes that are asked for; None: all."""
        if (asked := self.headers.get("Range")) is None:
            return None
        begin, _, last = asked.removeprefix("bytes=").partition("-")
        return int(begin), int(last) + 1

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Content-Length is that of the body unless given, and left out where it is ""."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        names = {"Content-Length": str(len(body))} | names
        self.send_response(status)
        for name, value in names.items():
            if value:
                self.send_header(name, value)
        self.close_connection = not names["Content-Length"] or self.close_connection
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def serve(self, content: bytes, **headers: str) -> None:
        """As a good store: all of it or the range, with a tag."""
        headers = {"ETag": '"1"'} | headers
        if self.range is None or self.command == "HEAD":
            self.answer(200, content, **headers)
            return
        begin, end = self.range
        end = min(end, len(content))
        self.answer(206, content[begin:end], Content_Range=f"bytes {begin}-{end - 1}/{len(content)}", **headers)


class ScriptedServer:
    """answer: called for each GET and HEAD."""

    def __init__(self, answer: Callable[[Request], None]) -> None:
        self.answer, self.asked = answer, Counter[str]()
        self.released = threading.Event()  # set at the end, for answers that wait

        def act(request: Request) -> None:
            self.asked[f"{request.command} {request.path}"] += 1
            try:
                self.answer(request)
            except OSError:  # the client has gone
                request.close_connection = True

        handler = type("Handler", (Request,), {"do_GET": act, "do_HEAD": act})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Without a slash at its end."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Ends every answer that waits."""
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads, block_on_close = True, False

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is no error of a test's."""


@contextmanager
def scripted(answer: Callable[[Request], None]) -> Iterator[ScriptedServer]:
    """A server until the block ends."""
    server = ScriptedServer(answer)
    try:
        yield server
    finally:
        server.close()
