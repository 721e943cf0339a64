"""Runs the model in plain PyTorch for backend "torch", on any device of PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from mmn_fast.arrays import Float32, Int64
from mmn_fast.checkpoint import LoadedModel
from mmn_fast.geometry import plan_for
from mmn_fast.kernels import reference
from mmn_fast.model import MMN, build_model
from mmn_fast.precisions import torch_dtype
from mmn_fast.process.cores import limited_cores, usable_cores
from mmn_fast.process.forks import Opened
from mmn_fast.process.torch_threads import on_usable_thread, strictly

_Result = TypeVar("_Result")
_Branches = tuple[Float32, Float32]  # contrastive and iou


class TorchRunner:
    """The three seams in PyTorch; see `backends.torch_ref.TorchBackend`.

    Args:
        model: the model's values.
        device: "cpu", "cuda", "cuda:N", or "auto": CUDA if PyTorch sees a device.
        precision: "fp64", "fp32", "bf16" or "fp16".
        threads: CPU threads; None takes PyTorch's setting, or the cores of a smaller quota (`limited_cores`).
    """

    def __init__(self, model: LoadedModel, device: str, precision: str, threads: int | None) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.precision = precision
        # PyTorch's waiting threads spin: with many more threads than cores, one addition can take minutes.
        self.threads = limited_cores() if threads is None else min(threads, usable_cores())
        self.dtype = torch.float64 if precision == "fp64" else torch.float32  # dtype of sums
        self.net = on_usable_thread(lambda: self._built(model))
        self._packed = on_usable_thread(lambda: _PackedVideoBranch(self.net)) if precision == "fp64" else None
        self._opened = Opened.here(f"device {str(self.device)!r}")

    def _built(self, model: LoadedModel) -> MMN:
        net = build_model(model.preset, model.text, model.state).requires_grad_(False).to(self.device, self.dtype)
        if self.precision in ("bf16", "fp16"):
            _round_operands(net, torch_dtype(self.precision))
        return net

    def _infer(self, work: Callable[[], _Result]) -> _Result:
        self._check_device()
        return strictly(work, self.threads)

    def _check_device(self) -> None:
        if self.device.type == "cuda":
            self._opened.check()

    def encode_video(self, pre_clips: Float32) -> _Branches:
        """As `Backend.encode_video`."""
        encode = self.net.encode_video if self._packed is None else self._packed

        def embed(video: Float32) -> _Branches:
            return self._given(encode(self._take(video[None])))

        return self._each(embed, pre_clips, (len(self.net.cell_rows), self.net.preset.joint_size))

    def encode_text(self, token_ids: Sequence[Int64]) -> _Branches:
        """As `Backend.encode_text`."""

        def embed(ids: Int64) -> _Branches:
            return self._given(self.net.encode_text(self._take(ids[None]), self._take(np.array([len(ids)]))))

        return self._each(embed, token_ids, (self.net.preset.joint_size,))

    def score(self, video: _Branches, text: _Branches) -> _Branches:
        """As `Backend.score`."""

        def matched() -> _Branches:
            branches = [(self._take(one), self._take(other)) for one, other in (video, text)]
            return self._given(self.net.score(*branches))

        return self._infer(matched)

    def info(self) -> dict[str, Any]:
        """As `Backend.info`."""
        self._check_device()
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
        """Move an array to the device; floating-point values get the model's dtype."""
        tensor = torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def _given(self, tensors: tuple[torch.Tensor, torch.Tensor]) -> _Branches:
        """Convert embeddings or scores to float32 arrays."""
        contrastive, iou = tensors
        return contrastive.float().cpu().numpy(), iou.float().cpu().numpy()

    def _each(self, embed: Callable[[Any], _Branches], items: Iterable[Any], shape: tuple[int, ...]) -> _Branches:
        """Embed all items, with one PyTorch call per item, so that a fork waits for at most one item."""
        found = [self._infer(lambda item=item: embed(item)) for item in items]  # type: ignore[misc]
        if not found:
            return np.empty((0, *shape), np.float32), np.empty((0, *shape), np.float32)
        contrastive, iou = (np.concatenate(branch) for branch in zip(*found, strict=True))
        return contrastive, iou


class _PackedVideoBranch:
    """`MMN.encode_video` on only the plan's cells and taps; BatchNorm is folded in the model's own dtype.

    Args:
        net: the model; its convolutions' weights are folded in place.
    """

    def __init__(self, net: MMN) -> None:
        self._net, self._plan = net, plan_for(net.preset)
        self._weights: list[torch.Tensor] = []
        self._biases: list[torch.Tensor] = []
        for conv, bn in zip(net.proposal_conv.convs, net.proposal_conv.bn, strict=True):
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(bn, nn.BatchNorm2d)
            assert conv.bias is not None
            assert bn.running_mean is not None
            assert bn.running_var is not None
            scale = bn.weight / (bn.running_var + bn.eps).sqrt()
            self._weights.append(conv.weight.mul_(scale[:, None, None, None]))
            self._biases.append((conv.bias - bn.running_mean) * scale + bn.bias)

    def __call__(self, pre_clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pre-clips [B, T, D] to contrastive and iou embeddings [B, P, J], unit norm over J."""
        rows, columns = torch.from_numpy(self._plan.inputs).to(pre_clips.device).long().unbind(1)
        inputs = self._net.moment_map(pre_clips)[:, :, rows, columns].mT
        proposals = reference.proposal_conv_packed(inputs, self._weights, self._biases, self._plan)
        heads = self._net.proposal_conv.conv1x1_contrastive, self._net.proposal_conv.conv1x1_iou
        contrastive, iou = (F.normalize(F.linear(proposals, h.weight[:, :, 0, 0], h.bias), dim=-1) for h in heads)
        return contrastive, iou


def _round_operands(net: MMN, dtype: torch.dtype) -> None:
    """Make every convolution and linear layer round its weight (now) and its input (on each call) to `dtype`."""

    def round_input(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0].to(dtype).float(), *inputs[1:])

    for module in net.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            module.weight = nn.Parameter(module.weight.to(dtype).float(), requires_grad=False)
            module.register_forward_pre_hook(round_input)
    # ClipPool passes its convolution's weight to a function, so ClipPool's own input is the operand to round.
    net.featpool.register_forward_pre_hook(round_input)
