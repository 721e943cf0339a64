"""Recall and mean IoU of ranked moments, and the protocols under which papers report them.

Symbols: S sentences, K ranked moments per sentence, G ground-truth windows of one sentence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mmn_fast.geometry import temporal_iou
from mmn_fast.types import InputError

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Protocol:
    """How moments are ranked and when one counts as found.

    Figures of two protocols are not comparable: on a grid of cells, IoUs exactly at a threshold are common.

    Attributes:
        name: the key in `PROTOCOLS`, printed with every table.
        strict: a moment counts when its IoU > the threshold; otherwise when IoU >= the threshold.
        nms_iou: moments above this IoU with a better one are suppressed before ranking; None takes the preset's.
    """

    name: str
    strict: bool
    nms_iou: float | None = None

    def __post_init__(self) -> None:
        if self.nms_iou is not None and not 0 <= self.nms_iou <= 1:
            raise InputError(f"protocol {self.name!r}: nms_iou: expected 0 to 1 or None, got {self.nms_iou!r}")

    def for_preset(self, nms_iou: float) -> Protocol:
        """Fill in the NMS threshold: the protocol's own, else `nms_iou`, the preset's."""
        return dataclasses.replace(self, nms_iou=nms_iou) if self.nms_iou is None else self

    @property
    def test(self) -> str:
        """The inequality between IoU and threshold: ">" or ">="."""
        return ">" if self.strict else ">="


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        # MMN's own evaluation: IoU >= m counts; NMS with the configuration's threshold (0.5, TACoS 0.4).
        Protocol("mmn", strict=False),
        # 2D-TAN's: IoU > m counts; NMS keeps what has IoU <= threshold, which suppresses exactly what MMN's NMS does
        # at the same threshold. Its configuration defaults to 0.4. Its "mIoU" is the top-1 mean, as here.
        Protocol("2dtan", strict=True, nms_iou=0.4),
    )
}


def get_protocol(protocol: str | Protocol) -> Protocol:
    """Look up the protocol of that name, or pass a protocol through.

    Raises:
        InputError: no protocol has that name.
    """
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    return PROTOCOLS[protocol]


def best_ious(moments_s: FloatArray, windows_s: FloatArray) -> FloatArray:
    """IoU of each moment with the ground-truth window that it fits best.

    Args:
        moments_s: float32 [K, 2], seconds.
        windows_s: float32 [G, 2], seconds, G >= 1.

    Returns:
        float32 [K].
    """
    ious = [temporal_iou(moments_s, window) for window in windows_s]
    return np.fmax.reduce(ious).astype(np.float32, copy=False)


def recall_at(ious: FloatArray, counts: Sequence[int], thresholds: Sequence[float], strict: bool) -> npt.NDArray:
    """R@n,IoU@m: the share of sentences with a good enough moment among their n best.

    Args:
        ious: float32 [S, K], IoU of each sentence's ranked moments, best first; NaN where there are fewer than K. A
            sentence with fewer than n moments is judged by those it has.
        counts: the n, each from 1 to K.
        thresholds: the m.
        strict: count IoU > m instead of IoU >= m.

    Returns:
        float64 [len(counts), len(thresholds)], 0 to 1.

    Raises:
        InputError: there is no sentence, or an n is not within 1 to K.
    """
    ious = _ranked(ious)
    if not all(1 <= count <= ious.shape[1] for count in counts):
        raise InputError(f"counts: expected numbers from 1 to {ious.shape[1]} (ranked moments), got {list(counts)}")
    # The thresholds are rounded to float32 as the IoUs are, or an IoU of exactly 0.7 would miss the threshold 0.7.
    limits = np.asarray(thresholds, np.float32)
    found = ious[:, :, None] > limits if strict else ious[:, :, None] >= limits
    return np.array([found[:, :count].any(axis=1).mean(axis=0) for count in counts], np.float64)


def mean_iou(ious: FloatArray) -> float:
    """Mean over sentences of the IoU of the best-ranked moment; 0 counts for a sentence without any.

    Args:
        ious: float32 [S, K] as for `recall_at`.

    Returns:
        The mean, 0 to 1.

    Raises:
        InputError: there is no sentence.
    """
    return float(np.nan_to_num(_ranked(ious)[:, 0]).mean(dtype=np.float64))


def _ranked(ious: FloatArray) -> FloatArray:
    ious = np.asarray(ious)
    if ious.ndim != 2 or 0 in ious.shape:
        raise InputError(f"ious: expected [S, K] with S >= 1 sentences and K >= 1 moments, got {list(ious.shape)}")
    return ious
