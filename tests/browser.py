"""Opens a page in headless Chromium and runs a script in it, by way of the browser's debugging pipe."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import time
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
            target = browser.call("Target.createTarget", url=page.as_uri())["targetId"]
            session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for _ in range(600):
                if browser.evaluate(session, _LOADED):
                    return browser.evaluate(session, script)
                time.sleep(0.05)
            raise AssertionError(f"{page} did not load")
    finally:
        process.kill()
        process.wait()


_LOADED = "location.protocol === 'file:' && document.readyState === 'complete'"


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
