"""PyTorch's settings of the process, for the time of a call: its number of CPU threads, and cuDNN's TF32."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# One call at a time may change the number of threads, and puts it back.
_LOCK = threading.RLock()


class _WithoutTf32:
    """Calls without TF32 that are under way: the first one switches it off, the last one puts the setting back."""

    def __init__(self) -> None:
        self._lock, self._calls, self._before = threading.Lock(), 0, True

    def __enter__(self) -> None:
        with self._lock:
            if self._calls == 0:
                self._before = torch.backends.cudnn.allow_tf32
                torch.backends.cudnn.allow_tf32 = False
            self._calls += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._calls -= 1
            if self._calls == 0:
                torch.backends.cudnn.allow_tf32 = self._before


without_tf32 = _WithoutTf32()
"""A context in which cuDNN, which would take TF32, convolves float32 in float32."""


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Run PyTorch with that many CPU threads; None leaves the process's setting alone."""
    if threads is None:
        yield
        return
    with _LOCK:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)
