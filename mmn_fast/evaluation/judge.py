"""Judges ranked moments by a protocol. The moments come from score maps or from a file of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mmn_fast.errors import InputError
from mmn_fast.evaluation.metrics import Protocol, mean_iou, recall_at
from mmn_fast.evaluation.qvhighlights import MAX_MOMENTS, MomentRetrieval, as_written


class Judge:
    """Collects a few floats per sentence and computes the metrics from them.

    Args:
        protocol: says when a moment counts as found.
        counts: the n of R@n.
        thresholds: the m of IoU@m.
    """

    def __init__(self, protocol: Protocol, counts: Sequence[int], thresholds: Sequence[float]) -> None:
        self._protocol = protocol
        self._counts, self._thresholds = counts, thresholds
        self._ious: list[npt.NDArray[Any]] = []
        self._retrieval = MomentRetrieval() if protocol.rules == "qvh" else None

    @property
    def num_judged(self) -> int:
        """Number of moments per sentence that are judged."""
        return max(*self._counts, MAX_MOMENTS if self._retrieval else 1)

    def add(self, moments: npt.NDArray[Any], windows_s: npt.NDArray[Any]) -> None:
        """Judge a sentence.

        Args:
            moments: float32 or float64 [K, 3], start, end and score, best first.
            windows_s: float64 [G, 2], the sentence's true windows, G >= 1.
        """
        most = max(self._counts)
        ious = self._protocol.ious(moments[:most, :2], windows_s)
        self._ious.append(np.pad(ious, (0, most - len(ious)), constant_values=np.nan))
        if self._retrieval is not None:
            self._retrieval.add(as_written(moments), np.asarray(windows_s, np.float64))

    def metrics(self) -> dict[str, float]:
        """Compute the metrics of all added sentences, as in `EvaluationReport.metrics`.

        Raises:
            InputError: nothing was added.
        """
        if not self._ious:
            raise InputError("moments_s: expected at least one sentence, got none")
        ious = np.stack(self._ious)
        recall = recall_at(ious, self._counts, self._thresholds, self._protocol.strict)
        named = {
            f"R@{count},IoU@{threshold:.1f}": float(recall[n, m])
            for n, count in enumerate(self._counts)
            for m, threshold in enumerate(self._thresholds)
        }
        named |= {f"Best_R{count}": float(recall[n].mean()) for n, count in enumerate(self._counts)}
        named["mIoU"] = mean_iou(ious)
        return named if self._retrieval is None else named | self._retrieval.figures()
