"""Precisions by name: the one table of what they are and who has which. Needs PyTorch only for its dtypes."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Name -> PyTorch's dtype of the operands, by name; None where PyTorch multiplies no such operands here.
_DTYPES = {
    "fp64": "float64",
    "fp32": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp8": None,
    "int8": None,
}
PRECISIONS = tuple(_DTYPES)
"""What `precision` may name; a backend refuses those that it does not have."""
EXPORTED = ("fp32", "fp16", "bf16", "int8")
"""Precisions of an export's graphs."""
ON_CUDA = ("fp16", "bf16", "fp32")
"""Precisions of the kernels for CUDA."""
TRAINED = ("fp32", "bf16", "fp16")
"""Precisions of a training run."""


def torch_dtype(precision: str) -> torch.dtype:
    """PyTorch's dtype of a precision's operands."""
    import torch

    found: torch.dtype = getattr(torch, str(_DTYPES[precision]))
    return found


def precision_of(dtype: torch.dtype) -> str:
    """The precision whose operands have a dtype."""
    return next(name for name, kind in _DTYPES.items() if str(dtype) == f"torch.{kind}")


def refusal(precision: str, known: Collection[str], whose: str = "its precisions") -> str | None:
    """Why a backend cannot run in a precision, in one sentence; None if it can, or for "auto".

    Args:
        precision: "auto" or one of `PRECISIONS`.
        known: those that the backend has.
        whose: what the message calls them.
    """
    if precision in ("auto", *known):
        return None
    return f"precision {precision!r} is not one of {whose} ({', '.join(known)})"
