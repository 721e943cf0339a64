"""The errors that callers handle: input that cannot be used, results that cannot be written, what cannot run here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """The caller's input cannot be used; the message names the argument, what was expected and what came."""


class WriteError(InputError):
    """The system refused to write a result: a full disk, a limit, a failing device. The command line exits with 1.

    It is an `InputError`, so that code that handles `InputError` handles all refusals of a function.
    """


class BackendUnavailable(RuntimeError):  # noqa: N818 - reads as the sentence it is
    """An explicitly requested backend, device or precision cannot run here; the message says why."""


@contextmanager
def named_as(theirs: str, ours: str) -> Iterator[None]:
    """Rename an argument in the errors of a callee to the caller's argument.

    Args:
        theirs: the callee's argument; its messages begin with this name.
        ours: the caller's argument that was passed on.
    """
    try:
        yield
    except InputError as error:
        if not str(error).startswith(f"{theirs}: "):
            raise
        kind = WriteError if isinstance(error, WriteError) else InputError
        raise kind(f"{ours}{str(error).removeprefix(theirs)}") from error
