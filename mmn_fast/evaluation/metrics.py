"""Recall and mean IoU of ranked moments, and the protocols under which papers report them.

Symbols: S sentences, K ranked moments per sentence, G ground-truth windows of one sentence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from mmn_fast.errors import InputError
from mmn_fast.evaluation.qvhighlights import as_written, hull_ious
from mmn_fast.geometry import temporal_iou

Rules = Literal["mmn", "2dtan", "qvh"]


@dataclass(frozen=True)
class Protocol:
    """How moments are ranked and when a moment counts as found.

    Figures of two protocols are not comparable: on a grid of cells, IoUs exactly at a threshold are common.

    `rules` names one of three sets of rules for rounding and ties:

    * "mmn": IoU in float32, the overlap over the hull of both spans. Equal scores rank by ascending cell, row by row
      (the official code leaves ties to an unstable sort). A cell of score exactly 0 is not a candidate.
    * "2dtan": ends are rounded to float32, IoU is computed from them in float64; truths stay float64. Equal scores rank
      by descending cell, row by row: 2D-TAN's code reverses an ascending sort (NumPy does not define the order of ties
      in that sort; a stable sort is used here). A cell of score 0 is a candidate.
    * "qvh": moments are ranked like by "mmn" and judged in float64, from the numbers in a file of predictions. Equal
      scores keep their order. The report adds the figures of `qvhighlights`: Moment-DETR's mAP and R1 by length of
      moment.

    Attributes:
        name: the key in `PROTOCOLS`, printed with every table.
        strict: True counts a moment if its IoU > the threshold; False if IoU >= the threshold.
        nms_iou: NMS suppresses a moment if its IoU with a better one is above this; None takes the preset's.
        rules: "mmn", "2dtan" or "qvh".
    """

    name: str
    strict: bool
    nms_iou: float | None = None
    rules: Rules = "mmn"

    def __post_init__(self) -> None:
        if self.nms_iou is not None and not 0 <= self.nms_iou <= 1:
            raise InputError(f"protocol {self.name!r}: nms_iou: expected 0 to 1 or None, got {self.nms_iou!r}")
        if self.rules not in get_args(Rules):
            expected = ", ".join(get_args(Rules))
            raise InputError(f"protocol {self.name!r}: rules: expected one of {expected}, got {self.rules!r}")

    def for_preset(self, nms_iou: float) -> Protocol:
        """Fill in the NMS threshold: the protocol's own, else `nms_iou`, the preset's."""
        return dataclasses.replace(self, nms_iou=nms_iou) if self.nms_iou is None else self

    @property
    def test(self) -> str:
        """The inequality between IoU and threshold: ">" or ">="."""
        return ">" if self.strict else ">="

    def ious(self, moments_s: npt.NDArray[Any], windows_s: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """IoU of each moment with the truth that it fits best, in the precision of the rules.

        Args:
            moments_s: float [K, 2], seconds; rounded to float32 except under "qvh".
            windows_s: float [G, 2], seconds, G >= 1.

        Returns:
            [K], float32 under the rules "mmn", float64 under "2dtan" and "qvh".
        """
        if self.rules == "qvh":
            return hull_ious(as_written(moments_s), np.asarray(windows_s, np.float64))
        moments_s = np.asarray(moments_s, np.float32)
        return best_ious(moments_s if self.rules == "mmn" else moments_s.astype(np.float64), windows_s)


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        # MMN's own evaluation: IoU >= m counts; NMS with the configuration's threshold (0.5, TACoS 0.4).
        Protocol("mmn", strict=False),
        # 2D-TAN's: IoU > m counts. NMS uses the default of its configuration; most of its experiments set 0.45 or 0.5.
        # Its "mIoU" is the mean IoU of the best moment, as here.
        Protocol("2dtan", strict=True, nms_iou=0.4, rules="2dtan"),
        # QVHighlights': IoU >= m with the best of several true windows. Its evaluator runs no NMS; here the preset's
        # NMS is part of the model.
        Protocol("qvh", strict=False, rules="qvh"),
    )
}


def get_protocol(protocol: str | Protocol) -> Protocol:
    """Look up a protocol by name, or pass a protocol through.

    Raises:
        InputError: no protocol has the name.
    """
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    return PROTOCOLS[protocol]


def best_ious(moments_s: npt.NDArray[Any], windows_s: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """IoU of each moment with the ground-truth window that it fits best.

    Args:
        moments_s: float32 or float64 [K, 2], seconds.
        windows_s: float [G, 2], seconds, G >= 1; taken in the dtype of `moments_s`.

    Returns:
        [K] in the dtype of `moments_s`.
    """
    ious = [temporal_iou(moments_s, window) for window in windows_s]
    best: npt.NDArray[Any] = np.fmax.reduce(ious)
    return best


def recall_at(ious: npt.NDArray[Any], counts: Sequence[int], thresholds: Sequence[float], strict: bool) -> npt.NDArray:
    """R@n,IoU@m: the share of sentences with a good enough moment among their n best.

    Args:
        ious: float32 or float64 [S, K], IoU of each sentence's ranked moments, best first; NaN fills rows with fewer
            than K moments. A sentence with fewer than n moments is judged by the moments it has.
        counts: the n, each from 1 to K.
        thresholds: the m.
        strict: count IoU > m instead of IoU >= m.

    Returns:
        float64 [len(counts), len(thresholds)], 0 to 1.

    Raises:
        InputError: there is no sentence, or an n is outside 1 to K.
    """
    ious = _ranked(ious)
    if not all(1 <= count <= ious.shape[1] for count in counts):
        raise InputError(f"counts: expected numbers from 1 to {ious.shape[1]} (ranked moments), got {list(counts)}")
    # Thresholds are rounded like the IoUs; otherwise a float32 IoU of exactly 0.7 would miss the threshold 0.7.
    limits = np.asarray(thresholds, ious.dtype)
    found = ious[:, :, None] > limits if strict else ious[:, :, None] >= limits
    return np.array([found[:, :count].any(axis=1).mean(axis=0) for count in counts], np.float64)


def mean_iou(ious: npt.NDArray[Any]) -> float:
    """Mean over sentences of the IoU of the best-ranked moment; a sentence without moments counts as 0.

    Args:
        ious: [S, K] as for `recall_at`.

    Returns:
        The mean, 0 to 1.

    Raises:
        InputError: there is no sentence.
    """
    return float(np.nan_to_num(_ranked(ious)[:, 0]).mean(dtype=np.float64))


def _ranked(ious: npt.NDArray[Any]) -> npt.NDArray[Any]:
    ious = np.asarray(ious)
    if not np.issubdtype(ious.dtype, np.floating):
        ious = ious.astype(np.float32)
    if ious.ndim != 2 or 0 in ious.shape:
        raise InputError(f"ious: expected [S, K] with S >= 1 sentences and K >= 1 moments, got {list(ious.shape)}")
    return ious
