"""Overlap of tubes, targets and the table of HC-STVG: official truths, the definition in loops, hostile arrays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.golden import cases, recipe
from mmn_fast import _C
from mmn_fast.errors import InputError
from mmn_fast.evaluation.tubes import TubeFigures, target_iou, tube_figures, tube_iou
from mmn_fast.geometry import proposal_mask
from mmn_fast.kernels import reference
from mmn_fast.kernels.cpu import ops
from mmn_fast.tubes import Tube, row_span
from tests.tolerances import check_close

LOSSES = Path(__file__).parent / "golden" / "hcstvg_losses_7"


def tubes_of(seed: int, video: dict[str, int]) -> list[Tube]:
    drawn = recipe.tubes(seed, video["num_tubes"], video["min_len"], video["max_len"])
    return [Tube(rows[:, 0], rows[:, 1:]) for rows in drawn]


def golden_videos(name: str):
    """Read a golden file: per video its tubes, the true tube, and the file's arrays by name."""
    path = LOSSES if name == LOSSES.name else cases.HERE / name
    spec = json.loads(path.with_suffix(".json").read_text())
    with np.load(path.with_suffix(".npz")) as arrays:
        for v, video in enumerate(spec["videos"]):
            own = {key.partition(".")[2]: arrays[key] for key in arrays if key.startswith(f"video{v}.")}
            truth = own["ground_truth"]
            yield tubes_of(spec["seed"] + 100 + v, video), (truth[:, 0], truth[:, 1:]), own


@pytest.mark.parametrize("name", ["hcstvg_small", "hcstvg_full", "hcstvg_losses_7"])
def test_target_and_overlap_are_the_official_ones(name: str) -> None:
    for tubes, truth, own in golden_videos(name):
        check_close(target_iou(tubes, truth, 16), own["target_iou"], "golden_viou")
        if "tube" in own:
            tube, start, end = own["tube"]
            frames, boxes = tubes[tube].frames[start:end], tubes[tube].boxes[start:end]
            np.testing.assert_array_equal(np.column_stack([frames, boxes]), own["boxes"])
            check_close(tube_iou(frames, boxes, *truth), own["viou_tiou"], "golden_viou")


def test_the_table_is_the_official_one() -> None:
    spec = json.loads(LOSSES.with_suffix(".json").read_text())
    seed, mask, answers, truths = spec["seed"], proposal_mask(16, (15,)), [], []
    for v, (tubes, truth, own) in enumerate(golden_videos(LOSSES.name)):
        shape = (len(tubes), 16, 16)
        contrastive = np.tanh(0.8 * recipe.normal(f"stvg.c{v}", shape, seed) + 2 * own["target_iou"]) * mask
        iou = mask / (1 + np.exp(-(recipe.normal(f"stvg.u{v}", shape, seed) + 3 * own["target_iou"])))
        cells = np.argwhere(np.ones((16, 16), bool)).astype(np.int32)
        spans = np.stack([row_span(len(tube.frames), 16, cells) for tube in tubes])
        scores = np.where(spans[..., 0] < spans[..., 1], (contrastive * iou).reshape(len(tubes), -1), -np.inf)
        tube, cell = np.unravel_index(scores.argmax(), scores.shape)
        rows = slice(*spans[tube, cell])
        answers.append((tubes[tube].frames[rows], tubes[tube].boxes[rows]))
        truths.append(truth)
    figures = tube_figures(answers, truths)
    recall = spec["recall"]
    official = {
        "m_vIoU": spec["m_viou"],
        "m_tIoU": spec["m_tiou"],
        "vIoU@0.3": recall["R@1,IoU@0.3"],
        "vIoU@0.5": recall["R@1,IoU@0.5"],
        "Best_R1": recall["Best_R1"],
    }
    assert figures.keys() == official.keys()
    for name, value in official.items():
        check_close(figures[name], value, "golden_recall", what=name)


def random_tube(rng: np.random.Generator, rows: int, first: int) -> Tube:
    corner = rng.uniform(0, 40, (rows, 2))
    return Tube(np.arange(first, first + rows), np.hstack([corner, corner + rng.uniform(0, 30, (rows, 2))]))


