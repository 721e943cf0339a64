"""Registers the GPU engine's own ops as PyTorch operators `mmn_fast::*`, and checks their arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""Element type -> its number in the extension."""
ELEMENTS = tuple(DTYPES)
FLOAT = (torch.float32,)
INT = (torch.int32,)


def operator(schema: str, fake: Callable[..., Any] | None = None, mutates: Sequence[str] = ()) -> Callable[..., Any]:
    """Register a function as `mmn_fast::<its name>`; the operator replaces it.

    Args:
        schema: the operator's signature.
        fake: makes outputs of the right shape and dtype from the same arguments; None for an op without outputs.
        mutates: arguments that the operator writes.
    """

    def register(function: Callable[..., Any]) -> Any:
        op = torch.library.custom_op(
            f"mmn_fast::{function.__name__}", function, mutates_args=tuple(mutates), schema=schema
        )
        op.register_fake(fake or (lambda *_: None))
        return op

    return register


def check(
    name: str,
    value: Tensor,
    dtypes: Sequence[torch.dtype],
    shape: Sequence[int | None],
    device: torch.device | None = None,
) -> None:
    """Check a tensor; None in `shape` accepts any size, None as `device` accepts any device.

    Raises:
        TypeError: the value is no tensor, or has another dtype.
        ValueError: the tensor has another device, shape or layout.
    """
    dtype_names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    sizes = ", ".join("?" if size is None else str(size) for size in shape)
    place = device or "any device"
    expected = f"{name}: expected contiguous {dtype_names} [{sizes}] on {place}"
    if not isinstance(value, Tensor):
        raise TypeError(f"{expected}, got {type(value).__name__}")
    got = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} on {value.device}"
    if value.dtype not in dtypes:
        raise TypeError(f"{expected}, got {got}")
    fits = len(shape) == value.dim() and all(s in (None, v) for s, v in zip(shape, value.shape, strict=True))
    if not fits or value.device != (device or value.device):
        raise ValueError(f"{expected}, got {got}")
    if not value.is_contiguous():
        raise ValueError(f"{expected}, got it with strides {value.stride()}")


def where(tensor: Tensor) -> dict[str, int]:
    """The arguments `device` and `stream` for the extension; device -1 runs the twin."""
    if not tensor.is_cuda:
        return {"device": -1, "stream": 0}
    return {"device": tensor.get_device(), "stream": torch.cuda.current_stream(tensor.device).cuda_stream}
