"""The three seams as PyTorch modules, each for one ONNX graph; `manifest.signature` has the graphs' names and axes.

The modules compute the same as `model.MMN`, with BatchNorm folded, the proposal convolution in bands (`framed_crops`),
masks and cell weights as constants, and only operators that both ONNX Runtime and TensorRT have. In fp16 and bf16 the
weights and products have that type; norms, softmax, means, scores, inputs and outputs stay float32.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmn_fast.artifact.manifest import GRAPHS as GRAPHS
from mmn_fast.artifact.manifest import signature as signature
from mmn_fast.artifact.stages import CLIP_POOL, HEADS, SPARSE_MAX_POOL, conv_stages, stages
from mmn_fast.checkpoint import LoadedModel
from mmn_fast.geometry import cells_to_moments, diagonal_rows, plan_for, pool_steps
from mmn_fast.geometry_crops import Box, Crops, framed_crops
from mmn_fast.kernels.folding import folded_layers
from mmn_fast.precisions import torch_dtype
from mmn_fast.presets import Preset
from mmn_fast.text_encoder import TextEncoder
from mmn_fast.weights.state import State

_NORM_EPS = 1e-12  # eps of torch.nn.functional.normalize, in the model and for the source rows


def _tensor(array: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(dtype)


def _unit(x: Tensor) -> Tensor:
    """Normalise to unit norm over the last axis, in float32."""
    return x / (x * x).sum(-1, keepdim=True).sqrt().clamp(min=_NORM_EPS)


def _wide(x: Tensor) -> Tensor:
    """Convert bf16 to float32: ONNX Runtime's CUDA provider cannot pad or pool bf16 (`bf16.OPERATORS`)."""
    return x.float() if x.dtype == torch.bfloat16 else x


class ProductsInFloat32(TorchFunctionMode):
    """Products of narrow operands are summed in float32 and rounded once, as ONNX Runtime's CPU provider does.

    PyTorch's own fp16 convolution on a CPU without fp16 instructions takes a hundred times as long.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        narrow = args[0].dtype if func in (F.conv2d, Tensor.__matmul__, Tensor.matmul) else torch.float32
        if narrow == torch.float32:
            return func(*args, **(kwargs or {}))
        return func(*(a.float() if isinstance(a, Tensor) else a for a in args), **(kwargs or {})).to(narrow)


class PreClips(nn.Module):
    """Averages source rows into pre-clips like `features.pre_clips`: bounds are rounded half to even in float32."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.streams, self.clamp = preset.feature_streams, preset.clamp_pre_clips
        # The official order decides the rounding: arange / T in float32 first, then times the number of rows.
        self.fractions = nn.Buffer(torch.arange(preset.num_pre_clips + 1).float() / preset.num_pre_clips)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        rows = torch.arange(features.shape[1])
        # Rows past a video's length may hold anything, NaN included.
        features = torch.where((rows < lengths[:, None])[..., None], features, 0.0)
        features = torch.cat([_unit_rows(stream) for stream in features.split(self.streams, -1)], -1)
        bounds = (self.fractions * lengths[:, None].float()).round()  # [B, T + 1]
        last = lengths[:, None].float() - 1
        if self.clamp:
            bounds = bounds.minimum(last)
        start = bounds[:, :-1].minimum(last)
        end = bounds[:, 1:].maximum(start + 1)
        inside = (rows >= start[..., None]) & (rows < end[..., None])  # [B, T, R]
        return inside.float() @ features / (end - start)[..., None]


def _unit_rows(x: Tensor) -> Tensor:
    """Normalise to unit norm over the last axis, even if a row's squares overflow float32. Norms count as >= 1e-12."""
    scale = x.abs().amax(-1, keepdim=True).clamp(min=_NORM_EPS)
    x = x / scale
    return x / (x * x).sum(-1, keepdim=True).sqrt().maximum(_NORM_EPS / scale)


