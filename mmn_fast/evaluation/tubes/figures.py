"""Computes the figures of HC-STVG from answers and true tubes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmn_fast.arrays import Float64
from mmn_fast.checks import fail
from mmn_fast.errors import InputError
from mmn_fast.tubes import check_track, span_ious

PROTOCOLS = {"mmn": False, "half-open": True}
"""Name of a protocol -> whether boxes end before x2 and y2.

"mmn" is the official evaluation: the pixels x2 and y2 belong to a box. "half-open" takes x2 - x1 as a box's width, like
later papers (TubeDETR and users of its evaluation). Both count frames in the same way: the first and the last frame
belong to a tube.
"""


def is_half_open(protocol: object) -> bool:
    """Whether the protocol of a name has half-open boxes.

    Raises:
        InputError: no protocol has the name.
    """
    if not isinstance(protocol, str) or protocol not in PROTOCOLS:
        raise fail("protocol", f"{' or '.join(map(repr, PROTOCOLS))} for tubes", protocol)
    return PROTOCOLS[protocol]


class TubeFigures:
    """Collects the vIoU and tIoU of answers, one video after another.

    Args:
        thresholds: the m of vIoU@m.
        protocol: name in `PROTOCOLS`.
    """

    def __init__(self, thresholds: Sequence[float] = (0.3, 0.5), protocol: str = "mmn") -> None:
        self.thresholds = tuple(thresholds)
        self._half_open = is_half_open(protocol)
        self._found: list[tuple[float, float]] = []

    def add(self, answer: tuple[Any, Any] | None, truth: tuple[Any, Any], where: str = "answer") -> tuple[float, float]:
        """Count an answer.

        Args:
            answer: frames int [n] and boxes float [n, 4], as in `tubes.Tube`; None if no rows were found: counts as 0.
            truth: frames and boxes of the true tube.
            where: names the video in messages.

        Returns:
            The answer's vIoU and tIoU.

        Raises:
            InputError: `tubes.check_track` refuses the answer or the truth.
        """
        true = check_track(*truth, f"{where}: truth")
        viou = tiou = 0.0
        if answer is not None:
            track = check_track(*answer, where)
            both = span_ious(true, track, np.array([[0, len(track[0])]], np.int32), self._half_open)
            viou, tiou = float(both[0][0]), float(both[1][0])
        self._found.append((viou, tiou))
        return viou, tiou

    def metrics(self) -> dict[str, float]:
        """The figures, 0 to 1.

        Returns:
            m_vIoU and m_tIoU, the means; vIoU@m, the share of answers whose vIoU is strictly greater than m in float32,
            as in the official evaluation; Best_R1, the mean of the vIoU@m.

        Raises:
            InputError: nothing was counted.
        """
        if not self._found:
            raise InputError("answers: expected at least one, got none")
        found: Float64 = np.array(self._found)
        figures = {"m_vIoU": float(found[:, 0].mean()), "m_tIoU": float(found[:, 1].mean())}
        above = {
            f"vIoU@{threshold:g}": float((found[:, 0].astype(np.float32) > np.float32(threshold)).mean())
            for threshold in self.thresholds
        }
        return {**figures, **above, "Best_R1": float(np.mean(list(above.values())))}


def tube_figures(
    answers: Sequence[tuple[Any, Any] | None],
    truths: Sequence[tuple[Any, Any]],
    thresholds: Sequence[float] = (0.3, 0.5),
    protocol: str = "mmn",
) -> dict[str, float]:
    """Compute the figures of answers, one per sentence; see `TubeFigures`.

    Args:
        answers: frames and boxes of each answer; None for a sentence without one.
        truths: frames and boxes of each true tube.
        thresholds: the m of vIoU@m.
        protocol: name in `PROTOCOLS`.

    Raises:
        InputError: answers and truths differ in number, there are none, or one is refused (the message names it).
    """
    if len(answers) != len(truths):
        raise InputError(f"answers: expected as many as truths, {len(truths)}, got {len(answers)}")
    figures = TubeFigures(thresholds, protocol)
    for number, (answer, truth) in enumerate(zip(answers, truths, strict=True)):
        figures.add(answer, truth, f"answer {number}")
    return figures.metrics()
