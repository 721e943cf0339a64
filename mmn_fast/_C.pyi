"""The extension that CMakeLists.txt builds. The cuda_ functions exist where build_info()["cuda"] is true."""

# ruff: noqa: N999  (the leading underscore and capital are the convention for an extension)

from typing import TypedDict

import numpy as np
import numpy.typing as npt

class BuildInfo(TypedDict):
    version: str
    compiler: str
    build_type: str
    cuda: bool
    cuda_version: str | None
    cuda_archs: list[str]

def build_info() -> BuildInfo: ...
def cpu_isa() -> str: ...
def available_cpu_isas() -> list[str]: ...
def kernel_isas(isa: str | None = None) -> dict[str, str]: ...
def sparse_max_pool(
    clips: npt.NDArray[np.float32],  # [B, C, N]
    mask: npt.NDArray[np.bool_] | npt.NDArray[np.uint8],  # [N, N]
    out: npt.NDArray[np.float32],  # [B, C, N, N]
    threads: int,
    isa: str | None = None,
) -> None: ...
def temporal_nms(
    scores: npt.NDArray[np.float32],  # [S, P]
    moments: npt.NDArray[np.float32],  # [P, 2] seconds
    iou_threshold: float,
    top_k: int,
    out: npt.NDArray[np.int32],  # [S, top_k]
    threads: int,
    isa: str | None = None,
) -> None: ...
def cuda_sparse_max_pool(clips: int, mask: int, out: int, channels: int, n: int, device: int, stream: int) -> None: ...
def cuda_temporal_nms(
    scores: int,
    moments: int,
    keys: int,
    out: int,
    queries: int,
    cells: int,
    top_k: int,
    iou_threshold: float,
    device: int,
    stream: int,
) -> None: ...
