"""The part of the video graph that averages source rows into pre-clips, as `features.pre_clips` does."""

from __future__ import annotations

import numpy as np

from mmn_fast.export.graphs.builder import FLOAT, NORM_EPS, Graph, Value
from mmn_fast.presets import Preset


def pre_clips(g: Graph, preset: Preset, features: Value, lengths: Value) -> Value:
    """Map source rows [B, R, D], the first `lengths` [B] of them real, to pre-clips [B, T, D].

    Bounds are rounded half to even in float32.
    """
    length = g.cast(g.Unsqueeze(lengths, [1]), FLOAT)  # [B, 1]
    num_rows = g.Squeeze(g.Shape(features, start=1, end=2), [0])
    rows = g.cast(g.Range(0, num_rows, 1), FLOAT)
    # Rows past a video's length may hold anything, NaN included.
    features = g.Where(g.Unsqueeze(g.Less(rows, length), [2]), features, 0.0)
    streams = g.split(features, 2, preset.feature_streams)
    features = g.concat([_unit_rows(g, stream) for stream in streams], 2)
    # The official order decides the rounding: arange / T in float32 first, then times the number of rows.
    T = preset.num_pre_clips
    bounds = g.Round(g.Mul(np.arange(T + 1, dtype=np.float32) / np.float32(T), length))  # [B, T + 1]
    last = g.Sub(length, 1.0)
    if preset.clamp_pre_clips:
        bounds = g.Min(bounds, last)
    start = g.Min(g.Slice(bounds, [0], [T], [1]), last)
    end = g.Max(g.Slice(bounds, [1], [T + 1], [1]), g.Add(start, 1.0))
    inside = g.And(g.GreaterOrEqual(rows, g.Unsqueeze(start, [2])), g.Less(rows, g.Unsqueeze(end, [2])))  # [B, T, R]
    return g.Div(g.MatMul(g.cast(inside, FLOAT), features), g.Unsqueeze(g.Sub(end, start), [2]))


def _unit_rows(g: Graph, x: Value) -> Value:
    """Normalise to unit norm over the last axis, even if a row's squares overflow float32. Norms count as >= 1e-12."""
    scale = g.Max(g.ReduceMax(g.Abs(x), [-1], keepdims=1), NORM_EPS)
    x = g.Div(x, scale)
    norm = g.Sqrt(g.ReduceSum(g.Mul(x, x), [-1], keepdims=1))
    return g.Div(x, g.Max(norm, g.Div(NORM_EPS, scale)))
