"""Sentences with several true moments: read from two layouts, trained on with the best IoU, judged by the best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmn_fast.errors import InputError
from mmn_fast.evaluation import evaluate_maps, read_annotations
from mmn_fast.geometry import cells_to_moments, plan_for, temporal_iou
from mmn_fast.presets import PRESETS, LossParams
from mmn_fast.training.losses import contrastive_loss, contrastive_loss_packed, pairwise_iou, sentence_ious
from mmn_fast.training.run.trainer import train
from tests.tolerances import check_close
from tests.training_runs import assert_same_run, data_of, options
from tests.training_task import PRESET

PLAN = plan_for(PRESET)


def with_windows(task: dict[str, Path], root: Path, change: Any) -> dict[str, Path]:
    """The task with other windows: `change(window, number)` gives a sentence's timestamp."""
    videos = json.loads(task["annotations"].read_text())
    for record in videos.values():
        record["timestamps"] = [change(window, number) for number, window in enumerate(record["timestamps"])]
    path = root / "several.json"
    path.write_text(json.dumps(videos))
    return task | {"annotations": path}


def two(window: list[float], number: int) -> Any:
    """The first sentence of a video has a second window at the video's end."""
    return window if number else [window, [14.0, 16.0]]


def as_json_lines(task: dict[str, Path], root: Path) -> dict[str, Path]:
    """The same annotations in QVHighlights' layout."""
    lines = []
    for video, record in json.loads(task["annotations"].read_text()).items():
        for sentence, windows in zip(record["sentences"], record["timestamps"], strict=True):
            windows = windows if isinstance(windows[0], list) else [windows]
            facts = {"qid": len(lines), "query": sentence, "vid": video, "duration": record["duration"]}
            lines.append(json.dumps(facts | {"relevant_windows": windows}))
    path = root / "several.jsonl"
    path.write_text("\n".join(lines))
    return task | {"annotations": path}


def test_a_timestamp_of_the_json_layout_may_be_several_windows(tmp_path: Path) -> None:
    timestamps = [[0, 2], [[1, 3], None, [4, 99], [9, 8]], [[5, 6]]]
    record = {"duration": 10, "timestamps": timestamps, "sentences": ["one", "more", "list of one"]}
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"v": record}))
    samples = read_annotations(path)
    assert [windows.tolist() for windows in samples[0].moments_s] == [[[0, 2]], [[1, 3], [4, 10]], [[5, 6]]]
    assert [(note.kind, note.what, note.count, note.total) for note in samples.notes] == [
        ("clamped", "windows", 1, 5),
        ("left_out", "windows", 1, 5),
    ]
    frames = {"fps": 2, "num_frames": 20, "timestamps": [timestamps[0], [[2, 4], [8, 12]]], "sentences": ["a", "b"]}
    path.write_text(json.dumps({"v": frames}))
    (sample,) = read_annotations(path, PRESETS["tacos"])
    assert [windows.tolist() for windows in sample.moments_s] == [[[0, 1]], [[1, 2], [4, 6]]]
    assert read_annotations(path, PRESETS["tacos"], truth=False)[0].moments_s[1].shape == (0, 2)


@pytest.mark.parametrize(
    ("timestamp", "message"),
    [
        ([], r"entry 0: expected a window \[start, end\], got \[\]"),
        ([[0, 1, 2]], r"entry 0: expected a window \[start, end\], got \[0, 1, 2\]"),
        ([[0, 1], 3], r"entry 0: window \[\[0, 1\], 3\]: expected a number"),
        ([[0, 1], [2, "x"]], r"entry 0: window \[2, 'x'\]: expected a number"),
        ([[[0, 1]]], r"entry 0: expected a window \[start, end\], got \[\[0, 1\]\]"),
    ],
)
def test_what_is_no_window_is_refused(timestamp: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"v": {"duration": 10, "timestamps": [timestamp], "sentences": ["one"]}}))
    with pytest.raises(InputError, match=message):
        read_annotations(path)


def test_the_target_is_the_best_iou_over_the_windows(task: dict[str, Path], tmp_path: Path) -> None:
    several, alone = data_of(with_windows(task, tmp_path, two)), data_of(task)
    batch, one = several.batch([3, 5]), alone.batch([3, 5])
    second = temporal_iou(cells_to_moments(PLAN.cells, 16.0, PRESET.num_clips), np.array([14, 16], np.float32))
    expected = one.iou.numpy().copy()
    expected[::2] = np.maximum(expected[::2], second)
    assert np.array_equal(batch.iou.numpy(), expected)
    assert batch.moments.shape == (4, 2, 2)
    assert torch.equal(batch.moments[:, 0], one.moments)
    assert torch.equal(batch.moments[1::2, 1], one.moments[1::2])  # fewer windows: one stands twice
    assert batch.moments[::2, 1].tolist() == [[14, 16]] * 2
    assert one.moments.shape == (4, 2)


