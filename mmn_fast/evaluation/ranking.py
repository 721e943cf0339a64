"""Turns score maps into ranked moments, by each protocol's rules."""

from __future__ import annotations

import numpy as np

from mmn_fast.arrays import Float32, Int32, Int64
from mmn_fast.evaluation.metrics import Protocol
from mmn_fast.geometry import cells_to_moments
from mmn_fast.postprocess import select_moments


def rank_moments(
    fused: Float32, cells: Int32, duration_s: float, num_clips: int, protocol: Protocol, top_k: int
) -> list[Float32]:
    """The best moments of each sentence of one video, after the protocol's NMS.

    Args:
        fused: float32 [S, P], scores of the valid cells.
        cells: int32 [P, 2], the valid cells in row-major order.
        duration_s: length of the video in seconds.
        num_clips: N.
        protocol: its `rules` say how ends are rounded, how IoU is computed and how ties go; `nms_iou` is filled in.
        top_k: moments per sentence, >= 1.

    Returns:
        S arrays, float32 [K, 3] with K <= top_k: start and end in seconds and score, best first.
    """
    assert protocol.nms_iou is not None
    # The op takes contiguous rows; argwhere gives columns, and an engine gives slices.
    fused = np.ascontiguousarray(fused, np.float32)
    if protocol.rules == "2dtan":
        moments = _moments_2dtan(cells, duration_s, num_clips)
        chosen = _select_2dtan(fused, moments, protocol.nms_iou, top_k)
    else:
        moments = np.ascontiguousarray(cells_to_moments(cells, duration_s, num_clips))
        chosen = [row[row >= 0] for row in select_moments(fused, moments, protocol.nms_iou, top_k)]
    return [np.column_stack([moments[kept], scores[kept]]) for kept, scores in zip(chosen, fused, strict=True)]


def _moments_2dtan(cells: Int32, duration_s: float, num_clips: int) -> Float32:
    """float32 [P, 2] seconds: [i, j + 1] / N * duration_s, divided first, each step rounded to float32."""
    grid = cells.astype(np.float32)
    grid[:, 1] += 1
    return grid / np.float32(num_clips) * np.float32(duration_s)


def _select_2dtan(fused: Float32, moments: Float32, iou_threshold: float, top_k: int) -> list[Int64]:
    """2D-TAN's NMS: IoU in float64 from float32 ends; the union is both lengths minus the overlap.

    A cell of score 0 is a candidate like any other. Only valid cells are candidates. 2D-TAN's code also ranks the
    masked cells of the upper triangle, at score 0; the difference shows only if fewer than top_k valid moments survive.

    Returns:
        Per sentence the indices into P, best first; equal scores by descending index.
    """
    starts, ends = moments.astype(np.float64).T
    lengths = ends - starts
    kept = []
    for scores in fused:
        left = np.argsort(scores, kind="stable")[::-1]
        best: list[int] = []
        while len(left) and len(best) < top_k:
            first, left = left[0], left[1:]
            best.append(first)
            overlap = np.maximum(np.minimum(ends[first], ends[left]) - np.maximum(starts[first], starts[left]), 0)
            left = left[overlap / (lengths[first] + lengths[left] - overlap) <= iou_threshold]
        kept.append(np.array(best, np.int64))
    return kept