@pytest.mark.parametrize("half_open", [False, True])
def test_target_is_the_definition_in_loops(half_open: bool) -> None:
    rng = np.random.default_rng(5)
    tubes = [
        random_tube(rng, rows, int(first))
        for rows, first in zip([1, 3, 7, 17, 40], rng.integers(-5, 30, 5), strict=True)
    ]
    tubes.append(random_tube(rng, 4, 900))  # far from the truth
    truth = random_tube(rng, 23, 4)
    for num_clips in (1, 5, 8):
        expected = reference.target_iou(
            [(tube.frames, tube.boxes) for tube in tubes], (truth.frames, truth.boxes), num_clips, half_open
        )
        found = target_iou(tubes, (truth.frames, truth.boxes), num_clips, half_open, threads=1)
        assert found.dtype == np.float32
        check_close(found, expected, "target_iou")
        again = target_iou(tubes, (truth.frames, truth.boxes), num_clips, half_open, threads=3)
        np.testing.assert_array_equal(found, again)
        alone = target_iou(tubes[3:4], (truth.frames, truth.boxes), num_clips, half_open)
        np.testing.assert_array_equal(alone[0], found[3])
    whole = tube_iou(tubes[4].frames, tubes[4].boxes, truth.frames, truth.boxes, half_open)
    check_close(whole[0], target_iou(tubes, (truth.frames, truth.boxes), 1, half_open)[4, 0, 0], "target_iou")


def test_target_writes_every_element_and_splits_over_threads() -> None:
    rng = np.random.default_rng(0)
    tubes, truth = [random_tube(rng, 300, 0) for _ in range(200)], random_tube(rng, 280, 10)  # enough for two threads
    found = target_iou(tubes, (truth.frames, truth.boxes), 16, threads=2)
    np.testing.assert_array_equal(found, target_iou(tubes, (truth.frames, truth.boxes), 16, threads=1))
    assert np.isfinite(found).all()
    rows, columns = np.tril_indices(16, -1)
    assert (found[:, rows, columns] == 0).all()
    assert target_iou([], (truth.frames, truth.boxes), 16).shape == (0, 16, 16)


@pytest.mark.parametrize("num_clips", [1, 3, 16])
def test_the_op_fills_outputs_of_any_size(num_clips: int) -> None:
    """NaN-filled outputs; tubes of 0, 1 and 21 rows; as many threads as one likes."""
    rng = np.random.default_rng(3)
    rows, truth = [0, 1, 21], random_tube(rng, 9, 5)
    boxes = random_tube(rng, sum(rows), 0).boxes
    given = arguments(
        boxes=boxes,
        starts=np.cumsum([0, *rows]),
        first_frames=np.array([5, 5, 2]),
        bounds=np.array([np.rint(np.linspace(0, n, num_clips + 1)) for n in rows], np.int64),
        truth=truth.boxes,
        truth_first_frame=5,
    )
    found = []
    for threads in (1, 7):
        out = np.full((3, num_clips, num_clips), np.nan, np.float32)
        _C.target_iou(**given, half_open=False, out=out, threads=threads)
        assert np.isfinite(out).all()
        found.append(out)
    np.testing.assert_array_equal(*found)
    assert not found[0][0].any()
    assert found[0][2].any()


def test_a_box_of_one_pixel_counts_inclusively_and_is_empty_half_open() -> None:
    one = ([5], [[3.0, 4.0, 3.0, 4.0]])
    assert tube_iou(*one, *one) == (1.0, 1.0)
    assert tube_iou(*one, *one, half_open=True) == (0.0, 1.0)
    assert target_iou([Tube(*one)], one, 1, half_open=True).tolist() == [[[0.0]]]
    wider = ([5], [[3.0, 4.0, 4.0, 4.0]])
    assert tube_iou(*one, *wider)[0] == 0.5


