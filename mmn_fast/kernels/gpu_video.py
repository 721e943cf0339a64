"""The video branch on a device: pre-clips to the embeddings of every proposal, in operators and library products.

Maps and rows are channels-last with the videos minor to the cells, [cells, B, C]: a kernel that gathers rows finds the
same cell of all videos side by side. Runs on CPU tensors as well, through the kernels' twins (`gpu_ops`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from mmn_fast.geometry import IntArray, ProposalPlan, plan_for, proposal_diagonals
from mmn_fast.geometry_crops import Box, border_of, crop_plan, padded_rows
from mmn_fast.kernels import gpu_ops
from mmn_fast.kernels.folding import folded_layers
from mmn_fast.presets import Preset
from mmn_fast.types import FloatArray


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
        weights: per layer float32 [C_out, C_in, k, k], BatchNorm folded.
        biases: per layer float32 [C_out].
        plan: which cells are needed.
        dtype: of operands; sums are float32 in the library's kernels.
        device: where to run.
    """

    name = "crop"

    def __init__(
        self,
        weights: Sequence[FloatArray],
        biases: Sequence[FloatArray],
        plan: ProposalPlan,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._plan = plan
        self._weights = [
            torch.from_numpy(weight).to(device, dtype).to(memory_format=torch.channels_last) for weight in weights
        ]
        self._biases = [torch.from_numpy(bias).to(device) for bias in biases]
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
        side = plan.num_clips + 2 * border_of(plan)
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
                gpu_ops.conv_epilogue(rows, self._biases[number], cell_weights, positions, out, not last)
            x = out if last else out.view(videos, layer.side, layer.side, -1)
        return x


def _epilogue_tables(plan: ProposalPlan, number: int, box: Box) -> tuple[FloatArray, IntArray]:
    """Weight and place of each cell of a box: float32 and int32 [cells], -1 for a cell that is not needed."""
    layer = plan.layers[number]
    place = np.full((layer.side, layer.side), -1, np.int32)
    if number + 1 == len(plan.layers):
        place[layer.cells[:, 0], layer.cells[:, 1]] = np.arange(len(layer.cells))
    else:
        place[layer.cells[:, 0], layer.cells[:, 1]] = layer.cells[:, 0] * layer.side + layer.cells[:, 1]
    window = (slice(box.top, box.bottom), slice(box.left, box.right))
    return np.ascontiguousarray(layer.weights[window]).ravel(), np.ascontiguousarray(place[window]).ravel()


class VideoBranch:
    """Pre-clips to proposal embeddings.

    Args:
        preset: sizes and geometry.
        state: float32 arrays under official state-dict keys.
        dtype: float32, float16 or bfloat16: of operands and of what is kept between products.
        device: where to run.
        conv: the proposal convolution; None takes `CropProposalConv`.
    """

    def __init__(
        self,
        preset: Preset,
        state: Mapping[str, npt.NDArray[Any]],
        dtype: torch.dtype,
        device: torch.device,
        conv: GpuProposalConv | None = None,
    ) -> None:
        def take(array: npt.NDArray[Any], kind: torch.dtype = dtype) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device, kind)

        self._preset, self._plan, self._dtype = preset, plan_for(preset), dtype
        self._side = preset.num_clips + 2 * border_of(self._plan)
        self.conv = conv or CropProposalConv(*folded_layers(state, preset.conv_layers), self._plan, dtype, device)
        self._clip_weight = take(state["featpool.conv.weight"][:, :, 0].T)
        self._clip_bias = take(state["featpool.conv.bias"], torch.float32)
        names = [f"proposal_conv.conv1x1_{branch}" for branch in ("contrastive", "iou")]
        heads = np.concatenate([state[f"{name}.weight"][:, :, 0, 0] for name in names])
        self._heads_weight = take(heads.T)
        self._heads_bias = take(np.concatenate([state[f"{name}.bias"] for name in names]), torch.float32)
        positions = np.full((preset.num_clips, preset.num_clips), -1, np.int32)
        positions[self._plan.inputs[:, 0], self._plan.inputs[:, 1]] = padded_rows(self._plan, self._plan.inputs)
        self._positions = take(positions, torch.int32)
        self._map_convs: list[tuple[Tensor, Tensor, int]] = []
        if preset.pooling == "conv":
            for number in range(sum(preset.pooling_counts)):
                weight = take(state[f"feat2d.convs.{number}.weight"])
                bias = take(state[f"feat2d.convs.{number}.bias"])
                self._map_convs.append((weight, bias, weight.shape[2] - 1))  # kernel, stride: (2, 1) or (3, 2)

    def encode(self, pre_clips: Tensor) -> tuple[Tensor, Tensor]:
        """Embed every proposal.

        Args:
            pre_clips: dtype [B, T, D].

        Returns:
            contrastive and iou, dtype [B, P, J] each, unit norm over J.
        """
        return self.embeddings(self.conv(self.moment_map(self.clips(pre_clips))))

    def clips(self, pre_clips: Tensor) -> Tensor:
        """Clips of the 1x1 convolution, dtype [N, B, C], from pre-clips, dtype [B, T, D]."""
        preset, products = self._preset, pre_clips @ self._clip_weight
        pooled: Tensor = gpu_ops.clip_pool(products, self._clip_bias, preset.clip_pool_kernel, preset.clip_pool_stride)
        return pooled

    def moment_map(self, clips: Tensor) -> Tensor:
        """The zero-bordered map that `conv` takes, dtype [(N + 2 border)^2, B, C]."""
        map_padded = clips.new_zeros((self._side**2, *clips.shape[1:]))
        if self._map_convs:
            self._learned_map(clips, map_padded)
        else:
            gpu_ops.moment_map(clips, self._positions, map_padded)
        return map_padded

    def embeddings(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Both branches' embeddings, dtype [B, P, J] each, from the convolution's rows, dtype [P, B, C]."""
        contrastive, iou = gpu_ops.heads(rows @ self._heads_weight, self._heads_bias)
        return contrastive, iou

    def _learned_map(self, clips: Tensor, map_padded: Tensor) -> None:
        """A learned convolution per diagonal instead of a max pool (`model.MomentMap`)."""
        diagonal = clips.permute(1, 2, 0)
        cells = [(clips, range(len(clips)), range(len(clips)))]
        spans = proposal_diagonals(self._preset.num_clips, self._preset.pooling_counts)
        for (weight, bias, stride), (rows, columns) in zip(self._map_convs, spans, strict=True):
            diagonal = F.conv1d(diagonal, weight, bias, stride)
            cells.append((diagonal.permute(2, 0, 1), rows, columns))
        border = border_of(self._plan)
        for values, rows, columns in cells:
            # A diagonal is a regular stretch of the map's rows, so no table is needed.
            first = (rows.start + border) * self._side + columns.start + border
            step = rows.step * (self._side + 1)
            map_padded[first : first + step * (len(rows) - 1) + 1 : step] = values
