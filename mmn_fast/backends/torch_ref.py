"""The reference backend: the model in plain PyTorch, on any device that PyTorch has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mmn_fast.backends.base import NO_OPTIONS, Backend, Branches
from mmn_fast.checkpoint import LoadedModel
from mmn_fast.kernels.native import usable_cores
from mmn_fast.model import MMN, build_model
from mmn_fast.torch_threads import strict_settings, torch_threads
from mmn_fast.types import FloatArray

_PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchBackend(Backend):
    """Plain PyTorch in float32.

    For bf16 and fp16 the operands of every convolution and linear layer are rounded to that precision and multiplied
    in float32: slower than fp32, and the yardstick for what a fast path in that precision may lose.

    Videos and sentences go through one at a time and unpadded: PyTorch picks its algorithms by shape, so that is
    what makes a result independent of the rest of the batch, bit for bit.
    """

    name = "torch"

    @classmethod
    def unavailable_reason(cls, device: str, precision: str) -> str | None:
        if precision != "auto" and precision not in _PRECISIONS:
            return f"precision {precision!r} is not one of its precisions ({', '.join(_PRECISIONS)})"
        if device.startswith("cuda"):
            if not torch.cuda.is_available():
                return f"device {device!r}: PyTorch {torch.__version__} sees no CUDA device"
            count = torch.cuda.device_count()
            if torch.device(device).index is not None and torch.device(device).index >= count:
                return f"device {device!r}: there are {count} CUDA devices"
        return None

    def __init__(
        self,
        model: LoadedModel,
        device: str,
        precision: str,
        threads: int | None,
        options: Mapping[str, Any] = NO_OPTIONS,
    ) -> None:
        self.preset = model.preset
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.precision = "fp32" if precision == "auto" else precision
        # Waiting threads of PyTorch's spin: many more than there are cores can take minutes over one addition.
        self.threads = None if threads is None else min(threads, usable_cores())
        self.net = build_model(model.preset, model.text, model.state).requires_grad_(False).to(self.device)
        dtype = _PRECISIONS[self.precision]
        if dtype is not None:
            _round_operands(self.net, dtype)

    @contextmanager
    def _running(self) -> Iterator[None]:
        with torch.inference_mode(), torch_threads(self.threads), strict_settings:
            yield

    def encode_video(self, pre_clips: FloatArray) -> Branches:
        with self._running():
            return self._stack(
                [self.net.encode_video(self._take(video[None])) for video in pre_clips],
                (len(self.net.cell_rows), self.net.preset.joint_size),
            )

    def encode_text(self, token_ids: Sequence[npt.NDArray[np.int64]]) -> Branches:
        with self._running():
            return self._stack(
                [self.net.encode_text(self._take(ids[None]), self._take(np.array([len(ids)]))) for ids in token_ids],
                (self.net.preset.joint_size,),
            )

    def score(self, video: Branches, text: Branches) -> Branches:
        with self._running():
            contrastive, iou = self.net.score(
                (self._take(video[0]), self._take(video[1])), (self._take(text[0]), self._take(text[1]))
            )
            return contrastive.cpu().numpy(), iou.cpu().numpy()

    def info(self) -> dict[str, Any]:
        device = str(self.device)
        if self.device.type == "cuda":
            device += f" ({torch.cuda.get_device_name(self.device)})"
        return {
            "device": device,
            "precision": self.precision,
            "threads": self.threads or torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def _take(self, array: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _stack(self, items: list[tuple[torch.Tensor, torch.Tensor]], shape: tuple[int, ...]) -> Branches:
        """One array per branch from results with a leading axis of one; a float32 copy on the CPU."""
        if not items:
            return np.empty((0, *shape), np.float32), np.empty((0, *shape), np.float32)
        contrastive, iou = (torch.cat(branch).cpu().numpy() for branch in zip(*items, strict=True))
        return contrastive, iou


def _round_operands(net: MMN, dtype: torch.dtype) -> None:
    """Make every convolution and linear layer round its weight (now) and its input (on each call) to `dtype`."""

    def round_input(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0].to(dtype).float(), *inputs[1:])

    for module in net.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            module.weight = nn.Parameter(module.weight.to(dtype).float(), requires_grad=False)
            module.register_forward_pre_hook(round_input)
    # ClipPool hands its convolution's weight to a function: its own input is that operand.
    net.featpool.register_forward_pre_hook(round_input)
