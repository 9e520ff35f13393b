"""A page in headless Chromium, driven by the DevTools protocol over a pipe: clicks, sizes, themes, pictures."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
TIMEOUT_S = 120.0


def find_browser() -> str | None:
    """The path of Chromium; None without one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One page of a browser. Raises AssertionError where the page's script does, or the browser gives no answer."""

    def __init__(self, read: int, write: int):
        self._read, self._write, self._number, self._rest = read, write, 0, b""
        self._session: str | None = None
        self.errors: list[str] = []  # of the page's console and scripts
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self._call(f"{domain}.enable")
        self.requests: list[str] = []

    def open(self, url: str, width: int = 1200, dark: bool = False) -> None:
        """Loads `url` and waits until it is there."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        theme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", features=theme)
        self._call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && document.URL !== 'about:blank'")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        done = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait_for(self, script: str) -> None:
        """Returns once the expression is true."""
        check = f"if ({script}) {{ clearInterval(timer); resolve(1); }}"
        self.run(f"new Promise(resolve => {{ const timer = setInterval(() => {{ {check} }}, 20) }})")

    def move(self, selector: str) -> None:
        """Moves the pointer to the middle of an element, which is scrolled into view."""
        self._mouse(selector, "mouseMoved")

    def click(self, selector: str) -> None:
        """Clicks on the middle of an element."""
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self._mouse(selector, kind)

    def picture(self, path: Path) -> None:
        """Writes the whole page as a PNG."""
        height = self.run("document.documentElement.scrollHeight")
        width = self.run("innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        data = self._call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        path.write_bytes(base64.b64decode(data))

    def _mouse(self, selector: str, kind: str) -> None:
        script = (
            "(() => { const e = document.querySelector(%s); e.scrollIntoView({block: 'center', inline: 'center'});"
            "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2] })()"
        )
        x, y = self.run(script % json.dumps(selector))
        self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(answer["params"]["exceptionDetails"]))

    def _receive(self) -> dict[str, Any]:
        poll = select.poll()  # takes any descriptor
        poll.register(self._read, select.POLLIN)
        while b"\0" not in self._rest:
            assert poll.poll(1000 * TIMEOUT_S), "the browser gave no answer"
            part = os.read(self._read, 1 << 16)
            assert part, "the browser ended"
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@contextlib.contextmanager
def open_browser(folder: Path) -> Iterator[Page]:
    """A browser with its profile in `folder`, ended at the end."""
    browser = find_browser()
    assert browser is not None
    from_us, to_us = os.pipe(), os.pipe()
    # Chromium reads descriptor 3 and writes 4
    command = f'exec "$@" 3<&{from_us[0]} 4>&{to_us[1]}'
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
    options += [
        f"--user-data-dir={folder}",
        "--no-first-run",
        "--disable-extensions",
        "--disable-background-networking",
    ]
    process = subprocess.Popen(
        ["bash", "-c", command, "browser", browser, *options],
        pass_fds=(from_us[0], to_us[1]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(from_us[0])
    os.close(to_us[1])
    try:
        yield Page(to_us[0], from_us[1])
    finally:
        process.kill()
        process.wait()
        os.close(to_us[0])
        os.close(from_us[1])
