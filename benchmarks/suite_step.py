"""A step of the GPU suite: one command, its output kept as it comes, ended when its time is over."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.suite_output import Output

GRACE_S = 5.0
"""Seconds between asking a command to end and ending it; the last ones of its limit."""
_POLL_S = 0.5


class Signals:
    """The signals that ask the suite to end: noted as they come, acted on between two moments of a step.

    Attributes:
        came: the first one's number; 0 as long as there is none.
    """

    def __init__(self) -> None:
        """Note them from now on, but those that are ignored, as nohup has it."""
        self.came = 0
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)

    def _note(self, number: int, _frame: Any) -> None:
        self.came = self.came or number


def run(
    command: Sequence[str], env: Mapping[str, str], folder: Path, limit_s: float, output: Output, signals: Signals
) -> int | None:
    """Run a command to its end, or for its time.

    Args:
        command: program and arguments.
        env: its environment.
        folder: to run it in.
        limit_s: seconds, those for ending it included.
        output: takes what it prints, and copies what it measures, as soon as there is any.
        signals: end it at once.

    Returns:
        Its exit status, negative for a signal; 127 where it cannot be started; None where it was ended.
    """
    end = time.monotonic() + limit_s - GRACE_S
    pipe: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    try:
        # A group of its own: what it started is ended with it.
        process = subprocess.Popen(command, cwd=folder, env=env, start_new_session=True, **pipe)
    except OSError as problem:
        output.say(f"{command[0]}: {problem.strerror}")
        return 127
    reader = threading.Thread(target=_pass_on, args=(process, output), daemon=True)
    reader.start()
    while time.monotonic() < end and not signals.came:
        with suppress(subprocess.TimeoutExpired):
            status = process.wait(min(_POLL_S, max(0.0, end - time.monotonic())))
            break
        output.copy()
    else:
        status = None
        output.copy()  # first of all: whoever stops the suite may not wait
        _end(process, 1.0 if signals.came else GRACE_S - 1.0, output)
    reader.join(1.0)  # not for ever: what left the group may hold the pipe open
    return status


def _pass_on(process: subprocess.Popen[bytes], output: Output) -> None:
    assert process.stdout is not None
    while content := os.read(process.stdout.fileno(), 65536):
        output.write(content)


def _end(process: subprocess.Popen[bytes], grace_s: float, output: Output) -> None:
    """Ask the command's processes to end, and end them."""
    for number, seconds in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 1.0)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            break
    else:
        output.say(f"process {process.pid} cannot be ended and may still use the device")
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # what the command started and did not end
