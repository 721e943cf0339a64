"""Tubes as values: rows of a cell, overlap in space and time, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mmn_fast
from benchmarks.golden import cases
from mmn_fast.errors import InputError
from mmn_fast.geometry import plan_for
from mmn_fast.presets import PRESETS
from mmn_fast.tubes import check_track, row_span, span_ious, tube_iou
from tests.tolerances import check_close

CELLS = plan_for(PRESETS["hc-stvg"]).cells


@pytest.mark.parametrize("num_rows", [1, 2, 3, 9, 15, 16, 17, 24, 40, 300])
def test_a_cell_stands_for_the_official_codes_rows(num_rows: int) -> None:
    spans = row_span(num_rows, 16, CELLS)
    assert [(int(s), int(e)) for s, e in spans] == [
        (round(i / 16 * num_rows), round((j + 1) / 16 * num_rows)) for i, j in CELLS.tolist()
    ]
    filled = spans[:, 0] < spans[:, 1]
    assert filled.all() == (num_rows >= 16)
    if num_rows == 1:
        assert (filled == ((CELLS[:, 0] <= 8) & (CELLS[:, 1] >= 8))).all()


@pytest.mark.parametrize("name", ["hcstvg_small", "hcstvg_full"])
def test_golden_overlaps(name: str) -> None:
    """The overlap with the true tube is compared for the answer, and for every cell of every tube (the target)."""
    case = cases.load(name)
    for query in case.tube_queries:
        answer, true, targets = (
            case.arrays[f"{query.video_id}.{part}"] for part in ("boxes", "ground_truth", "target_iou")
        )
        found = tube_iou(answer[:, 0], answer[:, 1:], true[:, 0], true[:, 1:])
        check_close(found, case.arrays[f"{query.video_id}.viou_tiou"], "golden_viou")
        truth = check_track(true[:, 0], true[:, 1:], "true")
        for tube, target in zip(query.tubes, targets, strict=True):
            track = check_track(tube.frames, tube.boxes, "tube")
            viou, _ = span_ious(truth, track, row_span(len(track[0]), 16, CELLS))
            check_close(viou, target[CELLS[:, 0], CELLS[:, 1]], "golden_viou")


def test_overlap_counts_both_ends() -> None:
    """Both ends count for frames and, by default, for pixels: two boxes of 10 x 10 pixels share a column of pixels."""
    left, right = [[0, 0, 9, 9]] * 4, [[9, 0, 18, 9]] * 4
    viou, tiou = tube_iou([5, 6, 7, 8], left, [7, 8, 9, 10], right)
    assert (viou, tiou) == (pytest.approx(2 / 6 * 10 / 190), pytest.approx(2 / 6))
    assert tube_iou([5, 6, 7, 8], left, [7, 8, 9, 10], right, half_open=True) == (0, pytest.approx(2 / 6))
    assert tube_iou([5, 6, 7, 8], left, [9, 10, 11, 12], left) == (0, 0)
    assert tube_iou([5, 6, 7, 8], left, [5, 6, 7, 8], left) == (1, 1)
    assert tube_iou([1], [[2, 2, 2, 2]], [1], [[2, 2, 2, 2]], half_open=True) == (0, 1)


@pytest.mark.parametrize(
    ("frames", "boxes", "message"),
    [
        ([3, 4, 6], np.zeros((3, 4)), "t: frames: expected consecutive frame numbers, got 4 in row 1 and 6 in row 2"),
        ([4, 3], np.zeros((2, 4)), "got 4 in row 0 and 3 in row 1; split the tube there"),
        ([], np.zeros((0, 4)), r"t: frames: expected int \[n\] with n >= 1, got float64 \[0\]"),
        ([1.5], np.zeros((1, 4)), r"t: frames: expected whole numbers, got \[1.5\]"),
        ([np.nan], np.zeros((1, 4)), r"t: frames: expected whole numbers, got \[nan\]"),
        (["1"], np.zeros((1, 4)), r"t: frames: expected int \[n\], got list"),
        (None, np.zeros((1, 4)), r"t: frames: expected int \[n\], got None"),
        ([1, 2], np.zeros((3, 4)), r"t: boxes: expected float \[2, 4\], a box per frame, got float64 \[3, 4\]"),
        ([1], [[0, 0, 1]], r"expected float \[1, 4\], a box per frame, got int64 \[1, 3\]"),
        ([1], [[0, 0, np.nan, 1]], r"t: boxes: expected finite numbers, got \[0.0, 0.0, nan, 1.0\] in row 0"),
        ([1, 2], [[0, 0, 1, 1], [5, 0, 4, 1]], r"x1 <= x2 and y1 <= y2, got \[5.0, 0.0, 4.0, 1.0\] in row 1"),
        ([1], [[0, 0, 1, 1], [2]], r"t: boxes: expected float \[n, 4\], got list"),
    ],
)
def test_tracks_that_are_none_are_refused(frames: object, boxes: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_track(frames, boxes, "t")


def test_a_moment_of_a_tube_as_plain_values() -> None:
    moment = mmn_fast.TubeMoment(2, 3, 5, 13, 14, np.array([[0, 0, 1, 1], [0, 0, 2, 2]], np.float32), 0.25)
    assert moment.to_dict() == {
        "tube": 2,
        "start_row": 3,
        "end_row": 5,
        "start_frame": 13,
        "end_frame": 14,
        "score": 0.25,
        "boxes": [[0, 0, 1, 1], [0, 0, 2, 2]],
    }
    assert "boxes=float32 [2, 4]" in repr(moment)


def test_tracks_may_be_lists_tensors_or_arrays() -> None:
    corners = [[0, 0, 1, 1], [0, 0, 2.5, 2]]
    tensor = torch.tensor(corners, requires_grad=True)
    for frames, boxes, dtype in (
        ([3, 4], corners, np.float64),
        (np.array([3, 4], np.float32), np.array(corners, np.float16), np.float32),
        (torch.tensor([3, 4]), tensor, np.float32),
    ):
        found = check_track(frames, boxes, "t")
        assert (found[0].dtype, found[1].dtype) == (np.int64, dtype)
        assert (found[0].tolist(), found[1].tolist()) == ([3, 4], corners)
    with pytest.raises(InputError, match=r"^t: boxes: expected float \[n, 4\], got bfloat16 \[2, 4\]"):
        check_track([3, 4], tensor.bfloat16(), "t")
