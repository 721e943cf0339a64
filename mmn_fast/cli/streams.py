"""The process's standard streams: always open, stderr never fails, and warnings are single lines."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mmn_fast.process.environment import log_level


def prepare_streams() -> None:
    """Make the streams safe before anything is written or opened.

    A closed stream is opened so that it refuses writes; otherwise the next opened file would take its number.
    Characters that the terminal's encoding lacks are escaped. Output that stderr refuses (a full disk, a closed pipe)
    is dropped: progress and messages never end a command.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # takes the lowest free number, which is this one
    sys.stdout = _text(sys.stdout, 1, _Remembering)
    sys.stderr = _text(sys.stderr, 2, _Unfailing)


def stdout_error() -> OSError | None:
    """The error of a write that stdout refused; None if stdout took everything."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.error if isinstance(raw, _Remembering) else None


def abandon_stdout() -> None:
    """Let stdout drop its buffer and all later output, so that the interpreter ends quietly."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        sys.stdout.flush()


def _text(stream: Any, number: int, kind: type[io.FileIO]) -> Any:
    """Make a standard stream write through `kind`; a stream that other code has replaced stays as it is."""
    try:
        if stream is not None and stream.fileno() != number:
            return stream
    except (OSError, ValueError, AttributeError):
        return stream
    encoding = "utf-8" if stream is None else stream.encoding
    lines = number == 2 or os.isatty(number)
    writer = io.BufferedWriter(kind(number, "wb", closefd=False))
    return io.TextIOWrapper(writer, encoding, "backslashreplace", line_buffering=lines)


class _Remembering(io.FileIO):
    """Remembers the error of a refused write, because the exception alone does not name the file."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            self.error = error
            raise


class _Unfailing(io.FileIO):
    """Drops output that the system refuses."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return memoryview(data).nbytes


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Show the package's warnings (of `warnings` and of loggers) as `mmn-fast: warning: ...` on stderr, each once.

    If `MMN_FAST_LOG` is set, the log shows the loggers' warnings instead.
    """
    lines = _Lines()
    logger, before = logging.getLogger("mmn_fast"), warnings.showwarning
    if log_level() is None:
        logger.addHandler(lines)
    warnings.showwarning = lambda message, *_, **__: lines.show(str(message))
    try:
        yield
    finally:
        warnings.showwarning = before
        logger.removeHandler(lines)


class _Lines(logging.Handler):
    """Writes messages as single lines, each once; below a fault's line its traceback."""

    _MOST = 10_000  # messages to remember: a service that runs for months has many

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.show(record.getMessage(), logging.Formatter().formatException(record.exc_info) if record.exc_info else "")

    def show(self, text: str, trace: str = "") -> None:
        shown = f"mmn-fast: warning: {' '.join(text.split())}" + (trace and f"\n{trace}")
        if shown in self._shown:
            return
        if len(self._shown) >= self._MOST:
            self._shown.clear()
        self._shown.add(shown)
        print(shown, file=sys.stderr)  # looked up now: a progress bar may have replaced it
