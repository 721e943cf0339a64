"""The page of a video with tubes: boxes at their places, figures of space and time, no values without a source."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mmn_fast.errors import InputError
from mmn_fast.viz.svg import ticks
from mmn_fast.viz.tube_page import GroundedTubes, tube_report
from tests.viz_pages import Reader, data_of, frames, moving_tube, tube_moment, tube_page


def test_page_carries_the_boxes_of_every_tube_and_of_the_truth() -> None:
    data = data_of(tube_page(first_frame=0, box_size=(16, 12)))
    assert data["box_size"] == [16, 12]
    assert [tube["first"] for tube in data["tubes"]] == [2, 0]
    assert data["tubes"][1]["boxes"] == [1, 1, 4, 3, 2, 1, 5, 3, 3, 1, 6, 3]
    assert data["queries"][0]["answer"] == [1, 0, 1]  # tube, first and last frame
    assert data["queries"][0]["truth"] == {"first": 1, "boxes": [2, 1, 5, 3, 3, 1, 6, 3]}
    assert data["queries"][2]["answer"] is None
    assert data["queries"][3]["truth"] is None


def test_frames_are_numbered_as_the_tubes_are() -> None:
    video = data_of(tube_report([], [], frames(500), 8.0, first_frame=100))["video"]
    assert len(video["numbers"]) == len(video["times_s"]) == 240
    assert [round(time * 8) + 100 for time in video["times_s"]] == video["numbers"]


def test_table_has_tube_times_and_both_ious() -> None:
    reader = Reader(tube_page())
    assert [a for a in reader.tags("th") if a.get("scope") == "col"][2] == {"scope": "col", "class": "num"}
    seeks = [button for button in reader.tags("button") if "data-seek" in button]
    assert (seeks[0]["data-seek"], seeks[0]["data-end"]) == ("0", "1")  # frames 0 and 1 at two per second
    assert (seeks[1]["data-seek"], seeks[1]["data-end"]) == ("0.5", "1.5")
    assert "0.33" in reader.texts["td"]  # one common frame of three, and the same box


def test_a_map_covers_its_tube_and_has_no_cell_without_rows() -> None:
    queries = data_of(tube_page())["queries"]
    assert (queries[0]["map"]["start_s"], queries[0]["map"]["duration_s"]) == (0, 1.5)
    assert "map" not in queries[2]
    words = tube_page().html
    assert "not a proposal" in words  # three rows leave cells of four clips empty
    assert words.count('mmn-diamond"') == 1  # a true tube elsewhere in the frame has no place in the map


def test_ious_are_those_of_the_best_moment() -> None:
    tube = moving_tube()
    truth = (tube.frames, tube.boxes)
    assert GroundedTubes("s", (tube_moment(tube, 0, 0, 3, 0.5),), truth).ious == pytest.approx((0.5, 0.5))
    assert GroundedTubes("s", (), truth).ious == (0.0, 0.0)
    assert GroundedTubes("s").ious is None


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [(0, 15.6, [0, 5, 10, 15]), (3.1, 12.5, [4, 6, 8, 10, 12, 14]), (2.02, 0.05, [2.02]), (0, 0.05, [0])],
)
def test_ticks_are_round_times_from_any_start(start: float, length: float, expected: list[float]) -> None:
    assert ticks(length, 7 if start else 4, start) == expected


def test_what_cannot_be_shown_is_refused_in_a_sentence() -> None:
    tube = moving_tube()
    with pytest.raises(InputError, match=r"queries\[0\]: expected a tube of 0 to 0, got 3"):
        tube_report([GroundedTubes("s", (tube_moment(tube, 3, 0, 1, 0.5),))], [tube], frames(), 2.0)
    with pytest.raises(InputError, match=r"queries\[0\]: expected GroundedTubes, got str"):
        tube_report(["s"], [tube], frames(), 2.0)  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"tubes\[0\]: boxes: expected x1, y1, x2, y2"):
        tube_report([], [dataclasses.replace(tube, boxes=-tube.boxes)], frames(), 2.0)
    with pytest.raises(InputError, match="truth: frames: expected consecutive"):
        GroundedTubes("s", (), (np.array([1, 3]), np.ones((2, 4))))
    with pytest.raises(InputError, match="fps: expected"):
        tube_report([], [tube], frames(), 0)
