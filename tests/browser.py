"""Opens a page in headless Chromium, and runs scripts in it, by way of the browser's debugging pipe."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def run_in_page(page: Path, script: str, profile: Path) -> Any:
    """Evaluate a script in a page.

    Args:
        page: an HTML file.
        script: JavaScript; its value, or what its promise gives, is returned.
        profile: folder for the browser's own files.
    """
    with open_page(page.as_uri(), profile) as opened:
        return opened.evaluate(script)


@contextmanager
def open_page(address: str, profile: Path) -> Iterator[OpenPage]:
    """Open a page by its address; the browser ends with the block."""
    assert BROWSER is not None
    flags = ["--headless", "--disable-gpu", "--autoplay-policy=no-user-gesture-required", "--remote-debugging-pipe"]
    flags += ["--no-sandbox"] if os.geteuid() == 0 else []  # chromium refuses to run as root inside its sandbox
    ours, theirs = os.pipe(), os.pipe()  # to the browser, from the browser
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (ours[0], theirs[1])]

    def place() -> None:  # the browser reads from descriptor 3 and writes to 4
        os.dup2(ends[0], 3)
        os.dup2(ends[1], 4)

    process = subprocess.Popen(
        [BROWSER, *flags, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=place,
        pass_fds=(3, 4),
    )
    for end in (ours[0], theirs[1], *ends):
        os.close(end)
    try:
        with os.fdopen(ours[1], "wb", buffering=0) as write, os.fdopen(theirs[0], "rb") as read:
            browser = _Browser(write, read)
            target = browser.call("Target.createTarget", url=address)["targetId"]
            session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for _ in range(600):
                if browser.evaluate(session, _LOADED):
                    break
                time.sleep(0.05)
            else:
                raise AssertionError(f"{address} did not load")
            yield OpenPage(browser, session)
    finally:
        process.kill()
        process.wait()


_LOADED = "location.protocol !== 'about:' && document.readyState === 'complete'"


class OpenPage:
    """A page in the browser."""

    def __init__(self, browser: _Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def evaluate(self, script: str) -> Any:
        """The value of a script, or what its promise gives."""
        return self._browser.evaluate(self._session, script)

    def until(self, script: str) -> Any:
        """Evaluate a script until its value is true; return the value."""
        for _ in range(400):
            found = self.evaluate(script)
            if found:
                return found
            time.sleep(0.025)
        raise AssertionError(f"never true: {script}")

    def press(self, key: str, text: str = "") -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            self._browser.call(
                "Input.dispatchKeyEvent", self._session, type=kind, key=key, text=text if kind == "keyDown" else ""
            )

    def choose_file(self, selector: str, path: Path) -> None:
        """Choose a file for an input."""
        root = self._browser.call("DOM.getDocument", self._session)["root"]["nodeId"]
        node = self._browser.call("DOM.querySelector", self._session, nodeId=root, selector=selector)["nodeId"]
        self._browser.call("DOM.setFileInputFiles", self._session, files=[str(path)], nodeId=node)

    def resize(self, width: int, height: int) -> None:
        """Set the size of the view, as on a phone if it is narrow."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._browser.call("Emulation.setDeviceMetricsOverride", self._session, **size)

    def picture(self, path: Path) -> None:
        """Save what the view shows as PNG."""
        path.write_bytes(base64.b64decode(self._browser.call("Page.captureScreenshot", self._session)["data"]))


class _Browser:
    """The debugging pipe: JSON messages that end in a zero byte."""

    def __init__(self, write: Any, read: Any) -> None:
        self._write, self._read, self._number = write, read, 0

    def call(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        self._write.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._message())
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def evaluate(self, session: str, script: str) -> Any:
        asked = {"expression": script, "awaitPromise": True, "returnByValue": True}
        answer = self.call("Runtime.evaluate", session, **asked)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def _message(self) -> bytes:
        found = bytearray()
        while (byte := self._read.read(1)) != b"\0":
            assert byte, "the browser has ended"
            found += byte
        return bytes(found)
