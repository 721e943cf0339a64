"""The video branch on a device: pre-clips to the embeddings of every proposal, by operators and library products.

Maps and rows are channels-last with videos minor to cells, [cells, B, C], so a kernel that gathers rows finds the same
cell of all videos side by side. CPU tensors run the kernels' twins (`kernels.gpu.video_ops`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from mmn_fast.geometry import plan_for, pool_steps, proposal_diagonals
from mmn_fast.geometry_crops import padded_rows
from mmn_fast.kernels.folding import folded_layers
from mmn_fast.kernels.gpu import video_ops
from mmn_fast.kernels.gpu.conv.crop import ConvSettings, CropProposalConv, GpuProposalConv
from mmn_fast.presets import Preset


class VideoBranch:
    """Turns pre-clips into proposal embeddings.

    Args:
        preset: sizes and geometry.
        state: float32 arrays under official state-dict keys.
        dtype: float32, float16 or bfloat16; dtype of the operands and of all values between products.
        device: the device that runs the branch.
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
        self._side = preset.num_clips + 2 * self._plan.border
        self.conv = conv or CropProposalConv(
            ConvSettings(*folded_layers(state, preset.conv_layers), self._plan, dtype, device)
        )
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
            for number, (_, stride) in enumerate(pool_steps(preset.pooling_counts)):
                weight, bias = (take(state[f"feat2d.convs.{number}.{name}"]) for name in ("weight", "bias"))
                self._map_convs.append((weight, bias, stride))

    def encode(self, pre_clips: Tensor) -> tuple[Tensor, Tensor]:
        """Embed every proposal.

        Args:
            pre_clips: dtype [B, T, D].

        Returns:
            contrastive and iou, dtype [B, P, J] each, unit norm over J.
        """
        return self.embeddings(self.conv(self.moment_map(self.clips(pre_clips))))

    def clips(self, pre_clips: Tensor) -> Tensor:
        """Project pre-clips, dtype [B, T, D], and pool them to clips, dtype [N, B, C]."""
        preset, products = self._preset, pre_clips @ self._clip_weight
        pooled: Tensor = video_ops.clip_pool(
            products, self._clip_bias, preset.clip_pool_kernel, preset.clip_pool_stride
        )
        return pooled

    def moment_map(self, clips: Tensor) -> Tensor:
        """Build the zero-bordered map that `conv` takes, dtype [(N + 2 border)^2, B, C]."""
        map_padded = clips.new_zeros((self._side**2, *clips.shape[1:]))
        if self._map_convs:
            self._learned_map(clips, map_padded)
        else:
            video_ops.sparse_max_pool(clips, self._positions, map_padded)
        return map_padded

    def embeddings(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Both branches' embeddings, dtype [B, P, J] each, from the convolution's rows, dtype [P, B, C]."""
        contrastive, iou = video_ops.heads(rows @ self._heads_weight, self._heads_bias)
        return contrastive, iou

    def _learned_map(self, clips: Tensor, map_padded: Tensor) -> None:
        """Fill the map by a learned convolution per diagonal instead of max pools (`model.MomentMap`)."""
        diagonal = clips.permute(1, 2, 0)
        cells = [(clips, range(len(clips)), range(len(clips)))]
        spans = proposal_diagonals(self._preset.num_clips, self._preset.pooling_counts)
        for (weight, bias, stride), (rows, columns) in zip(self._map_convs, spans, strict=True):
            diagonal = F.conv1d(diagonal, weight, bias, stride)
            cells.append((diagonal.permute(2, 0, 1), rows, columns))
        border = self._plan.border
        for values, rows, columns in cells:
            # A diagonal is a regular stretch of the map's rows, so no table is needed.
            first = (rows.start + border) * self._side + columns.start + border
            step = rows.step * (self._side + 1)
            map_padded[first : first + step * (len(rows) - 1) + 1 : step] = values
