"""PyTorch's number of CPU threads, for the time of a call."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# torch.set_num_threads is a setting of the process: one call at a time may change it, and puts it back.
_LOCK = threading.RLock()


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
