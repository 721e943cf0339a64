"""A child process that answers over a connection; a crash in it, as of a decoder of untrusted files, ends it alone."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection

GONE = (EOFError, BrokenPipeError, ConnectionResetError)  # what an end of a connection raises if the other has ended


class Child:
    """A process that runs one function, until it is done or the parent is gone.

    Attributes:
        connection: the parent's end. Reading raises one of `GONE` when the process has ended.

    Args:
        serve: a function at the top of a module; it is called with the process's end of the connection.
    """

    def __init__(self, serve: Callable[[Connection], object]) -> None:
        self.connection, theirs = Pipe()
        # No `multiprocessing.Process`: a forked one would inherit locks of the caller's threads, and a spawned one runs
        # the caller's main module again, which scripts without `if __name__ == "__main__"` do not expect.
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import run;"
            f" from {serve.__module__} import {serve.__name__}; run({serve.__name__}, {theirs.fileno()})"
        )
        self._process = subprocess.Popen([sys.executable, "-c", code], pass_fds=[theirs.fileno()])
        theirs.close()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def end(self, patience_s: float = 2.0) -> str:
        """End the process; one that waits for a message ends by itself.

        Args:
            patience_s: how long it may take to end by itself.

        Returns:
            How it ended, as a part of a sentence.
        """
        self.connection.close()
        for stop in (None, self._process.terminate, self._process.kill):
            if stop is not None:
                stop()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(patience_s if stop is None else 2)
                break
        code = self._process.wait()
        return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit status {code}"


def run(serve: Callable[[Connection], object], descriptor: int) -> None:
    """Run `serve` in the child process.

    Args:
        serve: as for `Child`; it may leave the errors in `GONE` alone.
        descriptor: the process's end of the connection.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes; the parent ends this one
    with suppress(*GONE):
        serve(Connection(descriptor))
