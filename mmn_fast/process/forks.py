"""Forks: locks that are free in a forked child, state that a child renews, and calls that a fork waits for.

A fork copies one thread. A lock that another thread holds at that moment stays locked in the child for ever, and a
value that another thread is about to restore is never restored. Every module that keeps a lock, or changes a value of
the process during a call, uses the tools of this module.
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
"""Longest wait of a fork: a call may itself wait for a lock of the forking thread, and then it would never end."""

_renewals: list[Callable[[], Callable[[], object] | None]] = []  # weak references
_registering = threading.Lock()  # without it, two threads that register at once would lose one entry
_forked_thread: int | None = None


def renew_in_child(renew: Callable[[], object]) -> None:
    """Call a function in every forked child, before any other code runs there.

    Args:
        renew: a module's function, or an object's method; registration does not keep the object alive.
    """
    added = weakref.WeakMethod(renew) if hasattr(renew, "__self__") else weakref.ref(renew)
    with _registering:
        _renewals[:] = [*(one for one in _renewals if one() is not None), added]


def forked_thread() -> int | None:
    """Identifier (`threading.get_ident`) of the thread in which this process was forked; None if it was not forked.

    In that thread, libraries keep state of the parent: OpenMP, for example, would wait there for the parent's threads.
    """
    return _forked_thread


class Lock:
    """A lock that is free in a forked child, whoever held it in the parent. A reentrant context manager."""

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
    """Marks calls during which no other thread forks: a fork waits until they end, and new calls wait for the fork.

    Use it for calls into libraries with internal locks (PyTorch, ONNX Runtime, the import system), because nobody can
    renew these locks in a child. Calls do not wait for each other, may be nested, and should end within seconds.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._calls: dict[int, int] = {}  # thread -> number of nested calls
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
"""All calls of this process that a fork waits for, see `_ForkWaits`."""


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
    # Before a fork, the handler that was registered last runs first. So this handler waits before the locks of logging
    # and of thread pools are taken. The order matters: a call that the fork waits for may log, and two threads that
    # fork would meet at a pool's lock.
    os.register_at_fork(
        before=fork_waits.before_fork, after_in_parent=fork_waits.after_fork_in_parent, after_in_child=_in_child
    )


@dataclass(frozen=True)
class Opened:
    """Records the process that opened something; the thing works in no other process.

    Attributes:
        what: name of the opened thing, for the message.
        process: the process that opened it.
    """

    what: str
    process: int

    def __reduce__(self) -> tuple[Any, ...]:
        return Opened.here, (self.what,)  # unpickling opens it in the process that unpickles

    @classmethod
    def here(cls, what: str) -> Opened:
        """Record that this process opens something now."""
        return cls(what, os.getpid())

    def check(self) -> None:
        """Refuse use in another process.

        Raises:
            BackendUnavailable: this process was forked after the opening.
        """
        if os.getpid() != self.process:
            raise BackendUnavailable(
                f"{self.what} was opened in process {self.process}, and this one, {os.getpid()}, was forked from it:"
                " CUDA does not work after a fork; start processes with spawn or forkserver"
            )
