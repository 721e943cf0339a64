"""PyTorch's settings of the process, for the time of a call: its number of CPU threads, and how a GPU calculates."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# One call at a time may change the number of threads, and puts it back.
_LOCK = threading.RLock()
_LOADED_BY = os.getpid()


class _StrictSettings:
    """Calls under way that need them: the first sets them, the last puts back what was, whatever order calls end in."""

    def __init__(self) -> None:
        self._lock, self._calls = threading.Lock(), 0
        self._before: tuple[bool, bool, bool, str]

    def __enter__(self) -> None:
        with self._lock:
            if self._calls == 0:
                cudnn = torch.backends.cudnn
                matmul = torch.get_float32_matmul_precision()
                self._before = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul
                self._set(False, True, False, "highest")
            self._calls += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._calls -= 1
            if self._calls == 0:
                self._set(*self._before)

    @staticmethod
    def _set(benchmark: bool, deterministic: bool, allow_tf32: bool, matmul: str) -> None:
        cudnn = torch.backends.cudnn
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = benchmark, deterministic, allow_tf32
        torch.set_float32_matmul_precision(matmul)


strict_settings = _StrictSettings()
"""A context without TF32, which cuDNN would take for float32, and without algorithms that are picked by the clock."""


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Run PyTorch with that many CPU threads; None leaves the process's setting alone.

    A forked process runs on one: it has none of its parent's OpenMP threads, and would wait for them for ever.
    """
    if os.getpid() != _LOADED_BY:
        threads = 1
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
