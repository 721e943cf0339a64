"""TVR's figures: recall at 1, 5, 10 and 100 of three tasks.

* VCMR, video corpus moment retrieval: a prediction counts if it is of the right video and its IoU with the true moment
  is at least 0.5 or 0.7.
* SVMR, single video moment retrieval: the same among predictions of the right video alone.
* VR, video retrieval: the right video counts.

IoU is the overlap over the hull of both spans, all in float32, as in TVR's own evaluation. A sentence with several true
moments (TVR has one) counts if one of them is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmn_fast.arrays import Bool, Float32, Float64
from mmn_fast.evaluation.evaluate import framed_table
from mmn_fast.evaluation.notes import Note, by_kind
from mmn_fast.geometry import temporal_iou

RECALL_AT = (1, 5, 10, 100)
IOUS = (0.5, 0.7)
MOST = max(RECALL_AT)
"""Predictions per sentence and task that count."""
_TASKS = {"VCMR": "moments in all videos", "SVMR": "moments in the right video", "VR": "videos"}


def found_at(spans: Float64, is_right: Bool, truth: Float32 | Float64) -> dict[float, Bool]:
    """Which predictions of a sentence find its moment.

    Args:
        spans: float64 [K, 2], start and end of each prediction, seconds.
        is_right: bool [K], whether the prediction is of the right video.
        truth: the true moments, [G, 2] seconds.

    Returns:
        IoU threshold -> bool [K].
    """
    predicted = spans.astype(np.float32)
    best = np.zeros(len(predicted), np.float32)
    for window in truth.astype(np.float32):
        best = np.maximum(best, np.nan_to_num(temporal_iou(predicted, window)))
    return {iou: is_right & (best >= np.float32(iou)) for iou in IOUS}


class Recall:
    """Counts the sentences whose first correct prediction is among the first k."""

    def __init__(self) -> None:
        self._first: dict[str, list[int]] = {}

    def add(self, name: str, correct: Bool) -> None:
        """Add a sentence.

        Args:
            name: ending of the figure's name, such as ",IoU@0.5".
            correct: bool [K], best prediction first.
        """
        places = np.flatnonzero(correct)
        self._first.setdefault(name, []).append(int(places[0]) if len(places) else MOST)

    def figures(self) -> dict[str, float]:
        """Each figure's name -> its value, 0 to 1."""
        return {
            f"R@{k}{name}": float(np.mean(np.array(first) < k))
            for name, first in self._first.items()
            for k in RECALL_AT
        }


@dataclass(frozen=True)
class CorpusReport:
    """Figures of retrieval from a library.

    Attributes:
        preset: name of the model's preset.
        metrics: task -> figure -> value, each 0 to 1: "R@k,IoU@m" of VCMR and SVMR, "R@k" of VR.
        library: videos in the index.
        num_videos: videos with sentences.
        num_sentences: sentences.
        per_video: most moments of one video among the predictions of VCMR.
        seconds: wall-clock time.
        notes: what was left out, clamped, cut or skipped, and why.
    """

    preset: str
    metrics: dict[str, dict[str, float]]
    library: int
    num_videos: int
    num_sentences: int
    per_video: int
    seconds: float
    notes: tuple[Note, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Give all values as plain JSON types; the notes stand under their kinds."""
        names = ("preset", "metrics", "library", "num_videos", "num_sentences", "per_video", "seconds")
        return {"protocol": "tvr", **{name: getattr(self, name) for name in names}, **by_kind(self.notes)}

    def table(self) -> str:
        """Print the figures in percent, below two lines that say how they were taken."""
        header = (
            f"{self.preset}: {self.num_sentences} sentences of {self.num_videos} videos, in a library of {self.library}"
            f"\nprotocol tvr: the right video and IoU >= m count; at most {self.per_video} moments of a video"
        )
        rows = [["task", "IoU", *(f"R@{k}" for k in RECALL_AT)]]
        for task in self.metrics:
            for name in ("",) if task == "VR" else tuple(f",IoU@{iou:g}" for iou in IOUS):
                values = [f"{100 * self.metrics[task][f'R@{k}{name}']:.2f}" for k in RECALL_AT]
                rows.append([task, name.removeprefix(",IoU@") or "-", *values])
        meanings = "; ".join(f"{task}: {_TASKS[task]}" for task in self.metrics)
        return "\n".join([header, framed_table(rows), meanings])


def right(video_ids: Sequence[str], video_id: str) -> Bool:
    """Which predictions are of the right video, bool [K]."""
    return np.array([one == video_id for one in video_ids], np.bool_)
