"""Tubes: a person's boxes over time, the spans of a tube that proposals stand for, and how much two tubes overlap.

Spatio-temporal grounding (HC-STVG) takes every tube of a video as a video of its own and answers with some rows of one
tube. Nothing here knows a model. Symbols: K tubes of a video, n rows of a tube, P proposals, S sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mmn_fast.arrays import Float64, Int32, Int64, described
from mmn_fast.checks import shown
from mmn_fast.errors import InputError

Boxes = npt.NDArray[np.floating[Any]]
"""float32 or float64 [n, 4]: x1, y1, x2, y2 in pixels."""

Track = tuple[Int64, Boxes]
"""Frame numbers int64 [n] and boxes [n, 4] of a tube, as `check_track` returns them."""


@dataclass(frozen=True, eq=False, repr=False)
class Tube:
    """A person's boxes over consecutive frames, and the features of what they show.

    Give `features`, `pre_clips`, or neither where only boxes matter, as in evaluation.

    Attributes:
        frames: int [n], consecutive frame numbers, n >= 1; floats that are whole numbers will do.
        boxes: float [n, 4], x1, y1, x2, y2 in pixels with x1 <= x2 and y1 <= y2: corners, not width and height.
        features: one float array [n_s, D_s] per stream of the preset (`Preset.feature_streams`), rows in temporal
            order, not normalised. The numbers of rows may differ from n and from each other.
        pre_clips: float [T, D], the streams side by side, already normalised and averaged, as the published prepared
            files have them; they are used as they are.
    """

    frames: Any
    boxes: Any
    features: Sequence[Any] | None = None
    pre_clips: Any = None

    def __repr__(self) -> str:
        streams = None if self.features is None else [described(stream) for stream in self.features]
        return (
            f"Tube(frames={described(self.frames)}, boxes={described(self.boxes)}, features={streams},"
            f" pre_clips={None if self.pre_clips is None else described(self.pre_clips)})"
        )


@dataclass(frozen=True, eq=False)
class TubeQuery:
    """The tubes of one video and the sentences to ground in it.

    Attributes:
        tubes: any number of tubes; without a tube every sentence's answer is empty.
        sentences: any number of sentences, each a str.
        video_id: name used in messages and predictions.
    """

    tubes: Sequence[Tube]
    sentences: Sequence[str]
    video_id: str = ""


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class TubeMoment:
    """Some rows of one tube that a sentence describes.

    Attributes:
        tube: number of the tube among those of its query.
        start_row: first row.
        end_row: one past the last row.
        start_frame: frame number of the first row.
        end_frame: frame number of the last row, included.
        boxes: float [end_row - start_row, 4], the tube's boxes of these rows: x1, y1, x2, y2 in pixels.
        score: fused score, higher is better (-1 to 1 for the product fusion).
    """

    tube: int
    start_row: int
    end_row: int
    start_frame: int
    end_frame: int
    boxes: Boxes
    score: float

    def __repr__(self) -> str:
        return (
            f"TubeMoment(tube={self.tube}, start_row={self.start_row}, end_row={self.end_row},"
            f" start_frame={self.start_frame}, end_frame={self.end_frame}, boxes={described(self.boxes)},"
            f" score={self.score!r})"
        )

    def to_dict(self) -> dict[str, Any]:
        """All values as plain types, `boxes` as n lists of four numbers, ready for `json.dumps`."""
        return {
            "tube": self.tube,
            "start_row": self.start_row,
            "end_row": self.end_row,
            "start_frame": self.start_frame,
            "end_frame": self.end_frame,
            "score": self.score,
            "boxes": self.boxes.tolist(),
        }


def check_track(frames: Any, boxes: Any, where: str) -> Track:
    """Check frame numbers and boxes.

    Args:
        frames: as `Tube.frames`.
        boxes: as `Tube.boxes`.
        where: names the tube and its video in messages.

    Returns:
        frames int64 [n], and boxes float32 or float64 [n, 4] (integers become float64, smaller floats float32).

    Raises:
        InputError: no row, frames that are not consecutive, a box per frame missing, a value that is not finite, or a
            box whose second corner lies before its first.
    """
    numbers, corners = _array(frames, f"{where}: frames", "int [n]"), _array(boxes, f"{where}: boxes", "float [n, 4]")
    if numbers.ndim != 1 or not len(numbers):
        raise InputError(f"{where}: frames: expected int [n] with n >= 1, got {described(numbers)}")
    if not (np.isfinite(numbers).all() and (np.rint(numbers) == numbers).all() and np.abs(numbers).max() < 2**53):
        raise InputError(f"{where}: frames: expected whole numbers, got {shown(numbers.tolist())}")
    whole = numbers.astype(np.int64)
    gaps = np.flatnonzero(np.diff(whole) != 1)
    if len(gaps):
        row = int(gaps[0])
        raise InputError(
            f"{where}: frames: expected consecutive frame numbers, got {whole[row]} in row {row} and {whole[row + 1]}"
            f" in row {row + 1}; split the tube there"
        )
    if corners.shape != (len(whole), 4):
        raise InputError(f"{where}: boxes: expected float [{len(whole)}, 4], a box per frame, got {described(corners)}")
    kept = np.float32 if np.issubdtype(corners.dtype, np.floating) and corners.dtype.itemsize <= 4 else np.float64
    return whole, _check_boxes(np.ascontiguousarray(corners, kept), f"{where}: boxes")


def _array(values: Any, name: str, expected: str) -> npt.NDArray[Any]:
    """Numbers as an array; bools, complex numbers and whatever NumPy cannot read are refused."""
    try:
        # A tensor that is on a device or wants gradients must be fetched first.
        array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    except (ValueError, TypeError, RuntimeError):
        array = np.empty(0, object)
    if array.dtype.kind not in "iuf" or np.ma.is_masked(values):
        raise InputError(f"{name}: expected {expected}, got {shown(values) if array.ndim < 1 else described(values)}")
    return array


def _check_boxes(boxes: Boxes, name: str) -> Boxes:
    bad = ~np.isfinite(boxes).all(axis=1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise InputError(f"{name}: expected finite numbers, got {boxes[row].tolist()} in row {row}")
    bad = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise InputError(
            f"{name}: expected x1, y1, x2, y2 with x1 <= x2 and y1 <= y2, got {boxes[row].tolist()} in row {row}"
        )
    return boxes


def row_span(num_rows: int, num_clips: int, cells: Int32) -> Int32:
    """The rows of a tube that each cell of the 2D map stands for, with the official code's float32 rounding.

    Args:
        num_rows: n >= 1, rows of the tube.
        num_clips: N.
        cells: int [P, 2] as (i, j): clips i to j, both included.

    Returns:
        int32 [P, 2]: rows start:end with start = round(i/N n) and end = round((j+1)/N n), half to even. Where n < N
        some are empty: start >= end.
    """
    grid = np.arange(num_clips + 1, dtype=np.float32) / np.float32(num_clips)
    bounds = np.rint(grid * np.float32(num_rows)).astype(np.int32)
    return np.stack([bounds[cells[:, 0]], bounds[cells[:, 1] + 1]], axis=1)


def tube_iou(frames_a: Any, boxes_a: Any, frames_b: Any, boxes_b: Any, half_open: bool = False) -> tuple[float, float]:
    """How much two tubes overlap in space and time, and in time alone.

    Args:
        frames_a: int [n], consecutive frame numbers of one tube.
        boxes_a: float [n, 4], its boxes.
        frames_b: int [m], of the other tube.
        boxes_b: float [m, 4].
        half_open: as for `span_ious`.

    Returns:
        vIoU and tIoU, 0 to 1. tIoU is the share of common frames in the hull of both; vIoU is tIoU times the mean of
        the boxes' IoU over the common frames.

    Raises:
        InputError: as `check_track`.
    """
    a, b = check_track(frames_a, boxes_a, "a"), check_track(frames_b, boxes_b, "b")
    viou, tiou = span_ious(a, b, np.array([[0, len(b[0])]], np.int32), half_open)
    return float(viou[0]), float(tiou[0])


def span_ious(a: Track, b: Track, spans: Int32, half_open: bool = False) -> tuple[Float64, Float64]:
    """The overlap of one tube with many spans of rows of others.

    Args:
        a: a tube, n rows.
        b: another tube, m rows, or the rows of several one after the other.
        spans: int [P, 2], rows start:end of b, all of one tube; 0 where a span is empty.
        half_open: False takes a box's corners as pixels that both belong to it (the official code): its width is
            x2 - x1 + 1. True takes them as coordinates: x2 - x1, as later papers do.

    Returns:
        vIoU and tIoU, float64 [P] each, see `tube_iou`.
    """
    first, last = int(a[0][0]), int(a[0][-1])
    common = np.flatnonzero((b[0] >= first) & (b[0] <= last))
    # Sums of the boxes' IoU up to each row of b: a span's sum is the difference of two.
    ious = np.zeros(len(b[0]))
    ious[common] = box_ious(a[1][b[0][common] - first], b[1][common], half_open)
    sums = np.concatenate([np.zeros(1), np.cumsum(ious)])
    filled = spans[:, 0] < spans[:, 1]
    start, end = np.where(filled, spans[:, 0], 0), np.where(filled, spans[:, 1], 1)
    begins, ends = b[0][start], b[0][end - 1]
    frames = np.where(filled, np.minimum(ends, last) - np.maximum(begins, first) + 1, 0)
    hull = np.maximum(ends, last) - np.minimum(begins, first) + 1
    some = frames > 0
    return np.where(some, (sums[end] - sums[start]) / hull, 0), np.where(some, frames / hull, 0)


def box_ious(a: Boxes, b: Boxes, half_open: bool = False) -> Float64:
    """IoU of boxes, row by row.

    Args:
        a: float [n, 4], x1, y1, x2, y2.
        b: float [n, 4].
        half_open: as for `span_ious`.

    Returns:
        float64 [n]; 0 where the union has no area.
    """
    more = 0.0 if half_open else 1.0
    a, b = a.astype(np.float64), b.astype(np.float64)
    sides = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + more, 0)
    overlap = sides.prod(axis=1)
    union = (a[:, 2:] - a[:, :2] + more).prod(axis=1) + (b[:, 2:] - b[:, :2] + more).prod(axis=1) - overlap
    return np.divide(overlap, union, out=np.zeros(len(a)), where=union > 0)
