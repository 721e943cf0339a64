# ruff: noqa: N802, N815 - the names are those of CUDA
"""A double of `cuda.bindings.runtime` that holds callers to the documented API. Its memory is the host's, all NaN."""

from __future__ import annotations

import ctypes
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np


class CudaError(IntEnum):
    """The error codes of the bindings."""

    SUCCESS = 0
    INVALID_VALUE = 1
    NO_DEVICE = 100
    CAPTURE_UNSUPPORTED = 900


class CudaRuntime:
    """Stands for `cuda.bindings.runtime` with one GPU."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, name: str = "Double 9000", capability: tuple[int, int] = (9, 0), devices: int = 1) -> None:
        self.name, self.capability, self.devices = name, capability, devices
        self.memory: dict[int, Any] = {}
        self.streams: set[int] = set()
        self.captured: dict[int, list[Any]] | None = None
        self.launches, self.allocations, self.graphs = 0, 0, 0

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return (CudaError.SUCCESS, self.devices) if self.devices else (CudaError.NO_DEVICE, None)

    def cudaGetErrorString(self, error: CudaError) -> tuple[Any, ...]:
        return CudaError.SUCCESS, error.name.lower().encode()

    def cudaSetDevice(self, number: int) -> tuple[Any, ...]:
        return ((CudaError.SUCCESS if number < self.devices else CudaError.INVALID_VALUE),)

    def cudaGetDeviceProperties(self, number: int) -> tuple[Any, ...]:
        major, minor = self.capability
        return CudaError.SUCCESS, SimpleNamespace(name=self.name.encode(), major=major, minor=minor)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        if self.captured is not None or size < 1:
            return CudaError.CAPTURE_UNSUPPORTED, None
        buffer = np.full(size, 0xFF, np.uint8)  # NaN if read as float32
        self.memory[buffer.ctypes.data] = buffer
        self.allocations += 1
        return CudaError.SUCCESS, buffer.ctypes.data

    def cudaFree(self, address: int) -> tuple[Any, ...]:
        return ((CudaError.SUCCESS if self.memory.pop(address, None) is not None else CudaError.INVALID_VALUE),)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        assert flags == self.cudaStreamNonBlocking
        self.streams.add(len(self.streams) + 7)
        return CudaError.SUCCESS, len(self.streams) + 6

    def cudaStreamDestroy(self, stream: int) -> tuple[Any, ...]:
        self.streams.remove(stream)
        return (CudaError.SUCCESS,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        assert stream in self.streams
        assert self.captured is None, "synchronised while capturing"
        return (CudaError.SUCCESS,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[Any, ...]:
        assert stream in self.streams
        assert self.captured is None, "copied while capturing"
        self.holds(to if kind == 1 else source, size)
        ctypes.memmove(to, source, size)
        return (CudaError.SUCCESS,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Any, ...]:
        assert stream in self.streams
        self.captured = {stream: []}
        return (CudaError.SUCCESS,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        assert self.captured is not None
        work, self.captured = self.captured[stream], None
        self.graphs += 1
        return CudaError.SUCCESS, work

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any, ...]:
        return CudaError.SUCCESS, list(graph)

    def cudaGraphDestroy(self, graph: Any) -> tuple[Any, ...]:
        self.graphs -= 1
        return (CudaError.SUCCESS,)

    def cudaGraphExecDestroy(self, graph: Any) -> tuple[Any, ...]:
        return (CudaError.SUCCESS,)

    def cudaGraphLaunch(self, graph: Any, stream: int) -> tuple[Any, ...]:
        self.launches += 1
        for work in graph:
            work()
        return (CudaError.SUCCESS,)

    def holds(self, address: int, size: int) -> None:
        """Fail if the bytes from an address on are not within one allocation."""
        assert any(a <= address and address + size <= a + len(b) for a, b in self.memory.items()), "not device memory"

    def enqueue(self, work: Any, stream: int) -> None:
        """Run work now, or record it if the stream is being captured."""
        assert stream in self.streams, "the default stream, or none"
        if self.captured is not None:
            self.captured[stream].append(work)
        else:
            work()