def test_both_layouts_give_the_same_batches(task: dict[str, Path], tmp_path: Path) -> None:
    paths = with_windows(task, tmp_path, two)
    ours, theirs = (data_of(one).batch(range(20)) for one in (paths, as_json_lines(paths, tmp_path)))
    for name in vars(ours):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def test_a_window_outside_the_video_does_not_count_beside_others(task: dict[str, Path], tmp_path: Path) -> None:
    outside = with_windows(task, tmp_path, lambda window, number: [window, [17.0, 20.0]])
    ours, theirs = data_of(outside).batch([0, 1]), data_of(task).batch([0, 1])
    assert torch.equal(ours.moments, theirs.moments)
    assert torch.equal(ours.iou, theirs.iou)


@pytest.mark.slow
def test_windows_that_stand_twice_train_to_the_same_bits(task: dict[str, Path], tmp_path: Path) -> None:
    twice = with_windows(task, tmp_path, lambda window, number: [window, window])
    for name, paths in (("one", task), ("twice", twice)):
        train(options(paths, tmp_path / name))
    assert_same_run(tmp_path / "one", tmp_path / "twice")


def test_sentences_overlap_as_their_best_pair_of_windows_does() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand(count, 3, 2, generator=generator).cumsum(-1) for count in (4, 5))
    pairs = torch.stack([pairwise_iou(a, b) for a in first.unbind(1) for b in second.unbind(1)])
    assert torch.equal(sentence_ious(first, second), pairs.amax(0))
    assert torch.equal(sentence_ious(first[:, 0], second[:, 0]), pairwise_iou(first[:, 0], second[:, 0]))


def test_a_sentence_that_shares_any_window_is_no_negative() -> None:
    """The second sentence overlaps only the shorter window of the first; the third overlaps none."""
    generator = torch.Generator().manual_seed(1)
    proposals = torch.randn(1, PLAN.num_proposals, 6, generator=generator, dtype=torch.float64)
    sentences = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    windows = torch.tensor([[[0, 8], [12, 14]], [[12, 14], [12, 14]], [[15, 16], [15, 16]]], dtype=torch.float64)
    iou = torch.rand(3, PLAN.num_proposals, generator=generator, dtype=torch.float64)
    params, video_of = LossParams(), torch.zeros(3, dtype=torch.int64)

    def video_term(rows: list[int]) -> float:
        """The first sentence's term against these sentences."""
        loss, _ = contrastive_loss_packed(
            proposals, sentences[rows], video_of[rows], iou[rows], windows[rows], params, positives_of=slice(0, 1)
        )
        return loss.item()

    assert video_term([0, 1, 2]) == video_term([0, 2])
    assert video_term([0, 2]) > video_term([0])
    maps = torch.zeros(1, 6, PRESET.num_clips, PRESET.num_clips, dtype=torch.float64)
    maps[:, :, PLAN.mask] = proposals.mT
    iou2d = torch.zeros(3, PRESET.num_clips, PRESET.num_clips, dtype=torch.float64)
    iou2d[:, PLAN.mask] = iou
    unpacked = contrastive_loss(maps, [sentences], [iou2d], [windows], torch.from_numpy(PLAN.mask), params)
    packed = contrastive_loss_packed(proposals, sentences, video_of, iou, windows, params)
    check_close(torch.stack(packed), torch.stack(unpacked), "packed_losses", "fp64")


@pytest.mark.parametrize("protocol", ["mmn", "2dtan", "qvh"])
def test_evaluation_takes_the_best_of_the_windows(protocol: str) -> None:
    """The found moment is the second window exactly; a third fits less well."""
    moments = cells_to_moments(PLAN.cells, 16.0, PRESET.num_clips)
    contrastive, iou = np.zeros((2, 1, len(moments)), np.float32)
    iou[0, 5] = 0.9
    windows = np.stack([[0.0, 16.0], moments[5], moments[6]])
    found = evaluate_maps(PRESET, [contrastive], [iou], [16.0], [[windows]], protocol)
    assert (found["R@1,IoU@0.7"], found["mIoU"]) == (1.0, 1.0)
    missed = evaluate_maps(PRESET, [contrastive], [iou], [16.0], [[windows[:1]]], protocol)
    assert missed["mIoU"] == 0.75
