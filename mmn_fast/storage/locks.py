"""Locks on files that end with their process, however the process ends. A forked child holds none of them."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

_held: set[int] = set()  # descriptors of this process's locks


def take(path: Path, make: bool = False) -> int | None:
    """Lock a file without waiting.

    Args:
        path: the file.
        make: make the file if it is missing.

    Returns:
        The lock, for `release`; None if another process (or another call of this process) holds the lock or has
        removed the file.

    Raises:
        OSError: the file cannot be opened, or the file system has no locks.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if make else 0), 0o666)
    except FileNotFoundError:
        if make:  # its folder is missing
            raise
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:
            _held.add(descriptor)
            return descriptor
    except BlockingIOError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def release(descriptor: int) -> None:
    """Unlock a file; `descriptor` comes from `take`. In a forked child this does nothing."""
    if descriptor in _held:
        _held.discard(descriptor)
        os.close(descriptor)


def _let_go() -> None:
    """Close the locks' descriptors in a forked process: a lock belongs to the parent and must not outlive it."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
