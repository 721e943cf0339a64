"""How the GPU engine's own ops become PyTorch operators `mmn_fast::*`, and what they check of their arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmn_fast.kernels import host

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""Types of elements, and their numbers in the extension."""
ELEMENTS = tuple(DTYPES)
FLOAT = (torch.float32,)
INT = (torch.int32,)


def operator(schema: str, fake: Callable[..., Any] | None = None, mutates: Sequence[str] = ()) -> Callable[..., Any]:
    """Register a function as `mmn_fast::<its name>`; the operator replaces it.

    Args:
        schema: its signature.
        fake: makes outputs of the right shape and dtype from the same arguments; None for an op without outputs.
        mutates: arguments that it writes.
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
    """`host.require_tensor` for tensors of any device."""
    host.require_tensor(name, value, dtypes, shape, device, cuda_only=False)


def where(tensor: Tensor) -> tuple[int, int]:
    """Device number and stream for the extension; -1 for the twin."""
    if not tensor.is_cuda:
        return -1, 0
    return tensor.get_device(), torch.cuda.current_stream(tensor.device).cuda_stream
