"""The place of the proposal convolution on a device, and the one that the library's dense convolutions take."""

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
    """The layers of a proposal convolution, and where they run.

    Attributes:
        weights: per layer float32 [C_out, C_in, k, k], BatchNorm folded in.
        biases: per layer float32 [C_out].
        plan: which cells are needed.
        dtype: of operands.
        device: where to run.
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
    """The place of the proposal convolution.

    Its call takes the zero-bordered map [(N + 2 border)^2, B, C_0], contiguous, with border = (k-1)L/2, and returns the
    last layer at the plan's cells, [P, B, C], contiguous, of the map's dtype. It queues work on torch's current stream,
    does not wait, and can be captured in a graph.
    """

    name: str

    def __call__(self, map_padded: Tensor) -> Tensor: ...

    def workspace_bytes(self, videos: int) -> int:
        """Memory that it keeps between calls for a number of videos, beside weights and tables; counted."""

    def release(self) -> None:
        """Let go of that memory; no graph that was captured may be replayed any more."""

    def info(self) -> dict[str, Any]:
        """What `Engine.info` says of it, its name as "proposal_conv"."""


class CropProposalConv:
    """Dense convolutions by the library, cropped to boxes that hold the needed cells; for any device.

    Args:
        settings: its layers; sums are float32 in the library's kernels.
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
            # Cells outside the boxes stay 0: each is known to be 0 or read by no needed cell. So are, inside, those
            # that are not needed.
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
    """Weight and place of each cell of a box: float32 and int32 [cells], -1 for a cell that is not needed."""
    layer = plan.layers[number]
    place = np.full((layer.side, layer.side), -1, np.int32)
    if number + 1 == len(plan.layers):
        place[layer.cells[:, 0], layer.cells[:, 1]] = np.arange(len(layer.cells))
    else:
        place[layer.cells[:, 0], layer.cells[:, 1]] = layer.cells[:, 0] * layer.side + layer.cells[:, 1]
    window = (slice(box.top, box.bottom), slice(box.left, box.right))
    return np.ascontiguousarray(layer.weights[window]).ravel(), np.ascontiguousarray(place[window]).ravel()
