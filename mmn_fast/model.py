"""The Mutual Matching Network as in the paper, under its official state-dict keys.

The file follows the data flow from top to bottom: pre-clips -> clips -> 2D map -> proposals; sentences -> joint space;
then the match of both. Every fast path is compared with this reference.

Symbols: B videos, S sentences, T pre-clips, N clips (side of the 2D map), D input width, C hidden width,
J joint width, P valid proposals, M_l side of layer l's map, k kernel, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmn_fast.geometry import ProposalPlan, plan_for, pool_steps
from mmn_fast.kernels import reference
from mmn_fast.presets import Preset, TextEncoderConfig
from mmn_fast.text_encoder import TextEncoder


class ClipPool(nn.Module):
    """Turns pre-clips [B, T, D] into clips [B, C, N]."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.kernel, self.stride = preset.clip_pool_kernel, preset.clip_pool_stride
        self.conv = nn.Conv1d(preset.input_size, preset.hidden_size, 1)

    def forward(self, pre_clips: Tensor) -> Tensor:
        assert self.conv.bias is not None
        return reference.clip_pool(pre_clips, self.conv.weight, self.conv.bias, self.kernel, self.stride)


class MomentMap(nn.Module):
    """Turns clips [B, C, N] into the sparse 2D map [B, C, N, N], by max pools or by learned convolutions."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.pooling_counts = preset.pooling_counts
        if preset.pooling == "conv":
            self.convs = nn.ModuleList(
                nn.Conv1d(preset.hidden_size, preset.hidden_size, kernel, stride)
                for kernel, stride in pool_steps(preset.pooling_counts)
            )

    def forward(self, clips: Tensor) -> Tensor:
        if hasattr(self, "convs"):
            return reference.scatter_diagonals(clips, list(self.convs), self.pooling_counts)
        return reference.sparse_max_pool(clips, self.pooling_counts)


class ProposalConv(nn.Module):
    """Turns the 2D map [B, C, N, N] into both branches' proposal embeddings."""

    def __init__(self, preset: Preset, plan: ProposalPlan) -> None:
        super().__init__()
        k, layers, width = preset.conv_kernel, preset.conv_layers, preset.conv_hidden_size
        self.convs = nn.ModuleList(
            nn.Conv2d(
                preset.hidden_size if layer == 0 else width,
                width,
                k,
                padding=0 if layer else plan.border,
            )
            for layer in range(layers)
        )
        self.bn = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(layers))
        self.conv1x1_iou = nn.Conv2d(width, preset.joint_size, 1)
        self.conv1x1_contrastive = nn.Conv2d(width, preset.joint_size, 1)
        for number, layer in enumerate(plan.layers):
            self.register_buffer(f"cell_weights{number}", torch.from_numpy(layer.weights), persistent=False)

    def cell_weights(self, layer: int) -> Tensor:
        """[M_l, M_l], the factors on the layer's output (`geometry.layer_weights`)."""
        weights: Tensor = getattr(self, f"cell_weights{layer}")
        return weights

    def features(self, map2d: Tensor) -> Tensor:
        """Run all k x k layers: [B, C, N, N] -> [B, C, N, N]."""
        x = map2d
        for layer, (conv, bn) in enumerate(zip(self.convs, self.bn, strict=True)):
            x = bn(conv(x)).relu() * self.cell_weights(layer)
        return x

    def forward(self, map2d: Tensor) -> tuple[Tensor, Tensor]:
        """Contrastive and iou embeddings of every cell, each [B, J, N, N], not normalised."""
        x = self.features(map2d)
        return self.conv1x1_contrastive(x), self.conv1x1_iou(x)


class MMN(nn.Module):
    """The whole model, as the three seams that every backend, export and benchmark shares.

    Args:
        preset: sizes and geometry.
        text: sizes of the text encoder.
    """

    cell_rows: Tensor
    cell_columns: Tensor
    mask: Tensor

    def __init__(self, preset: Preset, text: TextEncoderConfig) -> None:
        super().__init__()
        plan = plan_for(preset)
        self.preset = preset
        self.featpool = ClipPool(preset)
        self.feat2d = MomentMap(preset)
        self.proposal_conv = ProposalConv(preset, plan)
        self.text_encoder = TextEncoder(text, preset.joint_size)
        cells = torch.from_numpy(plan.cells).long()
        self.register_buffer("cell_rows", cells[:, 0], persistent=False)
        self.register_buffer("cell_columns", cells[:, 1], persistent=False)
        self.register_buffer("mask", torch.from_numpy(plan.mask), persistent=False)

    def moment_map(self, pre_clips: Tensor) -> Tensor:
        """Turn pre-clips [B, T, D] into the 2D map [B, C, N, N]."""
        return self.feat2d(self.featpool(pre_clips))

    def encode_video(self, pre_clips: Tensor) -> tuple[Tensor, Tensor]:
        """Embed every valid proposal.

        Args:
            pre_clips: [B, T, D].

        Returns:
            contrastive [B, P, J] and iou [B, P, J], unit norm over J, proposals in row-major order of (i, j).
        """
        contrastive, iou = self.proposal_conv(self.moment_map(pre_clips))
        return self._pack(contrastive), self._pack(iou)

    def _pack(self, map2d: Tensor) -> Tensor:
        return F.normalize(map2d[:, :, self.cell_rows, self.cell_columns].mT, dim=-1)

    def encode_text(self, token_ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Embed sentences.

        Args:
            token_ids: int64 [S, L], padded.
            lengths: int64 [S].

        Returns:
            contrastive [S, J] and iou [S, J], unit norm over J.
        """
        contrastive, iou = self.text_encoder(token_ids, lengths)
        return F.normalize(contrastive, dim=-1), F.normalize(iou, dim=-1)

    def score(self, video: tuple[Tensor, Tensor], text: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Match the sentences with the proposals of one video.

        Args:
            video: contrastive and iou embeddings, each [P, J], unit norm.
            text: contrastive and iou embeddings, each [S, J], unit norm.

        Returns:
            contrastive [S, P], the cosine, and iou [S, P], sigmoid(10 cosine).
        """
        return reference.match_scores(*video, *text)


def build_model(preset: Preset, text: TextEncoderConfig, state: Mapping[str, npt.NDArray[Any]]) -> MMN:
    """Build the model with the given weights, in evaluation mode, on the CPU.

    Args:
        preset: sizes and geometry.
        text: sizes of the text encoder.
        state: float32 arrays under official keys (`weights.state.state_shapes`); the model takes them without a copy:
            treat them as read-only afterwards.
    """
    # The meta device saves drawing random weights that `state` replaces; masks and cell weights are real even there.
    with torch.device("meta"):
        model = MMN(preset, text)
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    tensors |= {f"proposal_conv.bn.{n}.num_batches_tracked": torch.tensor(0) for n in range(preset.conv_layers)}
    model.load_state_dict(tensors, assign=True)
    return model.eval()
