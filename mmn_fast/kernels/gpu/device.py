"""A CUDA device as PyTorch sees it: availability, compute capability, strict arithmetic, errors of lacking memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mmn_fast.kernels import host
from mmn_fast.process.torch_threads import cuda_lost_by_fork, strict_settings

_LEAST_CAPABILITY = (8, 0)  # csrc/cuda has no machine code for lower ones


def device_index(device: str) -> int:
    """N of "cuda:N"; PyTorch's current device for "cuda" and "auto"."""
    if device in ("auto", "cuda"):
        return torch.cuda.current_device() if torch.cuda.is_available() else 0
    return int(device.partition(":")[2] or 0)


def unavailable_reason(device: str) -> str | None:
    """Why the extension's kernels cannot run on a device, as a sentence; None if they can.

    Args:
        device: "auto", "cuda" or "cuda:N".
    """
    if not host.build_info()["cuda"]:
        return (
            f"device {device!r}: this build of mmn_fast has no CUDA kernels; install it with MMN_FAST_CUDA=ON and"
            " nvcc on PATH"
        )
    lost = cuda_lost_by_fork()
    if lost:
        return f"device {device!r}: {lost}"
    if torch.version.cuda is None:
        return f"device {device!r}: PyTorch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return f"device {device!r}: PyTorch {torch.__version__} finds no CUDA driver or no device"
    index, count = device_index(device), torch.cuda.device_count()
    if index >= count:
        return f"device {device!r}: there are {count} CUDA devices"
    capability = torch.cuda.get_device_capability(index)
    if capability < _LEAST_CAPABILITY:
        needed, got = (".".join(map(str, pair)) for pair in (_LEAST_CAPABILITY, capability))
        name = torch.cuda.get_device_name(index)
        return f"device {device!r}: it needs compute capability {needed}, {name} has {got}"
    return None


def capability_of(device: torch.device) -> tuple[int, int]:
    """A CUDA device's compute capability; (0, 0) for other devices."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


@contextmanager
def strict_arithmetic() -> Iterator[None]:
    """Run inference without TF32 and without algorithms that are chosen by timing."""
    with torch.inference_mode(), strict_settings:
        yield


def out_of_memory(error: BaseException | None) -> BaseException | None:
    """The out-of-memory error behind an error, or None: the end of a failed capture raises another error over it."""
    while error is not None and not isinstance(error, torch.OutOfMemoryError):
        error = error.__context__
    return error
