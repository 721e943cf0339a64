"""Device memory, streams, copies and graphs, through the CUDA runtime's Python bindings; no torch.

The bindings (`cuda.bindings.runtime`, package cuda-bindings) are imported when a device is opened.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy.typing as npt

from mmn_fast.errors import BackendUnavailable

INSTALL = "the CUDA runtime's Python bindings are not installed (pip install cuda-bindings)"


@dataclass(frozen=True)
class Gpu:
    """A GPU's name and compute capability (major, minor)."""

    name: str
    compute_capability: tuple[int, int]


class Resource:
    """Device memory, a stream or a graph; given back when its last reference goes.

    Args:
        handle: the resource's address or handle.
        give_back: the runtime's function that gives it back; the function's error is ignored.
    """

    def __init__(self, handle: Any, give_back: Callable[[Any], Any]) -> None:
        self.handle = handle
        weakref.finalize(self, _give_back, os.getpid(), give_back, handle)


def _give_back(owner: int, give_back: Callable[[Any], Any], handle: Any) -> None:
    if os.getpid() == owner:  # a forked process has the handle, but CUDA does not work there
        give_back(handle)


def bindings() -> Any | None:
    """The module `cuda.bindings.runtime`; None if it is not installed."""
    try:
        return import_module("cuda.bindings.runtime")
    except ImportError:
        return None


def unavailable_reason(number: int) -> str | None:
    """Why the GPU with this number cannot be used, as a sentence; None if it can."""
    runtime = bindings()
    if runtime is None:
        return INSTALL
    error, count = runtime.cudaGetDeviceCount()
    if int(error) or not count:
        return f"CUDA sees no device ({_words(runtime, error)})" if int(error) else "CUDA sees no device"
    return None if number < count else f"device 'cuda:{number}': there are {count} CUDA devices"


class Cuda:
    """One GPU. Every call that needs it makes it current for the calling thread.

    Args:
        number: the GPU's number.

    Raises:
        BackendUnavailable: the bindings or the GPU do not exist.
    """

    def __init__(self, number: int = 0) -> None:
        reason = unavailable_reason(number)
        if reason is not None:
            raise BackendUnavailable(reason)
        self.number = number
        self._runtime: Any = bindings()
        self.make_current()

    def make_current(self) -> None:
        """Make this GPU current for the calling thread."""
        self._call("cudaSetDevice", self.number)

    def gpu(self) -> Gpu:
        """Name and compute capability."""
        found = self._call("cudaGetDeviceProperties", self.number)
        name = found.name.decode() if isinstance(found.name, bytes) else str(found.name)
        return Gpu(name.rstrip("\0"), (int(found.major), int(found.minor)))

    def allocate(self, size: int) -> Resource:
        """New device memory of `size` bytes, aligned to 256."""
        return self._owned(int(self._call("cudaMalloc", size)), "cudaFree")

    def stream(self) -> Resource:
        """A new stream that does not wait for the default one."""
        stream = self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)
        return self._owned(int(stream), "cudaStreamDestroy")

    def upload(self, address: int, array: npt.NDArray[Any], stream: int) -> None:
        """Enqueue a copy of a contiguous array to the device; the array must live until the stream is synchronised."""
        assert array.flags.c_contiguous
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, kind, stream)

    def download(self, array: npt.NDArray[Any], address: int, stream: int) -> None:
        """Enqueue a copy from the device to a contiguous array; it is filled when the stream is synchronised."""
        assert array.flags.c_contiguous
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, kind, stream)

    def synchronize(self, stream: int) -> None:
        """Wait until a stream's work is done."""
        self._call("cudaStreamSynchronize", stream)

    def begin_capture(self, stream: int) -> None:
        """Record what this thread enqueues on the stream, instead of running it."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> Resource:
        """End the recording and make it launchable."""
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._owned(self._call("cudaGraphInstantiate", graph, 0), "cudaGraphExecDestroy")
        finally:
            self._call("cudaGraphDestroy", graph)

    def abandon_capture(self, stream: int) -> None:
        """End a recording that failed, and drop it."""
        with suppress(BackendUnavailable):  # a failed capture's end reports the failure again
            self._call("cudaGraphDestroy", self._call("cudaStreamEndCapture", stream))

    def launch(self, graph: Resource, stream: int) -> None:
        """Enqueue a graph of `end_capture`."""
        self._call("cudaGraphLaunch", graph.handle, stream)

    def _owned(self, handle: Any, give_back: str) -> Resource:
        return Resource(handle, getattr(self._runtime, give_back))

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the runtime; every function returns its error first."""
        error, *values = getattr(self._runtime, name)(*arguments)
        if int(error):
            raise BackendUnavailable(f"CUDA: {name} failed ({_words(self._runtime, error)})")
        return values[0] if values else None


def device_number(device: str) -> int:
    """N of "cuda:N"; 0 for "cuda" and "auto"."""
    return int(device.partition(":")[2] or 0)


def _words(runtime: Any, error: Any) -> str:
    _, words = runtime.cudaGetErrorString(error)
    return words.decode() if isinstance(words, bytes) else str(words)
