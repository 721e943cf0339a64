"""Makes engines on `NativeGpuBackend`; on the CPU they run the twins of the kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmn_fast.backends.base import Settings
from mmn_fast.backends.native_gpu import NativeGpuBackend
from mmn_fast.checkpoint import load_model
from mmn_fast.engine import Engine

Models = Callable[[str], Path]


def gpu_engine(model: Path, device: str, precision: str = "fp32", **options: Any) -> Engine:
    loaded = load_model(model)
    return Engine(loaded, NativeGpuBackend(loaded, Settings(device, precision, None, options)))
