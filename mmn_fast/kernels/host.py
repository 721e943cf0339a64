"""The compiled extension and what this host offers it: instruction set, threads, CUDA."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmn_fast.errors import InputError
from mmn_fast.process.cores import usable_cores
from mmn_fast.process.environment import requested_threads

if TYPE_CHECKING:
    import torch

try:
    from mmn_fast import _C
except ImportError as error:
    raise ImportError(
        f"mmn_fast._C could not be imported ({error}); build it by `pip install .` in the source tree"
    ) from error


extension = _C
build_info = _C.build_info


def cpu_isa() -> str:
    """The instruction set in use, "generic", "avx2", "avx512", "avx512_bf16" or "amx".

    Raises:
        InputError: `MMN_FAST_CPU_ISA` names none, or one that this host or build lacks.
    """
    try:
        return _C.cpu_isa()
    except ValueError as error:
        raise InputError(str(error)) from None


def num_threads(threads: int | None = None) -> int:
    """Threads that an op uses: `threads`, else `MMN_FAST_NUM_THREADS`, else `process.cores.usable_cores()`.

    Raises:
        InputError: It is no whole number from 1 to 4096.
    """
    return requested_threads(threads) or usable_cores()


def has_cuda_device() -> bool:
    """Whether the CUDA driver is there and shows this process a device. Asks the driver itself, not PyTorch."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def require_cuda_build() -> None:
    """Refuse a build without CUDA kernels.

    Raises:
        RuntimeError: it has none.
    """
    if not build_info()["cuda"]:
        raise RuntimeError(
            "this build of mmn_fast has no CUDA kernels: install it with MMN_FAST_CUDA=ON and nvcc on PATH"
        )


def require_tensor(
    name: str,
    value: torch.Tensor,
    dtypes: Sequence[torch.dtype],
    shape: Sequence[int | None],
    device: torch.device | None = None,
    cuda_only: bool = True,
) -> None:
    """Check a tensor; `None` in `shape` stands for any size, and as `device` for any, of CUDA if `cuda_only`.

    Raises:
        TypeError: no tensor, or of another dtype.
        ValueError: another device, shape or layout.
    """
    import torch

    dtype_names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    sizes = ", ".join("?" if size is None else str(size) for size in shape)
    place = device or ("a CUDA device" if cuda_only else "any device")
    expected = f"{name}: expected contiguous {dtype_names} [{sizes}] on {place}"
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{expected}, got {type(value).__name__}")
    got = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} on {value.device}"
    if value.dtype not in dtypes:
        raise TypeError(f"{expected}, got {got}")
    fits = len(shape) == value.dim() and all(s in (None, v) for s, v in zip(shape, value.shape, strict=True))
    if not fits or (cuda_only and not value.is_cuda) or value.device != (device or value.device):
        raise ValueError(f"{expected}, got {got}")
    if not value.is_contiguous():
        raise ValueError(f"{expected}, got it with strides {value.stride()}")