def test_figures_count_strictly_above_the_float32_threshold() -> None:
    def sized(height: float) -> tuple[list[int], list[list[float]]]:
        return [0], [[0.0, 0.0, 0.0, height - 1]]

    half = tube_figures([sized(1), sized(2)], [sized(2), sized(2)], (0.5, 0.3))
    assert half["vIoU@0.5"] == 0.5  # a vIoU of exactly 0.5 does not count
    assert half["vIoU@0.3"] == 1.0
    assert half["m_vIoU"] == 0.75
    assert half["Best_R1"] == 0.75
    assert tube_figures([None, sized(2)], [sized(2)] * 2)["m_tIoU"] == 0.5


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (([0, 2], np.zeros((2, 4))), r"answer 0: frames: expected consecutive frame numbers, got 0 in row 0 and 2"),
        (([0], [[2, 0, 1, 1]]), r"answer 0: boxes: expected x1, y1, x2, y2 with x1 <= x2"),
        (([0], [[np.nan, 0, 1, 1]]), r"answer 0: boxes: expected finite numbers"),
    ],
)
def test_figures_name_the_answer_that_cannot_be(answer: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tube_figures([answer], [([0], [[0, 0, 1, 1]])])


def test_figures_refuse_other_counts_and_protocols() -> None:
    with pytest.raises(InputError, match=r"answers: expected as many as truths, 1, got 0"):
        tube_figures([], [([0], [[0, 0, 1, 1]])])
    with pytest.raises(InputError, match=r"answers: expected at least one, got none"):
        tube_figures([], [])
    with pytest.raises(InputError, match=r"protocol: expected 'mmn' or 'half-open' for tubes, got 'qvh'"):
        TubeFigures(protocol="qvh")


def arguments(**changed: object) -> dict[str, object]:
    """Make arguments of the op: two tubes of 2 and 3 rows, and a truth of 4 rows."""
    boxes = np.tile(np.array([[0.0, 0.0, 4.0, 4.0]]), (5, 1))
    given = {
        "boxes": boxes,
        "starts": np.array([0, 2, 5]),
        "first_frames": np.array([0, 1]),
        "bounds": np.array([[0, 1, 2], [0, 2, 3]]),
        "truth": boxes[:4].copy(),
        "truth_first_frame": 0,
    }
    return given | changed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"bounds": np.array([[0, 1, 3], [0, 2, 3]])}, "bounds: expected rising rows from 0 to 2"),
        ({"bounds": np.array([[1, 0, 2], [0, 2, 3]])}, "bounds: expected rising rows"),
        ({"bounds": np.array([[-1, 1, 2], [0, 2, 3]])}, "bounds: expected rising rows"),
        ({"starts": np.array([0, 2, 4])}, "starts: expected 0 to 5, got 0 to 4"),
        ({"starts": np.array([0, 7, 5])}, "starts: expected rising numbers"),
        ({"starts": np.array([0, 5])}, r"starts: expected int64 \[3\]"),
        ({"truth": np.empty((0, 4))}, "truth: expected at least one frame"),
        ({"truth": np.full((4, 4), np.nan)}, "truth: expected finite x1 <= x2"),
        ({"boxes": np.tile(np.array([[3.0, 0.0, 2.0, 4.0]]), (5, 1))}, "boxes: expected finite x1 <= x2"),
        ({"first_frames": np.array([0, 2**62])}, "first_frames: expected frames below"),
        ({"truth_first_frame": -(2**62)}, "truth_first_frame: expected a frame below"),
        ({"boxes": np.zeros((5, 3))}, r"boxes: expected float64 \[5, 4\]"),
    ],
)
def test_the_op_refuses_rows_that_are_not_there(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.target_iou(**arguments(**changed), threads=1)


def test_the_op_refuses_other_dtypes() -> None:
    assert ops.target_iou(**arguments(), threads=1).shape == (2, 2, 2)
    with pytest.raises(TypeError, match=r"boxes: expected float64 \[rows, 4\], got float32"):
        ops.target_iou(**arguments(boxes=np.zeros((5, 4), np.float32)))
    with pytest.raises(TypeError, match="truth: expected a NumPy array, got list"):
        ops.target_iou(**arguments(truth=[]))
