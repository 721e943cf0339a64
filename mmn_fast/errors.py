"""The two errors that callers handle: input that cannot be used, and what cannot run here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """The caller's input cannot be used; the message names the argument, what was expected and what came."""


class BackendUnavailable(RuntimeError):  # noqa: N818 - reads as the sentence it is
    """An explicitly requested backend, device or precision cannot run here; the message says why."""


@contextmanager
def named_as(theirs: str, ours: str) -> Iterator[None]:
    """Let the errors of a callee name the caller's argument.

    Args:
        theirs: the callee's argument, with which its messages begin.
        ours: the caller's argument that was handed on.
    """
    try:
        yield
    except InputError as error:
        if not str(error).startswith(f"{theirs}: "):
            raise
        raise InputError(f"{ours}{str(error).removeprefix(theirs)}") from error
