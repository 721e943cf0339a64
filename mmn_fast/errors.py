"""The two errors that callers handle: input that cannot be used, and what cannot run here."""

from __future__ import annotations


class InputError(ValueError):
    """The caller's input cannot be used; the message names the argument, what was expected and what came."""


class BackendUnavailable(RuntimeError):  # noqa: N818 - reads as the sentence it is
    """An explicitly requested backend, device or precision cannot run here; the message says why."""
