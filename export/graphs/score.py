"""The score graph: scores of sentences and proposals, and perhaps the best moments. Always float32."""

from __future__ import annotations

import numpy as np
import onnx

from mmn_fast.artifact.manifest import signature
from mmn_fast.checkpoint import LoadedModel
from mmn_fast.export.graphs import OPSET
from mmn_fast.export.graphs.builder import Graph, Value
from mmn_fast.geometry import cells_to_moments, plan_for
from mmn_fast.presets import Preset

_GONE = float(np.finfo(np.float32).min)  # score of a proposal that was taken or dropped


def score_graph(model: LoadedModel, top_k: int | None = None, opset: int = OPSET) -> onnx.ModelProto:
    """Map one video's proposals [P, J] and sentences [S, J] to scores [S, P], and with `top_k` also to moments.

    Args:
        model: the model's values.
        top_k: moments per sentence, or None.
        opset: version of the operator set.
    """
    preset = model.preset
    g = Graph(signature("score", preset, top_k=top_k), opset)
    video_contrastive, video_iou, text_contrastive, text_iou, *durations = g.inputs
    contrastive = g.MatMul(text_contrastive, g.Transpose(video_contrastive, perm=[1, 0]))
    iou = g.Sigmoid(g.Mul(g.MatMul(text_iou, g.Transpose(video_iou, perm=[1, 0])), 10.0))
    if preset.score_fusion == "product":
        fused = g.Mul(contrastive, iou)
    else:
        shifted = g.Max(g.Add(g.Mul(contrastive, 0.5), 0.5), 0.0)
        fused = g.Mul(g.Pow(shifted, preset.score_power), iou)
    if top_k is None:
        return g.model(contrastive, iou, fused)
    return g.model(contrastive, iou, fused, *best_moments(g, preset, fused, durations[0], top_k))


def best_moments(g: Graph, preset: Preset, fused: Value, duration_s: Value, top_k: int) -> tuple[Value, Value, Value]:
    """Choose moments as `kernels.reference.temporal_nms` does, unrolled.

    K times, take the best proposal that is left and drop those that overlap it, in the float32 arithmetic of
    `geometry.cells_to_moments`. The operator NonMaxSuppression would divide by the sum of both spans minus the overlap;
    this quotient rounds differently if an IoU is exactly the threshold.

    Args:
        g: the graph.
        preset: gives the grid and the threshold of suppression.
        fused: scores [S, P].
        duration_s: the video's duration [1].
        top_k: K.

    Returns:
        proposals [S, K] (-1 if fewer are left), scores [S, K] and moments [S, K, 2] (0 if fewer are left).
    """
    grid = cells_to_moments(plan_for(preset).cells, float(preset.num_clips), preset.num_clips)
    moments = g.Div(g.Mul(np.asarray(grid, np.float32), duration_s), float(preset.num_clips))
    start, end = (g.Gather(moments, side, axis=1) for side in (0, 1))  # [P]
    rows = np.arange(len(grid))
    left = g.Where(g.Equal(fused, 0.0), _GONE, fused)  # scores of exactly 0 are no candidates
    taken, scores = [], []
    for number in range(top_k):
        best = g.ArgMax(left, axis=1, keepdims=1)  # [S, 1], the first of equal scores
        taken.append(best)
        scores.append(g.GatherElements(left, best, axis=1))
        if number + 1 < top_k:
            best_start, best_end = g.Gather(start, best, axis=0), g.Gather(end, best, axis=0)  # [S, 1]
            overlap = g.Sub(g.Min(end, best_end), g.Max(start, best_start))
            hull = g.Sub(g.Max(end, best_end), g.Min(start, best_start))
            overlaps = g.Greater(g.Div(g.Max(overlap, 0.0), hull), preset.nms_iou)
            left = g.Where(g.Or(overlaps, g.Equal(rows, best)), _GONE, left)
    best, score = g.concat(taken, 1), g.concat(scores, 1)  # [S, K]
    there = g.Greater(score, _GONE)
    spans = g.Where(g.Unsqueeze(there, [2]), g.Gather(moments, best, axis=0), 0.0)
    return g.Where(there, best, -1), g.Where(there, score, 0.0), spans
