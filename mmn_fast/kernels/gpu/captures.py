"""Guards captures of CUDA graphs: one at a time per process, and without garbage collection. Needs no torch."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from mmn_fast.process.forks import Lock, renew_in_child

_captures = Lock()
_held_off = False  # whether a running capture has switched garbage collection off


@contextmanager
def between_captures() -> Iterator[None]:
    """Keep work apart from other threads' captures: waiting for a whole device, or giving cached memory back.

    CUDA voids a capture when any thread waits for its whole device. PyTorch's allocator has one cache for all devices
    and refuses to empty it during a capture on any of them.
    """
    with _captures:
        yield


@contextmanager
def capturing() -> Iterator[None]:
    """Capture a graph; meanwhile this process has no other capture and no garbage collection.

    PyTorch documents one capture at a time per process. Garbage collection may free another engine's graphs, events and
    device memory, which can void the capture.
    """
    with between_captures(), _collection_held_off():
        yield


@contextmanager
def _collection_held_off() -> Iterator[None]:
    global _held_off
    if not gc.isenabled():  # the user, or a capture around this one, has switched it off
        yield
        return
    _held_off = True
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        _held_off = False


def _collect_in_child() -> None:
    """Switch garbage collection on again in a child that another thread forked during a capture."""
    global _held_off
    if _held_off:
        gc.enable()
        _held_off = False


renew_in_child(_collect_in_child)
