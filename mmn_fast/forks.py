"""Forks: locks that a forked child finds free, state that it renews, and calls that a fork waits for.

A fork copies one thread. A lock that another thread holds at that moment stays locked in the child for ever, and a
value that another thread is about to put back is never put back. Every module that keeps a lock, or a value of the
process for the time of a call, takes both from here.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 - registers its fork handlers before this module does, as logging
import logging  # noqa: F401 - see the end of this module
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mmn_fast.errors import BackendUnavailable

_LONGEST_WAIT_S = 30.0
"""A fork waits no longer: a call that waits for a lock that the forking thread holds would never end."""

_renewals: list[Callable[[], Callable[[], object] | None]] = []  # weak references
_registering = threading.Lock()  # two threads that register at once would lose one of the two
_forked_thread: int | None = None


def renew_in_child(renew: Callable[[], object]) -> None:
    """Call something in every forked child, before any other code runs there.

    Args:
        renew: a function of a module, or an object's method; the object is not kept alive by this.
    """
    added = weakref.WeakMethod(renew) if hasattr(renew, "__self__") else weakref.ref(renew)
    with _registering:
        _renewals[:] = [*(one for one in _renewals if one() is not None), added]


def forked_thread() -> int | None:
    """The thread that this process was forked in, as `threading.get_ident` names it; None if it was not forked.

    What a library keeps of that thread is the parent's: OpenMP, for one, would wait in it for threads of the parent.
    """
    return _forked_thread


class Lock:
    """A lock that a forked child finds free, whoever held it in the parent. A reentrant context manager."""

    def __init__(self) -> None:
        self._renew()
        renew_in_child(self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class _ForkWaits:
    """Calls during which no other thread forks: such a fork waits for their end, and calls that begin wait for it.

    For calls into libraries that have locks of their own (PyTorch's, ONNX Runtime's, the import system's), which
    nobody can renew in a child. Calls do not wait for each other, may be nested, and should end within seconds.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._calls: dict[int, int] = {}  # thread -> how deep it is in calls
        self._forking: set[int] = set()

    def __enter__(self) -> None:
        thread = threading.get_ident()
        with self._condition:
            if thread not in self._calls:
                self._condition.wait_for(lambda: not self._forking)
            self._calls[thread] = self._calls.get(thread, 0) + 1

    def __exit__(self, *_: object) -> None:
        thread = threading.get_ident()
        with self._condition:
            self._calls[thread] -= 1
            if not self._calls[thread]:
                del self._calls[thread]
                self._condition.notify_all()

    def before_fork(self) -> None:
        with self._condition:
            self._forking.add(threading.get_ident())
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._calls.keys() <= self._forking, _LONGEST_WAIT_S)

    def after_fork_in_parent(self) -> None:
        with self._condition:
            self._forking.discard(threading.get_ident())
            self._condition.notify_all()

    def after_fork_in_child(self) -> None:
        thread = threading.get_ident()
        self._condition = threading.Condition()
        self._calls = {thread: self._calls[thread]} if thread in self._calls else {}
        self._forking = set()


fork_waits = _ForkWaits()
"""The process's calls that a fork waits for, see `_ForkWaits`."""


def _in_child() -> None:
    global _forked_thread, _registering
    _registering = threading.Lock()
    _forked_thread = threading.get_ident()
    fork_waits.after_fork_in_child()
    for reference in list(_renewals):
        renew = reference()
        if renew is not None:
            renew()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    # Handlers that were registered last run first before a fork. So the locks of logging and of thread pools are taken
    # after this has waited: a call that is waited for may log, and two threads that fork would meet at a pool's lock.
    os.register_at_fork(
        before=fork_waits.before_fork, after_in_parent=fork_waits.after_fork_in_parent, after_in_child=_in_child
    )


@dataclass(frozen=True)
class Opened:
    """The process in which something was opened that works in no other.

    Attributes:
        what: what was opened, for the message.
        process: that process.
    """

    what: str
    process: int

    def __reduce__(self) -> tuple[Any, ...]:
        return Opened.here, (self.what,)  # what is unpickled is opened where that happens

    @classmethod
    def here(cls, what: str) -> Opened:
        """Something that is opened now, in this process."""
        return cls(what, os.getpid())

    def check(self) -> None:
        """Refuse another process.

        Raises:
            BackendUnavailable: this process was forked after it was opened.
        """
        if os.getpid() != self.process:
            raise BackendUnavailable(
                f"{self.what} was opened in process {self.process}, and this one, {os.getpid()}, was forked from it:"
                " CUDA does not work after a fork; start processes with spawn or forkserver"
            )
