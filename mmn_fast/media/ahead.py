"""Runs an iterator in a thread of its own, a few items ahead of its consumer."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterator[T], depth: int) -> Generator[T]:
    """Yield the items of an iterator that runs in another thread, so that its work and the consumer's overlap.

    The thread ends with the iterator, or when the returned generator is closed; it has then ended before `close`
    returns. An error of the iterator is raised here, after the items before it.

    Args:
        items: runs in the new thread only.
        depth: items that may be made before the consumer asks for them, at least 1.
    """
    slots: SimpleQueue[None] = SimpleQueue()  # one entry for each item that may be made
    for _ in range(depth):
        slots.put(None)
    made: SimpleQueue[tuple[list[T], BaseException | None]] = SimpleQueue()
    stopped = threading.Event()

    def make() -> None:
        error: BaseException | None = None
        try:
            while True:
                slots.get()
                if stopped.is_set():
                    return
                made.put(([next(items)], None))
        except BaseException as caught:
            error = caught
        finally:
            made.put(([], error))
            error = None  # its traceback refers to this call: a circle would keep the decoder's memory for long

    thread = threading.Thread(target=make, name="mmn_fast video decoder", daemon=True)
    thread.start()
    try:
        while True:
            found, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield found.pop()
            slots.put(None)
    finally:
        error = None
        stopped.set()
        slots.put(None)
        thread.join()
