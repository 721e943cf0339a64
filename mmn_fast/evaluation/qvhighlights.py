"""QVHighlights' figures of moment retrieval, as Moment-DETR's evaluator computes them: mAP and R1 by moment length.

All numbers are float64. Symbols: K predicted moments of a sentence, in the file's order; G true windows.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from mmn_fast.arrays import Float64

MAX_MOMENTS = 10
"""mAP uses the first 10 moments of a sentence."""

AP_IOUS = tuple(float(f"{0.5 + 0.05 * step:.2f}") for step in range(10))
RANGES: dict[str, tuple[float, float]] = {
    "full": (-math.inf, math.inf),
    "short": (0, 10),
    "middle": (10, 30),
    "long": (30, 150),
}
"""Range -> (low, high), seconds: a window is in the range if low < its length <= high."""

FIGURES = ("R1@0.5", "R1@0.7", "mAP@0.5", "mAP@0.75", "mAP")


def as_written(moments: npt.NDArray[Any]) -> Float64:
    """Round numbers as a file of predictions does: each float32 is written as its shortest text, read as float64."""
    if moments.dtype != np.float32:
        return moments.astype(np.float64)
    return np.array([float(str(number)) for number in moments.ravel()]).reshape(moments.shape)


def cross_ious(moments_s: Float64, windows_s: Float64) -> Float64:
    """IoU of every moment with every window, float64 [K, G]; the union is both lengths minus the overlap."""
    overlap = np.minimum(moments_s[:, None, 1], windows_s[:, 1]) - np.maximum(moments_s[:, None, 0], windows_s[:, 0])
    overlap = np.maximum(overlap, 0)
    lengths = (moments_s[:, 1] - moments_s[:, 0])[:, None] + (windows_s[:, 1] - windows_s[:, 0])
    ious: Float64 = overlap / (lengths - overlap)
    return ious


def hull_ious(moments_s: Float64, windows_s: Float64) -> Float64:
    """IoU of each moment with the window that fits it best, float64 [K]; the union is the hull of both spans."""
    if not len(moments_s):
        return np.empty(0)
    best = windows_s[np.argmax(cross_ious(moments_s, windows_s), axis=1)]
    overlap = np.minimum(moments_s[:, 1], best[:, 1]) - np.maximum(moments_s[:, 0], best[:, 0])
    hull = np.maximum(moments_s[:, 1], best[:, 1]) - np.minimum(moments_s[:, 0], best[:, 0])
    ious: Float64 = np.maximum(overlap, 0) / hull
    return ious


def average_precisions(moments: Float64, windows_s: Float64) -> Float64:
    """A sentence's average precision at each of `AP_IOUS`.

    Moments are visited by descending score; equal scores keep their order. At each threshold a moment takes the
    best-fitting window that no earlier moment has taken, if the IoU >= the threshold.

    Args:
        moments: float64 [K, 3], start, end, score.
        windows_s: float64 [G, 2], G >= 1.

    Returns:
        float64 [10]; zeros for K = 0.
    """
    thresholds = np.array(AP_IOUS)
    moments = moments[np.argsort(-moments[:, 2], kind="stable")]
    ious = cross_ious(moments[:, :2], windows_s)
    taken = np.zeros((len(thresholds), len(windows_s)), bool)
    hits = np.zeros((len(thresholds), len(moments)))
    for rank, row in enumerate(ious):
        open_ = np.ones(len(thresholds), bool)
        for window in np.argsort(row, kind="stable")[::-1]:
            takes = open_ & ~taken[:, window] & (row[window] >= thresholds)
            taken[takes, window] = True
            hits[takes, rank] = 1
            open_ &= ~takes
    return np.array([_area(row, len(windows_s)) for row in hits])


def _area(hits: Float64, num_windows: int) -> float:
    """Area under the interpolated precision over recall."""
    found = np.cumsum(hits)
    recall = np.concatenate([[0], found / num_windows, [1]])
    precision = np.concatenate([found / np.arange(1, len(hits) + 1), [0]])
    highest = np.maximum.accumulate(precision[::-1])[::-1]  # highest precision at this recall or above
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(np.sum((recall[steps + 1] - recall[steps]) * highest[steps]))


class MomentRetrieval:
    """Collects a few floats per sentence and range, and computes the figures from them."""

    def __init__(self) -> None:
        self._ious: dict[str, list[float]] = {name: [] for name in RANGES}
        self._precisions: dict[str, list[Float64]] = {name: [] for name in RANGES}

    def add(self, moments: Float64, windows_s: Float64) -> None:
        """Judge a sentence.

        Args:
            moments: float64 [K, 3], start, end, score. R1 judges the first moment; a sentence without moments counts
                as 0.
            windows_s: float64 [G, 2], all true windows.
        """
        lengths = windows_s[:, 1] - windows_s[:, 0]
        for name, (above, most) in RANGES.items():
            windows = windows_s[(lengths > above) & (lengths <= most)]
            if len(windows):
                first = hull_ious(moments[:1, :2], windows)
                self._ious[name].append(float(first[0]) if len(first) else 0.0)
                self._precisions[name].append(average_precisions(moments[:MAX_MOMENTS], windows))

    def figures(self) -> dict[str, float]:
        """The figures, 0 to 1, as "MR-<range>-<figure>"; a range without windows has no figures."""
        named: dict[str, float] = {}
        for name, ious in self._ious.items():
            if not ious:
                continue
            precisions = np.mean(self._precisions[name], axis=0)
            values = (
                *(float(np.mean(np.array(ious) >= iou)) for iou in (0.5, 0.7)),
                *(float(precisions[AP_IOUS.index(iou)]) for iou in (0.5, 0.75)),
                float(np.mean(precisions)),
            )
            named |= {f"MR-{name}-{figure}": value for figure, value in zip(FIGURES, values, strict=True)}
        return named
