"""Runs a step of the GPU suite: one command, whose output is kept as it comes, ended when its time is over."""

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
"""Seconds between SIGTERM and SIGKILL; they are the last part of a command's limit."""
_POLL_S = 0.5


class Signals:
    """Notes signals that ask the suite to end; `run` checks for them while it waits for a command.

    Attributes:
        came: number of the first signal; 0 if none came.
    """

    def __init__(self) -> None:
        """Handle SIGTERM, SIGINT and SIGHUP from now on, except signals that are ignored already (nohup)."""
        self.came = 0
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)

    def _note(self, number: int, _frame: Any) -> None:
        self.came = self.came or number


def run(
    command: Sequence[str], env: Mapping[str, str], folder: Path, limit_s: float, output: Output, signals: Signals
) -> int | None:
    """Run a command until it ends or its time is over.

    Args:
        command: program and arguments.
        env: the command's environment.
        folder: working directory.
        limit_s: seconds until the command has been ended.
        output: receives the command's output, and copies new measurements.
        signals: a noted signal ends the command at once.

    Returns:
        The exit status, negative for a signal; 127 if the command cannot be started; None if it was ended here.
    """
    end = time.monotonic() + limit_s - GRACE_S
    pipe: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    try:
        # The command gets its own process group, so that its children are ended with it.
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
        output.copy()  # before all else: the sender of the signal may soon kill the suite
        _end(process, 1.0 if signals.came else GRACE_S - 1.0, output)
    reader.join(1.0)  # limited: a process that left the group may hold the pipe open
    return status


def _pass_on(process: subprocess.Popen[bytes], output: Output) -> None:
    assert process.stdout is not None
    while content := os.read(process.stdout.fileno(), 65536):
        output.write(content)


def _end(process: subprocess.Popen[bytes], grace_s: float, output: Output) -> None:
    """Send SIGTERM to the command's process group, then SIGKILL if it does not end in time."""
    for number, seconds in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 1.0)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            break
    else:
        output.say(f"process {process.pid} cannot be ended and may still use the device")
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # children that outlived the command
