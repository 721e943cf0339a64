"""The interface of a proposal convolution on a device, and its implementation by the library's dense convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmn_fast.arrays import Float32, Int32
from mmn_fast.geometry import ProposalPlan
from mmn_fast.geometry_crops import Box, crop_plan
from mmn_fast.kernels.gpu import video_ops


@dataclass(frozen=True, eq=False)
class ConvSettings:
    """The layers of a proposal convolution, and their device.

    Attributes:
        weights: per layer float32 [C_out, C_in, k, k], BatchNorm folded in.
        biases: per layer float32 [C_out].
        plan: the needed cells and taps.
        dtype: dtype of the operands.
        device: the device that runs the layers.
    """

    weights: Sequence[Float32]
    biases: Sequence[Float32]
    plan: ProposalPlan
    dtype: torch.dtype
    device: torch.device

    @property
    def widths(self) -> list[int]:
        """Channels of the map and of every layer, L + 1."""
        return [self.weights[0].shape[1], *map(len, self.biases)]


class GpuProposalConv(Protocol):
    """The interface of a proposal convolution on a device.

    A call takes the zero-bordered map [(N + 2 border)^2, B, C_0], contiguous, with border = (k-1)L/2. It returns the
    last layer at the plan's cells, [P, B, C], contiguous, in the map's dtype. It queues work on torch's current stream,
    does not wait, and can be captured in a graph.
    """

    name: str

    def __call__(self, map_padded: Tensor) -> Tensor: ...

    def workspace_bytes(self, videos: int) -> int:
        """Computed size of the memory kept between calls for a number of videos, without weights and tables."""

    def release(self) -> None:
        """Free that memory; graphs captured before must not be replayed any more."""

    def info(self) -> dict[str, Any]:
        """Facts for `Engine.info`; the key "proposal_conv" holds the name."""


class CropProposalConv:
    """Dense convolutions by the library, cropped to boxes that hold the needed cells; for any device.

    Args:
        settings: the layers; the library's kernels sum in float32.
    """

    name = "crop"

    def __init__(self, settings: ConvSettings) -> None:
        plan, device = settings.plan, settings.device
        self._plan = plan
        weights = [torch.from_numpy(weight).to(device, settings.dtype) for weight in settings.weights]
        self._weights = [weight.to(memory_format=torch.channels_last) for weight in weights]
        self._biases = [torch.from_numpy(bias).to(device) for bias in settings.biases]
        self._boxes = crop_plan(plan)
        tables = [[_epilogue_tables(plan, number, box) for box in boxes] for number, boxes in enumerate(self._boxes)]
        self._cell_weights = [[torch.from_numpy(weights).to(device) for weights, _ in layer] for layer in tables]
        self._positions = [[torch.from_numpy(positions).to(device) for _, positions in layer] for layer in tables]

    def workspace_bytes(self, videos: int) -> int:
        return 0

    def release(self) -> None:
        """Nothing is kept."""

    def info(self) -> dict[str, Any]:
        return {"proposal_conv": self.name}

    def __call__(self, map_padded: Tensor) -> Tensor:
        plan, k = self._plan, self._plan.kernel
        _, videos, channels = map_padded.shape
        side = plan.num_clips + 2 * plan.border
        x = map_padded.transpose(0, 1).reshape(videos, side, side, channels)
        for number, layer in enumerate(plan.layers):
            weight = self._weights[number]
            last = number + 1 == len(plan.layers)
            # Cells outside the boxes, and unneeded cells inside, stay 0: each is known to be 0 or no needed cell reads
            # it.
            shape = (plan.num_proposals, videos) if last else (videos, layer.side**2)
            out = x.new_zeros((*shape, weight.shape[0]))
            for box, cell_weights, positions in zip(
                self._boxes[number], self._cell_weights[number], self._positions[number], strict=True
            ):
                inputs = x[:, box.top : box.bottom + k - 1, box.left : box.right + k - 1]
                inputs = inputs.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
                products = F.conv2d(inputs, weight).permute(0, 2, 3, 1).contiguous()
                rows = products.view(videos, box.num_cells, -1)
                video_ops.conv_epilogue(rows, self._biases[number], cell_weights, positions, out, not last)
            x = out if last else out.view(videos, layer.side, layer.side, -1)
        return x


def _epilogue_tables(plan: ProposalPlan, number: int, box: Box) -> tuple[Float32, Int32]:
    """Weight and place of each cell of a box: float32 and int32 [cells]; an unneeded cell has place -1."""
    layer = plan.layers[number]
    place = np.full((layer.side, layer.side), -1, np.int32)
    if number + 1 == len(plan.layers):
        place[layer.cells[:, 0], layer.cells[:, 1]] = np.arange(len(layer.cells))
    else:
        place[layer.cells[:, 0], layer.cells[:, 1]] = layer.cells[:, 0] * layer.side + layer.cells[:, 1]
    window = (slice(box.top, box.bottom), slice(box.left, box.right))
    return np.ascontiguousarray(layer.weights[window]).ravel(), np.ascontiguousarray(place[window]).ravel()
