"""A double of PyTorch's CUDA graphs for tensors on the CPU: captures are recorded operators, devices are "cpu:N".

The double refuses, voids a capture or records nothing in the same cases as CUDA and PyTorch: a second capture in the
process, waiting for a device or emptying the cache during a capture, a capture on another device's stream. It cannot
show real captures on two devices in two threads.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmn_fast.runtime.graph_runner import GraphRunner

POOL = 32  # streams per device, handed out in turn


class Stream:
    """Stands for `torch.cuda.Stream`: a stream from the device's pool."""

    double: CudaGraphs

    def __init__(self, device: torch.device | int) -> None:
        self.device = torch.device("cpu", device) if isinstance(device, int) else device
        with self.double.guard:
            given = self.double.streams_given.get(self.index, 0)
            self.double.streams_given[self.index] = given + 1
        self.cuda_stream = 1000 * self.index + given % POOL + 1

    @property
    def index(self) -> int:
        """The device's number."""
        return self.device.index or 0


class _Operators(TorchDispatchMode):
    """Records operators and the tensors that they returned."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, found))
        return found


class StreamContext:
    """Stands for `torch.cuda.stream`: sets the thread's device and stream until the context is left."""

    def __init__(self, local: threading.local, stream: Stream) -> None:
        self._local, self._stream = local, stream

    def __enter__(self) -> None:
        self._before = getattr(self._local, "device", 0), getattr(self._local, "stream", None)
        self._local.device, self._local.stream = self._stream.index, self._stream

    def __exit__(self, *_: object) -> None:
        self._local.device, self._local.stream = self._before


class CudaGraphs:
    """Stands for the parts of `torch.cuda` that captures use.

    Attributes:
        captures: per capture the thread, its stream's device and handle, and the pool.
        problems: calls that CUDA would have refused.
        underway: device and pool of each capture that the allocator believes to be running.
        released: device and pool of each capture that was given up.
    """

    def __init__(self) -> None:
        self.guard = threading.Lock()
        self.streams_given: dict[int, int] = {}
        self.captures: list[tuple[int, int, int, Any]] = []
        self.problems: list[str] = []
        self.underway: list[tuple[int, Any]] = []
        self.released: list[tuple[int, Any]] = []
        self.fail_at_end = False
        self._local = threading.local()
        self._pools = 0

    # Functions of torch.cuda -------------------------------------------------------------------------------------

    def current_device(self) -> int:
        return getattr(self._local, "device", 0)

    def current_stream(self, device: Any = None) -> Any:
        return getattr(self._local, "stream", None)

    def stream(self, stream: Stream) -> StreamContext:
        return StreamContext(self._local, stream)

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before = self.current_device()
        self._local.device = device.index
        try:
            yield
        finally:
            self._local.device = before

    def synchronize(self, device: Any = None) -> None:
        if any(number == self.current_device() for number, _ in self.underway):
            self.refuse("a device was waited for amid a capture on it")

    def empty_cache(self) -> None:
        if self.underway:
            self.refuse("the cache was emptied amid a capture")

    def memory_reserved(self, device: Any = None) -> int:
        return 0

    def graph_pool_handle(self) -> tuple[int, int]:
        with self.guard:
            self._pools += 1
        return 0, self._pools

    def end_allocate_to_pool(self, device: int, pool: Any) -> None:
        if (device, pool) not in self.underway:
            raise RuntimeError("not currently recording to mempool_id")
        self.underway.remove((device, pool))

    def release_pool(self, device: int, pool: Any) -> None:
        self.released.append((device, pool))

    def refuse(self, problem: str) -> None:
        """Note a call that CUDA refuses, and raise PyTorch's exception."""
        self.problems.append(problem)
        raise RuntimeError(f"CUDA error: {problem}")


class Graph:
    """Stands for `torch.cuda.CUDAGraph`: replays operators into the tensors that they returned."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        for func, args, kwargs, outputs in self.calls:
            given = {id(leaf) for leaf in tree_leaves((args, kwargs))}
            again = func(*args, **kwargs)
            for place, value in zip(tree_leaves(outputs), tree_leaves(again), strict=True):
                if isinstance(place, torch.Tensor) and id(place) not in given:
                    place.copy_(value)


class CaptureContext:
    """Stands for `torch.cuda.graph`: one stream per process; if the end fails, stream and capture stay active."""

    double: CudaGraphs
    default_capture_stream: Stream | None = None

    def __init__(
        self, cuda_graph: Graph, pool: Any = None, stream: Any = None, capture_error_mode: str = "global"
    ) -> None:
        if stream is None and type(self).default_capture_stream is None:
            type(self).default_capture_stream = Stream(self.double.current_device())
        self._stream: Stream = stream or type(self).default_capture_stream
        self._graph, self._pool = cuda_graph, pool
        self._on, self._operators = self.double.stream(self._stream), _Operators()
        self._device_before = 0

    def __enter__(self) -> None:
        double = self.double
        self._device_before = double.current_device()
        double.synchronize()
        double.empty_cache()
        self._on.__enter__()
        with double.guard:
            if double.underway:
                double.refuse("a capture while another one is under way")
            if gc.isenabled():
                double.refuse("a capture with garbage collection on")
            double.underway.append((self._stream.index, self._pool))
            double.captures.append((threading.get_ident(), self._stream.index, self._stream.cuda_stream, self._pool))
        time.sleep(0.02)  # time for another thread to interfere
        self._operators.__enter__()

    def __exit__(self, *args: Any) -> None:
        double = self.double
        self._operators.__exit__(*args)
        if double.fail_at_end:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        with double.guard:
            double.underway.remove((self._stream.index, self._pool))
        self._on.__exit__(*args)
        if self._stream.index == self._device_before:  # otherwise the work went to a stream without a capture
            self._graph.calls = self._operators.calls


def put_on(runner: GraphRunner, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a runner of the CPU use graphs, as on CUDA device `number`."""
    monkeypatch.setattr(runner, "device", torch.device("cpu", number))
    monkeypatch.setattr(runner, "graphs_on", True)
    monkeypatch.setattr(runner, "_on_cuda", True)
    monkeypatch.setattr(runner, "pinned", lambda array: torch.from_numpy(np.array(array)))


def install(monkeypatch: pytest.MonkeyPatch) -> CudaGraphs:
    """Replace the capture functions of `torch.cuda` by a double."""
    double = CudaGraphs()
    for kind in (Stream, CaptureContext):
        monkeypatch.setattr(kind, "double", double, raising=False)
    monkeypatch.setattr(CaptureContext, "default_capture_stream", None)
    for name in (
        *("current_device", "current_stream", "device", "stream", "synchronize", "empty_cache", "memory_reserved"),
        "graph_pool_handle",
    ):
        monkeypatch.setattr(torch.cuda, name, getattr(double, name))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", double.end_allocate_to_pool, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_releasePool", double.release_pool, raising=False)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", CaptureContext)
    return double
