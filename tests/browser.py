"""Chromium without a window or a network, driven through a pipe (the Chrome DevTools Protocol)."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MACOS = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
SECONDS = 60


def find() -> str | None:
    """The browser on this machine, or None."""
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    return found or (MACOS if Path(MACOS).exists() else None)


class Browser:
    """One tab. ``events`` collects what it reports: requests, console messages, exceptions."""

    def __init__(self, profile: Path):
        executable = find()
        assert executable, "no Chromium on this machine"
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        arguments = [
            executable, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-sandbox",
            "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-sync",
            "--disable-component-update", "--no-first-run", "--hide-scrollbars", "--force-color-profile=srgb",
            # The network is off: every name fails to resolve, every connection goes to a proxy that is not there.
            "--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9", "--proxy-bypass-list=<-loopback>",
            "about:blank",
        ]  # fmt: skip

        def connect() -> None:
            # The browser reads descriptor 3 and writes 4; copies first, so that neither end overwrites the other.
            reading, writing = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser, from_browser))
            os.dup2(reading, 3)
            os.dup2(writing, 4)

        self._process = subprocess.Popen(
            arguments,
            preexec_fn=connect,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for descriptor in (to_browser, from_browser):
            os.close(descriptor)
        self._buffer = b""
        self._id = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []

        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(SECONDS)
        os.close(self._in)
        os.close(self._out)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and wait for its answer; events that arrive meanwhile are kept."""
        self._id += 1
        message: dict[str, Any] = {"id": self._id, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._id:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], SECONDS)
            data = os.read(self._in, 1 << 20) if ready else b""
            if not data:
                raise RuntimeError(f"the browser said nothing for {SECONDS} s, or stopped")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        parsed: dict[str, Any] = json.loads(message)
        return parsed

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page; promises are awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait_for(self, expression: str, seconds: float = SECONDS) -> None:
        """Wait until the expression is true."""
        deadline = time.monotonic() + seconds
        while not self.evaluate(expression):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not true after {seconds} s: {expression}")
            time.sleep(0.05)

    def view(self, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Another window size and color scheme, for the page that is open too."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)

    def open(self, page: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open a file at a window size and color scheme, and wait until its formulas are set."""
        self.events.clear()
        self.view(width=width, height=height, dark=dark)
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.wait_for(f"document.readyState === 'complete' && location.pathname.endsWith({json.dumps(page.name)})")
        if self.evaluate("document.querySelector('.math') !== null"):
            self.wait_for("typeof MathJax !== 'undefined' && MathJax.startup && MathJax.startup.promise !== undefined")
            self.evaluate("MathJax.startup.promise.then(() => true)")

    def reported(self, method: str, pick: Callable[[dict[str, Any]], Any]) -> list[Any]:
        """``pick`` of the parameters of every event of this kind since the page was opened."""
        return [pick(event["params"]) for event in self.events if event.get("method") == method]

    def screenshot(self, path: Path, *, whole_page: bool = False) -> None:
        image = self.call("Page.captureScreenshot", captureBeyondViewport=whole_page)["data"]
        path.write_bytes(base64.b64decode(image))
