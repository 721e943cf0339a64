"""The compiled extension, and this host's instruction set, threads and CUDA devices."""

from __future__ import annotations

import ctypes

from mmn_fast.errors import InputError
from mmn_fast.process.cores import usable_cores
from mmn_fast.process.environment import requested_threads

try:
    from mmn_fast import _C
except ImportError as error:
    raise ImportError(
        f"mmn_fast._C could not be imported ({error}); build it by `pip install .` in the source tree"
    ) from error


extension = _C
build_info = _C.build_info


def cpu_isa() -> str:
    """The instruction set in use, one of the words of `MMN_FAST_CPU_ISA` (`environment`).

    Raises:
        InputError: `MMN_FAST_CPU_ISA` names no instruction set, or one that this host or build lacks.
    """
    try:
        return _C.cpu_isa()
    except ValueError as error:
        raise InputError(str(error)) from None


def num_threads(threads: int | None = None) -> int:
    """Threads that an op uses: `threads`, else `MMN_FAST_NUM_THREADS`, else `process.cores.usable_cores()`.

    Raises:
        InputError: the number is no whole number from 1 to 4096.
    """
    return requested_threads(threads) or usable_cores()


def has_cuda_device() -> bool:
    """Whether the CUDA driver shows this process a device. Asks the driver itself, not PyTorch."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
