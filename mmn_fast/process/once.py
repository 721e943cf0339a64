"""Values that are made once and kept; no lock is held while a value is made."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar, overload

from mmn_fast.process.forks import Lock, renew_in_child

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


class _Making:
    def __init__(self) -> None:
        self.done = threading.Event()
        self.error: Exception | None = None


class Once(Generic[K, T]):
    """Values that are made once per key and kept. No thread waits for another key's value.

    Threads that ask for a value while it is being made wait for it, and get the same exception if making it fails.
    Failures are not kept. A forked child keeps finished values; it makes an unfinished value anew.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._values: dict[K, T] = {}
        self._making: dict[K, _Making] = {}
        renew_in_child(self._renew)

    def _renew(self) -> None:
        self._making = {}

    def get(self, key: K, make: Callable[[], T]) -> T:
        """The value of a key; the first caller makes it.

        Args:
            key: name of the value.
            make: makes the value.
        """
        while True:
            with self._lock:
                if key in self._values:
                    return self._values[key]
                others = self._making.get(key)
                if others is None:
                    mine = self._making[key] = _Making()
            if others is None:
                return self._make(key, make, mine)
            others.done.wait()
            if others.error is not None:
                raise others.error

    def _make(self, key: K, make: Callable[[], T], mine: _Making) -> T:
        try:
            value = make()
        except BaseException as error:
            if isinstance(error, Exception):  # Ctrl-C is meant for one thread; the next thread tries again
                mine.error = error
            raise
        else:
            with self._lock:
                self._values[key] = value
            return value
        finally:
            with self._lock:
                self._making.pop(key, None)
            mine.done.set()


class kept_property(Generic[T]):  # noqa: N801 - as functools.cached_property
    """`functools.cached_property` without the lock that Python 3.10 and 3.11 hold over the work, for all instances.

    Two threads that ask at once may both do the work; their results are equal.
    """

    def __init__(self, work: Callable[[Any], T]) -> None:
        self._work, self.__doc__ = work, work.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> kept_property[T]: ...

    @overload
    def __get__(self, instance: object, owner: type) -> T: ...

    def __get__(self, instance: object | None, owner: type) -> kept_property[T] | T:
        if instance is None:
            return self
        value = instance.__dict__[self._name] = self._work(instance)
        return value
