"""Captures CUDA graphs in PyTorch without disturbing other threads, and hands out the streams that capture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

import torch

from mmn_fast.kernels.gpu.captures import capturing
from mmn_fast.process.forks import Lock
from mmn_fast.process.once import Once

T = TypeVar("T")

_STREAMS = 32  # PyTorch has so many streams per device and hands them out in turn
_handed_out: WeakValueDictionary[tuple[int, int], torch.cuda.Stream] = WeakValueDictionary()
_handing_out = Lock()
_common: Once[int, torch.cuda.Stream] = Once()  # per device, for captures that bring no stream


def own_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream that no other caller holds, until the caller drops it.

    Two holders of one stream would record each other's work, and their graphs would share the libraries' workspaces
    (PyTorch keeps one per stream). With more than 32 holders on a device, streams are shared nevertheless.
    """
    with _handing_out:
        for _ in range(_STREAMS):
            stream = torch.cuda.Stream(device)
            key = stream.device.index, stream.cuda_stream
            if key not in _handed_out:
                break
        _handed_out[key] = stream
        return stream


@dataclass(frozen=True)
class Recording(Generic[T]):
    """A captured graph.

    Attributes:
        graph: replays the work.
        outputs: the work's results at its capture; a replay overwrites them.
        stream: the capturing stream, held as long as the graph, because the graph may use this stream's workspaces.
    """

    graph: torch.cuda.CUDAGraph
    outputs: T
    stream: torch.cuda.Stream

    def replay(self) -> T:
        """Queue the work on the current stream; return its outputs."""
        self.graph.replay()
        return self.outputs


def record(work: Callable[[], T], stream: torch.cuda.Stream | None = None, pool: Any = None) -> Recording[T]:
    """Capture the work that a function queues on the current device; one capture at a time (`captures.capturing`).

    PyTorch's own default stream for captures belongs to the device of the process's first capture; on another device
    nothing would be recorded there. So every capture here names a stream.

    Args:
        work: queues the work on the current stream. It must have run before, so that libraries have made their handles.
        stream: the capturing stream, on the current device. None takes this process's common stream of the device,
            which suits graphs that are replayed one at a time.
        pool: memory that graphs share (`torch.cuda.graph_pool_handle`). Captures that share a pool must share a stream.
    """
    if stream is None:
        device = torch.cuda.current_device()
        stream = _common.get(device, lambda: own_stream(torch.device("cuda", device)))
    pool = torch.cuda.graph_pool_handle() if pool is None else pool
    graph = torch.cuda.CUDAGraph()
    # With "thread_local", CUDA refuses unsafe calls such as cudaMalloc in this thread alone. With "global", any thread
    # that allocates or queries an event would void this capture: another engine at its first request, or a data loader
    # that pins memory. Other threads may launch and replay; they must use `between_captures` to wait for the whole
    # device or to empty PyTorch's cache.
    # `torch.cuda.stream` restores the current stream even if a capture's end fails; `torch.cuda.graph` then does not.
    with capturing(), torch.cuda.stream(stream):
        try:
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                outputs = work()
        except BaseException:
            _give_up(pool)
            raise
    return Recording(graph, outputs, stream)


def _give_up(pool: Any) -> None:
    """Tell the current device's allocator that a failed capture is over.

    PyTorch reports only ends that succeed. After a voided capture the allocator would still count one and refuse to
    empty its cache, so that no other capture could begin.
    """
    end = getattr(torch._C, "_cuda_endAllocateToPool", None)  # PyTorch 2.6 has another name
    if end is None:
        return
    device = torch.cuda.current_device()
    try:
        end(device, pool)
    except RuntimeError:  # the allocator knows already
        return
    torch._C._cuda_releasePool(device, pool)
