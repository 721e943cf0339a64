"""Merges the moments of a video's windows into those of the whole video."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from mmn_fast.arrays import Float32, Float64, Int32, Int64
from mmn_fast.geometry import temporal_iou
from mmn_fast.types import Moment


class Found(NamedTuple):
    """A sentence's moments in one window, best first, after the window's own suppression.

    Attributes:
        spans: float64 [K, 2], start and end in the whole video, seconds.
        scores: float32 [K].
    """

    spans: Float64
    scores: Float32


def found_in_window(chosen: Int32, scores: Float32, moments: Float32, start_s: float) -> list[Found]:
    """The moments that a backend chose in a window, in the whole video's time.

    Args:
        chosen: int32 [S, top_k], -1 for none, see `postprocess.select_moments`.
        scores: float32 [S, top_k].
        moments: float32 [P, 2], start and end of each proposal in the window, seconds.
        start_s: where the window starts, seconds.

    Returns:
        One entry per sentence; it holds its moments alone, without the -1.
    """
    found = []
    for row, values in zip(chosen, scores, strict=True):
        kept = row >= 0
        found.append(Found(moments[row[kept]].astype(np.float64) + start_s, values[kept]))
    return found


def merged(windows: Iterable[Found], duration_s: float, iou_threshold: float, top_k: int) -> list[Moment]:
    """The best moments of one sentence in the whole video: greedy suppression over all windows.

    A moment is left out if its IoU with a better one of another window is above the threshold. Two moments of one
    window have passed the window's own suppression, in the official float32 arithmetic, and are not compared again.

    Args:
        windows: the sentence's moments in each window, in temporal order; each window gives all that its own
            suppression left, otherwise moments could be missing behind suppressed ones.
        duration_s: length of the video in seconds; no moment ends later.
        iou_threshold: `Preset.nms_iou`.
        top_k: most moments, >= 1.

    Returns:
        Best first; of equal scores the earlier window's, then the first in its window.
    """
    parts = list(windows)
    spans = np.concatenate([part.spans for part in parts])
    scores = np.concatenate([part.scores for part in parts])
    window_of = np.repeat(np.arange(len(parts)), [len(part.scores) for part in parts])
    chosen = select(spans, scores, window_of, iou_threshold, top_k)
    ends = np.minimum(spans[chosen], duration_s).tolist()
    return [Moment(start, end, score) for (start, end), score in zip(ends, scores[chosen].tolist(), strict=True)]


def select(spans: Float64, scores: Float32, window_of: Int64, iou_threshold: float, top_k: int) -> Int64:
    """Greedy suppression between moments of different windows.

    Args:
        spans: float64 [M, 2], seconds.
        scores: float32 [M].
        window_of: int64 [M], the window of each moment.
        iou_threshold: IoU above which the worse of two moments is left out.
        top_k: most moments, >= 1.

    Returns:
        int64 [<= top_k], indices into M, best first; of equal scores the first index.
    """
    left = np.argsort(-scores, kind="stable")
    best: list[int] = []
    while len(left) and len(best) < top_k:
        first, left = left[0], left[1:]
        best.append(int(first))
        suppressed = temporal_iou(spans[left], spans[first]) > iou_threshold
        left = left[~(suppressed & (window_of[left] != window_of[first]))]
    return np.array(best, np.int64)
