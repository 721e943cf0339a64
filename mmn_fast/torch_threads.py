"""How this package calls PyTorch: with which settings of the process, on which thread, and beside which fork."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

import torch

from mmn_fast.forks import Lock, fork_waits, forked_thread, renew_in_child

T = TypeVar("T")


class _StrictSettings:
    """Calls under way that need them: the first sets them, the last puts back what was, whatever order calls end in."""

    def __init__(self) -> None:
        self._lock, self._calls = Lock(), 0
        self._before: tuple[bool, bool, bool, str]
        renew_in_child(self._end_calls)

    def __enter__(self) -> None:
        with self._lock:
            if self._calls == 0:
                cudnn = torch.backends.cudnn
                matmul = torch.get_float32_matmul_precision()
                self._before = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul
                self._calls = 1  # before the settings change: a fork in between puts them back
                self._set(False, True, False, "highest")
            else:
                self._calls += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._calls == 1:
                self._set(*self._before)
            self._calls = max(self._calls - 1, 0)  # 0 already where a forked child ended the call

    def _end_calls(self) -> None:
        """The calls of the parent's threads end in a forked child."""
        if self._calls:
            self._calls = 0
            self._set(*self._before)

    @staticmethod
    def _set(benchmark: bool, deterministic: bool, allow_tf32: bool, matmul: str) -> None:
        cudnn = torch.backends.cudnn
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = benchmark, deterministic, allow_tf32
        torch.set_float32_matmul_precision(matmul)


strict_settings = _StrictSettings()
"""A context without TF32, which cuDNN would take for float32, and without algorithms that are picked by the clock."""


class _Helper:
    """A thread that works for the thread which this process was forked in."""

    def __init__(self) -> None:
        self._work: SimpleQueue[tuple[Callable[[], object], Future[object]]] = SimpleQueue()
        threading.Thread(target=self._run, name="mmn_fast-torch", daemon=True).start()

    def call(self, work: Callable[[], object]) -> object:
        """The result of some work, or its exception."""
        result: Future[object] = Future()
        self._work.put((work, result))
        return result.result()

    def _run(self) -> None:
        while True:
            work, result = self._work.get()
            try:
                result.set_result(work())
            except BaseException as error:  # whatever it is, the caller gets it
                result.set_exception(error)
            del work, result  # arrays of the last call would stay until the next one


_threads_lock = Lock()
"""One call at a time may change the number of threads, and puts it back."""
_helper: _Helper | None = None


def _forget_helper() -> None:
    global _helper
    _helper = None


renew_in_child(_forget_helper)


def on_usable_thread(work: Callable[[], T]) -> T:
    """Do work of PyTorch's that may use OpenMP, with as many threads as this thread's setting says.

    In the thread that a process was forked in, OpenMP waits for ever for threads that only the parent has; a new
    thread gets new ones. So that thread has its work done by another one.

    Args:
        work: what to do; a fork waits for its end.

    Returns:
        Its result.
    """
    global _helper
    if threading.get_ident() != forked_thread():
        with fork_waits:
            return work()
    if _helper is None:
        _helper = _Helper()
    threads = torch.get_num_threads()

    def with_threads() -> T:
        with fork_waits:
            torch.set_num_threads(threads)
            return work()

    return _helper.call(with_threads)  # type: ignore[return-value]


def strictly(work: Callable[[], T], threads: int | None) -> T:
    """Do inference with PyTorch, with `strict_settings`.

    Args:
        work: what to do.
        threads: CPU threads; None leaves the process's setting alone. Calls that name a number wait for each other.

    Returns:
        Its result.
    """

    def infer() -> T:
        before = torch.get_num_threads()
        with torch.inference_mode(), strict_settings:
            if threads is None:
                return work()
            torch.set_num_threads(threads)
            try:
                return work()
            finally:
                torch.set_num_threads(before)

    if threads is None:
        return on_usable_thread(infer)
    with _threads_lock:
        return on_usable_thread(infer)


def cuda_lost_by_fork() -> str | None:
    """Why PyTorch's CUDA cannot be used in this process, as a sentence, if it is for a fork; else None."""
    if torch.cuda._is_in_bad_fork():
        return "this process was forked from one that used CUDA, which does not work; start it with spawn or forkserver"
    return None
