"""Calls of PyTorch: the process's settings during a call, the calling thread, and safety of forks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

from mmn_fast.process.forks import Lock, fork_waits, forked_thread, renew_in_child

T = TypeVar("T")


@dataclass(frozen=True)
class _Setting:
    """A setting of the process: its getter, its setter, and its value in strict calls."""

    get: Callable[[], Any]
    put: Callable[[Any], None]
    strict: Any


def _cudnn(name: str, strict: bool) -> _Setting:
    return _Setting(partial(getattr, torch.backends.cudnn, name), partial(setattr, torch.backends.cudnn, name), strict)


def _cublas(name: str) -> _Setting:
    """A cuBLAS setting that is off in strict calls. `torch.backends.cuda.matmul` takes ten times as long, 1.6 us."""
    get, put = (getattr(torch._C, f"_{verb}_cublas_allow_{name}") for verb in ("get", "set"))
    # In PyTorch 2.10 and later the value is a pair: whether sums may be in 16 bits, whether they may be split.
    if isinstance(get(), tuple):
        return _Setting(get, lambda value: put(*value), (False, True))
    return _Setting(get, put, False)


_SETTINGS = (
    _cudnn("benchmark", False),
    _cudnn("deterministic", True),
    _cudnn("allow_tf32", False),
    _cublas("fp16_reduced_precision_reduction"),
    _cublas("bf16_reduced_precision_reduction"),
    *([_cublas("fp16_accumulation")] if hasattr(torch._C, "_get_cublas_allow_fp16_accumulation") else []),  # 2.7
    _Setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
    _Setting(torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp, False),
)
_STRICT = [setting.strict for setting in _SETTINGS]


def _settings() -> list[Any]:
    return [setting.get() for setting in _SETTINGS]


def _set(values: list[Any]) -> None:
    for setting, value in zip(_SETTINGS, values, strict=True):
        setting.put(value)


class _StrictSettings:
    """Counts strict calls: the first one sets the settings, the last one to end restores them, in any order of ends."""

    def __init__(self) -> None:
        self._lock, self._calls = Lock(), 0
        self._before: list[Any]
        renew_in_child(self._end_calls)

    def __enter__(self) -> None:
        with self._lock:
            if self._calls == 0:
                self._before = _settings()
                self._calls = 1  # before the settings change, so that a fork in between restores them
                _set(_STRICT)
            else:
                self._calls += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._calls == 1:
                _set(self._before)
            self._calls = max(self._calls - 1, 0)  # already 0 if a forked child ended the call

    def _end_calls(self) -> None:
        """End the calls of the parent's threads in a forked child."""
        if self._calls:
            self._calls = 0
            _set(self._before)


strict_settings = _StrictSettings()
"""A context that switches off settings that trade exactness for speed, or slow one call to speed up later ones.

Off are TF32 (cuDNN would use it for float32), sums in 16 bits within cuBLAS, algorithms chosen by timing, and attention
by cuDNN (the first choice on Hopper, but it builds a plan for every new shape).
"""


class _Helper:
    """A thread that works on behalf of the thread in which this process was forked."""

    def __init__(self) -> None:
        self._work: SimpleQueue[tuple[Callable[[], object], Future[object]]] = SimpleQueue()
        threading.Thread(target=self._run, name="mmn_fast-torch", daemon=True).start()

    def call(self, work: Callable[[], object]) -> object:
        """Run the work on this thread; return its result or raise its exception."""
        result: Future[object] = Future()
        self._work.put((work, result))
        return result.result()

    def _run(self) -> None:
        while True:
            work, result = self._work.get()
            try:
                result.set_result(work())
            except BaseException as error:  # the caller gets any error
                result.set_exception(error)
            del work, result  # otherwise arrays of this call would stay alive until the next call


_threads_lock = Lock()
"""Only one call at a time may change the number of threads; the call restores it."""
_helper: _Helper | None = None


def _forget_helper() -> None:
    global _helper
    _helper = None


renew_in_child(_forget_helper)


def on_usable_thread(work: Callable[[], T]) -> T:
    """Run PyTorch work that may use OpenMP, with this thread's number of threads.

    In the thread in which a process was forked, OpenMP waits for ever for threads that exist only in the parent. A new
    thread gets new OpenMP threads, so a helper thread does the work of the forked one.

    Args:
        work: the work; a fork waits for its end.

    Returns:
        The work's result.
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
    """Run inference with PyTorch, with `strict_settings`.

    Args:
        work: the work.
        threads: CPU threads; None leaves the process's setting alone. Calls that name a number wait for each other.

    Returns:
        The work's result.
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
    """Why a fork makes PyTorch's CUDA unusable in this process, in one sentence; None if no fork does."""
    if torch.cuda._is_in_bad_fork():
        return (
            "this process was forked from one that used CUDA, and CUDA does not work after a fork; start it with spawn"
            " or forkserver"
        )
    return None
