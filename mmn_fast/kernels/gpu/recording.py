"""CUDA graphs in PyTorch: which stream captures, and beside whom."""

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

_STREAMS = 32  # PyTorch hands these out again and again, per device
_handed_out: WeakValueDictionary[tuple[int, int], torch.cuda.Stream] = WeakValueDictionary()
_handing_out = Lock()
_common: Once[int, torch.cuda.Stream] = Once()  # per device, for captures that bring no stream


def own_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream that no other caller holds, until the caller lets go of it.

    Two holders of one stream would record each other's work, and their graphs share the libraries' workspaces, which
    PyTorch keeps per stream. Beyond 32 holders on a device streams are shared after all.
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
        outputs: what the work returned when it was recorded; a replay writes there.
        stream: the one that captured, held as long as the graph, which may use that stream's workspaces.
    """

    graph: torch.cuda.CUDAGraph
    outputs: T
    stream: torch.cuda.Stream

    def replay(self) -> T:
        """Queue the work on the current stream; its outputs."""
        self.graph.replay()
        return self.outputs


def record(work: Callable[[], T], stream: torch.cuda.Stream | None = None, pool: Any = None) -> Recording[T]:
    """Capture what a function queues on the current device, alone in this process (`captures.capturing`).

    Without a stream PyTorch captures on one that it keeps for the whole process, on the device of the first capture:
    on any other device nothing would be recorded.

    Args:
        work: queues it, on the current stream; has run before, so that libraries have made their handles.
        stream: captures, and is of the current device; None takes one that this process keeps for such captures on it,
            which suits graphs that are replayed one at a time.
        pool: memory that graphs share, as `torch.cuda.graph_pool_handle` gives it; captures that share a pool have to
            share a stream.
    """
    if stream is None:
        device = torch.cuda.current_device()
        stream = _common.get(device, lambda: own_stream(torch.device("cuda", device)))
    pool = torch.cuda.graph_pool_handle() if pool is None else pool
    graph = torch.cuda.CUDAGraph()
    # "thread_local": in this thread alone CUDA refuses what is unsafe within a capture, such as cudaMalloc. "global"
    # would void this capture for any thread that allocates or asks for an event: another engine at its first request,
    # or a data loader that pins memory. Other threads may launch and replay; to wait for the whole device or to empty
    # PyTorch's cache they have to wait (`between_captures`).
    # The stream is entered by itself too: where the end of a capture fails, `torch.cuda.graph` leaves its stream on.
    with capturing(), torch.cuda.stream(stream):
        try:
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                outputs = work()
        except BaseException:
            _give_up(pool)
            raise
    return Recording(graph, outputs, stream)


def _give_up(pool: Any) -> None:
    """Tell the allocator of the current device that a capture is over, if its end has not.

    PyTorch tells it of ends that succeed alone. After one that CUDA voided, it would still count a capture, and refuse
    to empty its cache, without which no other capture begins.
    """
    end = getattr(torch._C, "_cuda_endAllocateToPool", None)  # in PyTorch 2.6 by another name
    if end is None:
        return
    device = torch.cuda.current_device()
    try:
        end(device, pool)
    except RuntimeError:  # it knows
        return
    torch._C._cuda_releasePool(device, pool)
