"""Captures of CUDA graphs stand alone in a process: one at a time, and without garbage collection. Without torch."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from mmn_fast.process.forks import Lock, renew_in_child

_captures = Lock()
_held_off = False  # whether garbage collection was on before the capture that is under way


@contextmanager
def between_captures() -> Iterator[None]:
    """Work that must not meet a capture of another thread: waiting for a whole device, and giving cached memory back.

    CUDA voids a capture whose device is waited for as a whole, by whatever thread, and PyTorch's allocator refuses to
    empty its cache, which is that of all devices, while a graph is captured on one.
    """
    with _captures:
        yield


@contextmanager
def capturing() -> Iterator[None]:
    """Capture a graph: no other capture of this process is under way meanwhile, and nothing is garbage-collected.

    PyTorch documents one capture at a time per process. What garbage collection finds may be another engine's graphs,
    events and device memory; giving those back within a capture can void it.
    """
    with between_captures(), _collection_held_off():
        yield


@contextmanager
def _collection_held_off() -> Iterator[None]:
    global _held_off
    if not gc.isenabled():  # by the user, or by a capture around this one
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
    """A fork from another thread amid a capture copies a process without garbage collection, for good."""
    global _held_off
    if _held_off:
        gc.enable()
        _held_off = False


renew_in_child(_collect_in_child)