class VideoGraph(nn.Module):
    """Maps pre-clips [B, T, D], or source rows [B, R, D] and lengths [B], to two packed [B, P, J] of unit norm.

    Args:
        model: the model's values.
        precision: "fp32", "fp16" or "bf16".
        raw_features: take source rows.
        fp32: stages (`artifact.stages`) that keep float32 weights, products and sums in every precision.
    """

    def __init__(
        self, model: LoadedModel, precision: str = "fp32", raw_features: bool = False, fp32: Collection[str] = ()
    ) -> None:
        super().__init__()
        preset, state = model.preset, model.state
        dtypes = {stage: torch.float32 if stage in fp32 else torch_dtype(precision) for stage in stages(preset)}
        self.pre_clips = PreClips(preset) if raw_features else None
        self.pool = preset.clip_pool_kernel, preset.clip_pool_stride
        self.project = nn.Buffer(_tensor(state["featpool.conv.weight"][:, :, 0].T, dtypes[CLIP_POOL]))
        self.project_bias = nn.Buffer(_tensor(state["featpool.conv.bias"], dtypes[CLIP_POOL]))
        self.map = _Map(preset, state, dtypes.get(SPARSE_MAX_POOL))
        self.convs = _CroppedConvs(preset, state, [dtypes[stage] for stage in conv_stages(preset)])
        branches = ("contrastive", "iou")
        heads = [state[f"proposal_conv.conv1x1_{branch}.weight"][:, :, 0, 0] for branch in branches]
        biases = [state[f"proposal_conv.conv1x1_{branch}.bias"] for branch in branches]
        self.heads = nn.Buffer(_tensor(np.concatenate(heads).T, dtypes[HEADS]))
        self.heads_bias = nn.Buffer(_tensor(np.concatenate(biases), dtypes[HEADS]))

    def forward(self, pre_clips: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.pre_clips is not None:
            assert lengths is not None
            pre_clips = self.pre_clips(pre_clips, lengths)
        clips = _wide(pre_clips.to(self.project.dtype) @ self.project + self.project_bias).relu().mT
        # TensorRT has only 2D pools and convolutions, so 1D ones get a second axis of size 1.
        clips = F.avg_pool2d(clips[:, :, None], (1, self.pool[0]), (1, self.pool[1]))  # [B, C, 1, N]
        proposals = self.convs(self.map(clips))  # [B, P, C]
        contrastive, iou = (proposals.to(self.heads.dtype) @ self.heads + self.heads_bias).float().chunk(2, -1)
        return _unit(contrastive), _unit(iou)


class _Map(nn.Module):
    """Maps clips [B, C, 1, N] to the part of the padded 2D map that the convolutions read, [B, C, H, W]."""

    weight0: Tensor  # first weight of a learned map

    def __init__(self, preset: Preset, state: State, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.steps = pool_steps(preset.pooling_counts)
        self.learned = dtype is not None  # otherwise max pools make the map: they have no weights
        plan = plan_for(preset)
        frame = framed_crops(plan).input_frame
        if dtype is not None:
            for number in range(len(self.steps)):
                weight = state[f"feat2d.convs.{number}.weight"][:, :, None]
                self.register_buffer(f"weight{number}", _tensor(weight, dtype))
                self.register_buffer(f"bias{number}", _tensor(state[f"feat2d.convs.{number}.bias"], dtype))
        # Rows hold the clips, then each diagonal, and last a single 0 for cells that do not exist.
        row_of = diagonal_rows(preset.num_clips, preset.pooling_counts)
        nothing = row_of.max() + 1
        source = np.pad(np.where(row_of < 0, nothing, row_of), plan.border, constant_values=nothing)
        self.size = frame.bottom - frame.top, frame.right - frame.left
        self.source = nn.Buffer(
            torch.from_numpy(source[frame.top : frame.bottom, frame.left : frame.right].reshape(-1))
        )

    def forward(self, clips: Tensor) -> Tensor:
        if self.learned:
            clips = clips.to(self.weight0.dtype)
        parts = [clips]
        for number, (kernel, stride) in enumerate(self.steps):
            if self.learned:
                weight, bias = getattr(self, f"weight{number}"), getattr(self, f"bias{number}")
                clips = F.conv2d(clips, weight, bias, (1, stride))
            else:
                clips = F.max_pool2d(clips, (1, kernel), (1, stride))
            parts.append(clips)
        rows = F.pad(_wide(torch.cat(parts, -1))[:, :, 0], (0, 1)).mT  # [B, cells + 1, C]
        return rows.index_select(1, self.source).mT.unflatten(-1, self.size)


class _CroppedConvs(nn.Module):
    """Maps the part of the map [B, C, H, W] to the last layer's output at the valid proposals [B, P, C]."""

    def __init__(self, preset: Preset, state: State, dtypes: Sequence[torch.dtype]) -> None:
        super().__init__()
        self.plan = plan_for(preset)
        self.crops: Crops = framed_crops(self.plan)
        folded = zip(dtypes, *folded_layers(state, preset.conv_layers), strict=True)
        for number, (dtype, weight, bias) in enumerate(folded):
            self.register_buffer(f"weight{number}", _tensor(weight, dtype))
            self.register_buffer(f"bias{number}", _tensor(bias, dtype))
            layer = self.plan.layers[number]
            for index, b in enumerate(self.crops.layers[number].bands):
                weights = layer.weights[b.top : b.bottom, b.left : b.right]
                kept = torch.float32 if dtype == torch.bfloat16 else dtype  # the type that `_wide` gives
                self.register_buffer(f"cells{number}_{index}", _tensor(weights, kept))
        last = self.plan.layers[-1].cells
        for index, b in enumerate(self.crops.layers[-1].bands):
            rows = last[(last[:, 0] >= b.top) & (last[:, 0] < b.bottom)] - (b.top, b.left)
            self.register_buffer(
                f"chosen{index}", torch.from_numpy(rows[:, 0] * (b.right - b.left) + rows[:, 1]).long()
            )

    def forward(self, x: Tensor) -> Tensor:
        frame, k = self.crops.input_frame, self.plan.kernel
        for number, layer in enumerate(self.crops.layers):
            weight, bias = getattr(self, f"weight{number}"), getattr(self, f"bias{number}")
            x, outputs = x.to(weight.dtype), []
            for index, b in enumerate(layer.bands):
                top, left = b.top - frame.top, b.left - frame.left
                under = x[:, :, top : top + b.bottom - b.top + k - 1, left : left + b.right - b.left + k - 1]
                outputs.append(_wide(F.conv2d(under, weight, bias)).relu() * getattr(self, f"cells{number}_{index}"))
            if number + 1 < len(self.crops.layers):
                x, frame = _lay_together(outputs, layer.bands, layer.frame), layer.frame
        packed = [out.flatten(2).mT.index_select(1, getattr(self, f"chosen{n}")) for n, out in enumerate(outputs)]
        return torch.cat(packed, 1)


def _lay_together(outputs: Sequence[Tensor], bands: Sequence[Box], frame: Box) -> Tensor:
    """Put the bands in their places in the frame, with zeros around them."""
    parts, row = [], frame.top
    for out, b, after in zip(outputs, bands, (*bands[1:], None), strict=True):
        bottom = frame.bottom if after is None else after.top
        parts.append(F.pad(out, (b.left - frame.left, frame.right - b.right, b.top - row, bottom - b.bottom)))
        row = bottom
    return torch.cat(parts, 2)


class TextGraph(nn.Module):
    """Maps token ids [S, L] and mask [S, L] (1 for a word piece, 0 for padding) to two [S, J] of unit norm.

    Args:
        model: the model's values.
        precision: one of `precisions.EXPORTED`.
    """

    def __init__(self, model: LoadedModel, precision: str = "fp32") -> None:
        super().__init__()
        self.dtype = torch_dtype(precision)
        with torch.device("meta"):
            encoder = TextEncoder(model.text, model.preset.joint_size)
        prefix = "text_encoder."
        state = {k.removeprefix(prefix): _tensor(v) for k, v in model.state.items() if k.startswith(prefix)}
        encoder.load_state_dict(state, assign=True)
        self.encoder = encoder.eval()
        for module in encoder.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                module.to(self.dtype)

    def forward(self, token_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        real, bert = attention_mask > 0, self.encoder.bert
        words = bert.embeddings.word_embeddings(token_ids)
        places = bert.embeddings.position_embeddings.weight[: token_ids.shape[1]]
        x = self._norm(bert.embeddings.LayerNorm, words.float() + places.float())
        layer: Any  # a TransformerLayer
        for layer in bert.transformer.layer:
            x = self._norm(layer.sa_layer_norm, x.float() + self._attention(layer.attention, x, real).float())
            inner = F.gelu(layer.ffn.lin1(x).float()).to(self.dtype)
            x = self._norm(layer.output_layer_norm, x.float() + layer.ffn.lin2(inner).float())
        weight = real[..., None].float()  # [S, L, 1]
        mean = (x.float() * weight).sum(1) / weight.sum(1).clamp(min=1)  # 0 word pieces: zeros, not NaN
        sentence = self._norm(self.encoder.layernorm, mean)
        # fc_out1 is the iou branch, see TextEncoder.
        return _unit(self.encoder.fc_out2(sentence).float()), _unit(self.encoder.fc_out1(sentence).float())

    def _norm(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        return norm(x).to(self.dtype)

    def _attention(self, attention: Any, x: Tensor, real: Tensor) -> Tensor:
        heads = attention.num_heads
        q, k, v = (
            lin(x).unflatten(-1, (heads, -1)).transpose(1, 2)
            for lin in (attention.q_lin, attention.k_lin, attention.v_lin)
        )
        scores = (q @ k.mT).float() * (q.shape[-1] ** -0.5)  # [S, heads, L, L]
        # The masked value is finite, so that a sentence of padding alone gives numbers; e^-88 is 0 in a softmax's sum.
        scores = torch.where(real[:, None, None], scores, torch.finfo(torch.float32).min)
        return attention.out_lin((scores.softmax(-1).to(self.dtype) @ v).transpose(1, 2).flatten(2))


class ScoreGraph(nn.Module):
    """Maps one video's proposals [P, J] and sentences [S, J] to scores [S, P], and with `top_k` also to moments.

    The moments come from `kernels.reference.temporal_nms`, unrolled: K times, take the best proposal that is left and
    drop those that overlap it, in the float32 arithmetic of `geometry.cells_to_moments`. The operator NonMaxSuppression
    would divide by the sum of both spans minus the overlap; this quotient rounds differently if an IoU is exactly the
    threshold.

    Args:
        model: the model's values.
        top_k: moments per sentence, or None.
    """

    def __init__(self, model: LoadedModel, top_k: int | None = None) -> None:
        super().__init__()
        self.preset, self.top_k = model.preset, top_k
        cells = plan_for(model.preset).cells
        self.grid = nn.Buffer(_tensor(cells_to_moments(cells, float(model.preset.num_clips), model.preset.num_clips)))

    def forward(
        self,
        video_contrastive: Tensor,
        video_iou: Tensor,
        text_contrastive: Tensor,
        text_iou: Tensor,
        duration_s: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        contrastive = text_contrastive @ video_contrastive.mT
        iou = (10 * (text_iou @ video_iou.mT)).sigmoid()
        if self.preset.score_fusion == "product":
            fused = contrastive * iou
        else:
            fused = (contrastive * 0.5 + 0.5).clamp(min=0) ** self.preset.score_power * iou
        if self.top_k is None:
            return contrastive, iou, fused
        assert duration_s is not None
        return contrastive, iou, fused, *self._moments(fused, self.grid * duration_s / self.preset.num_clips)

    def _moments(self, fused: Tensor, moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        start, end = moments[:, 0], moments[:, 1]  # [P]
        rows = torch.arange(len(moments))
        gone = torch.finfo(torch.float32).min
        left = torch.where(fused == 0, gone, fused)  # scores of exactly 0 are no candidates
        proposals, scores, spans = [], [], []
        for _ in range(self.top_k or 0):
            best = left.argmax(-1, keepdim=True)  # [S, 1], the first of equal scores
            score = left.gather(1, best)
            there = score > gone
            proposals.append(torch.where(there, best, -1))
            scores.append(torch.where(there, score, 0.0))
            span = moments[best[:, 0]]  # [S, 2]
            spans.append(torch.where(there, span, 0.0)[:, None])
            overlap = torch.minimum(end, span[:, 1:]) - torch.maximum(start, span[:, :1])
            hull = torch.maximum(end, span[:, 1:]) - torch.minimum(start, span[:, :1])
            drop = (overlap.clamp(min=0) / hull > self.preset.nms_iou) | (rows == best)
            left = torch.where(drop, gone, left)
        return torch.cat(proposals, 1), torch.cat(scores, 1), torch.cat(spans, 1)
