"""The video graph: `model.MMN.encode_video` with BatchNorm folded, and the proposal convolution in bands.

Masks and cell weights are constants. Bands (`geometry_crops.framed_crops`) save the cells that no proposal needs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx

from mmn_fast.arrays import Float32
from mmn_fast.artifact.manifest import signature
from mmn_fast.artifact.stages import CLIP_POOL, HEADS, SPARSE_MAX_POOL, conv_stages, stages
from mmn_fast.checkpoint import LoadedModel
from mmn_fast.export.graphs import OPSET
from mmn_fast.export.graphs.builder import BFLOAT16, FLOAT, TYPES, Graph, Value, unit
from mmn_fast.export.graphs.pre_clips import pre_clips
from mmn_fast.geometry import diagonal_rows, plan_for, pool_steps
from mmn_fast.geometry_crops import Box, framed_crops
from mmn_fast.kernels.folding import folded_layers


def video_graph(
    model: LoadedModel,
    precision: str = "fp32",
    raw_features: bool = False,
    fp32: Collection[str] = (),
    opset: int = OPSET,
) -> onnx.ModelProto:
    """Map pre-clips [B, T, D], or source rows [B, R, D] and lengths [B], to two packed [B, P, J] of unit norm.

    Weights and products have the precision's type; norms, inputs and outputs are float32.

    Args:
        model: the model's values.
        precision: "fp32", "fp16" or "bf16".
        raw_features: take source rows.
        fp32: stages (`artifact.stages`) that keep float32 weights, products and sums in every precision.
        opset: version of the operator set.
    """
    types = {stage: FLOAT if stage in fp32 else TYPES[precision] for stage in stages(model.preset)}
    g = Graph(signature("video", model.preset, raw_features=raw_features), opset)
    clips = pre_clips(g, model.preset, *g.inputs) if raw_features else g.inputs[0]
    video = _Video(g, model, types)
    both = video.heads(video.proposals(video.map(video.clip_pool(clips))))
    return g.model(*(unit(g, branch) for branch in g.split(both, 2, [model.preset.joint_size] * 2)))


class _Video:
    """Adds the stages to a graph, each in its own type; the names of weights begin with the stage."""

    def __init__(self, g: Graph, model: LoadedModel, types: Mapping[str, int]) -> None:
        self.g, self.preset, self.state, self.types = g, model.preset, model.state, types
        self.plan = plan_for(model.preset)
        self.crops = framed_crops(self.plan)

    def clip_pool(self, pre_clips: Value) -> Value:
        """Map pre-clips [B, T, D] to clips [B, C, 1, N]."""
        g, kernel, stride = self.g, self.preset.clip_pool_kernel, self.preset.clip_pool_stride
        weight, bias = self.state["featpool.conv.weight"][:, :, 0], self.state["featpool.conv.bias"]
        clips = g.Transpose(_wide(g, g.Relu(self._linear(CLIP_POOL, pre_clips, weight, bias))), perm=[0, 2, 1])
        # TensorRT has only 2D pools and convolutions, so 1D ones get a second axis of size 1.
        return g.AveragePool(g.Unsqueeze(clips, [2]), kernel_shape=[1, kernel], strides=[1, stride])

    def map(self, clips: Value) -> Value:
        """Map clips to the part of the padded 2D map that the convolutions read, [B, C, H, W]."""
        g, frame, border = self.g, self.crops.input_frame, self.plan.border
        parts = [g.cast(clips, self.types.get(SPARSE_MAX_POOL, clips.dtype))]
        for number, (kernel, stride) in enumerate(pool_steps(self.preset.pooling_counts)):
            if SPARSE_MAX_POOL in self.types:
                weight, bias = (self.state[f"feat2d.convs.{number}.{part}"] for part in ("weight", "bias"))
                operands = self._weights(f"{SPARSE_MAX_POOL}.{number}", weight[:, :, None], bias, parts[-1].dtype)
                parts.append(g.Conv(parts[-1], *operands, kernel_shape=[1, kernel], strides=[1, stride]))
            else:
                parts.append(g.MaxPool(parts[-1], kernel_shape=[1, kernel], strides=[1, stride]))
        # Rows hold the clips, then each diagonal, and last a single 0 for cells that do not exist.
        row_of = diagonal_rows(self.preset.num_clips, self.preset.pooling_counts)
        nothing = row_of.max() + 1
        source = np.pad(np.where(row_of < 0, nothing, row_of), border, constant_values=nothing)
        source = source[frame.top : frame.bottom, frame.left : frame.right]
        rows = g.Squeeze(g.Pad(_wide(g, g.concat(parts, 3)), [0] * 7 + [1]), [2])
        cells = g.Gather(g.Transpose(rows, perm=[0, 2, 1]), source.reshape(-1), axis=1)  # [B, H W, C]
        # Three axes, because ONNX Runtime's Transpose of four takes half as long again. 0 keeps the axis' size.
        return g.Reshape(g.Transpose(cells, perm=[0, 2, 1]), [0, self.preset.hidden_size, *source.shape])

    def proposals(self, x: Value) -> Value:
        """Map the part of the map to the last layer's output at the valid proposals [B, P, C]."""
        g, frame, folded = self.g, self.crops.input_frame, folded_layers(self.state, self.preset.conv_layers)
        last = self.preset.conv_layers - 1
        for number, (stage, weight, bias) in enumerate(zip(conv_stages(self.preset), *folded, strict=True)):
            layer, planned = self.crops.layers[number], self.plan.layers[number]
            operands = self._weights(stage, weight, bias, self.types[stage])
            x = g.cast(x, self.types[stage])
            bands = [self._band(x, frame, band, operands) for band in layer.bands]
            frame = layer.frame
            if number < last:
                x = _lay_together(g, bands, layer.bands, frame)
                weights = planned.weights[frame.top : frame.bottom, frame.left : frame.right]
            else:
                x = self._packed(bands, layer.bands, len(weight))
                weights = planned.cell_weights[:, None]
            x = self._weighed(x, weights)
        return x

    def _band(self, x: Value, frame: Box, band: Box, operands: tuple[Value, Value]) -> Value:
        """Convolve the cells of a band, from a layer below whose cells in `frame` are `x`."""
        g, k = self.g, self.plan.kernel
        # One Slice per axis, rows first: ONNX Runtime then copies long runs, which beats one Slice of both axes.
        for axis, first, stop, low, high in (
            (2, band.top, band.bottom, frame.top, frame.bottom),
            (3, band.left, band.right, frame.left, frame.right),
        ):
            if (first, stop + k - 1) != (low, high):
                x = g.Slice(x, [first - low], [stop + k - 1 - low], [axis])
        return g.Relu(g.Conv(x, *operands, kernel_shape=[k, k]))

    def _weighed(self, x: Value, weights: Float32) -> Value:
        """Multiply each cell by its weight, in float32 if the cells are bf16."""
        wide = _wide(self.g, x)
        return self.g.Mul(wide, self.g.constant(weights, wide.dtype))

    def _packed(self, outputs: Sequence[Value], bands: Sequence[Box], channels: int) -> Value:
        """Gather the last layer's cells from its bands: [B, P, C], row-major."""
        g, cells = self.g, self.plan.layers[-1].cells
        flat, places, before = [], [], 0
        for out, b in zip(outputs, bands, strict=True):
            rows = cells[(cells[:, 0] >= b.top) & (cells[:, 0] < b.bottom)] - (b.top, b.left)
            places.append(before + rows[:, 0] * (b.right - b.left) + rows[:, 1])
            flat.append(g.Reshape(out, [0, channels, b.num_cells]))  # 0 keeps the axis' size
            before += b.num_cells
        packed = g.Transpose(g.concat(flat, 2), perm=[0, 2, 1])
        return g.Gather(packed, np.concatenate(places).astype(np.int64), axis=1)

    def heads(self, proposals: Value) -> Value:
        """Map proposals to both branches [B, P, 2 J], in float32."""
        weight, bias = (
            np.concatenate([self.state[f"proposal_conv.conv1x1_{branch}.{part}"] for branch in ("contrastive", "iou")])
            for part in ("weight", "bias")
        )
        return self.g.cast(self._linear(HEADS, proposals, weight[:, :, 0, 0], bias), FLOAT)

    def _linear(self, stage: str, x: Value, weight: Float32, bias: Float32) -> Value:
        operands = self._weights(stage, weight.T, bias, self.types[stage])
        return self.g.Add(self.g.MatMul(self.g.cast(x, self.types[stage]), operands[0]), operands[1])

    def _weights(self, name: str, weight: Float32, bias: Float32, dtype: int) -> tuple[Value, Value]:
        return self.g.weight(f"{name}.weight", weight, dtype), self.g.weight(f"{name}.bias", bias, dtype)


def _wide(g: Graph, x: Value) -> Value:
    """Convert bf16 to float32: ONNX Runtime's CUDA provider cannot pad or pool bf16 (`bf16.OPERATORS`)."""
    return g.cast(x, FLOAT) if x.dtype == BFLOAT16 else x


def _lay_together(g: Graph, outputs: Sequence[Value], bands: Sequence[Box], frame: Box) -> Value:
    """Put the bands in their places in the frame, with zeros around them."""
    parts, row = [], frame.top
    for out, b, after in zip(outputs, bands, (*bands[1:], None), strict=True):
        bottom = frame.bottom if after is None else after.top
        around = [b.top - row, b.left - frame.left, bottom - b.bottom, frame.right - b.right]
        wide = _wide(g, out)
        parts.append(g.Pad(wide, [0, 0, *around[:2], 0, 0, *around[2:]]) if any(around) else wide)
        row = bottom
    return g.concat(parts, 2)
