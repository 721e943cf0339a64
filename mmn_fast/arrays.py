"""NumPy arrays: names by dtype, for annotations (docstrings give the shapes), and a description for messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Bool = npt.NDArray[np.bool_]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Uint8 = npt.NDArray[np.uint8]


def described(array: Any) -> str:
    """Describe an array briefly, such as "float32 [2, 136, 256]"; for other values, give the type's name."""
    shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
    if shape is None or dtype is None:
        return type(array).__name__
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"
