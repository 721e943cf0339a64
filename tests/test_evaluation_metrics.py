"""Metrics and protocols: the official figures, and the rules by which a moment counts as found."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.golden import recipe
from mmn_fast.errors import InputError
from mmn_fast.evaluation import PROTOCOLS, Protocol, evaluate_maps, mean_iou, recall_at
from mmn_fast.evaluation.metrics import best_ious, get_protocol
from mmn_fast.geometry import cells_to_moments, temporal_iou
from mmn_fast.presets import PRESETS
from tests.evaluation_double import CHARADES, cells_of

GOLDEN = Path(__file__).parent / "golden"
CASE = json.loads((GOLDEN / "losses_and_recall_5.json").read_text())
PRESET_OF = {"charades": "charades-sta", "activitynet": "activitynet-captions", "tacos": "tacos"}


def cell_index(preset, i, j):
    return int(np.flatnonzero((cells_of(preset) == (i, j)).all(1))[0])


def charades_maps(*scores):
    """Make one sentence's maps [1, 136]: the given iou scores at cells (i, j), 0 elsewhere; contrastive is 1."""
    iou = np.zeros((1, 136), np.float32)
    for (i, j), score in scores:
        iou[0, cell_index(CHARADES, i, j)] = score
    return np.ones_like(iou), iou


def judge(maps, moment, protocol="mmn", preset="charades-sta"):
    """Compute the metrics of one sentence in a video of 16 s, in which a clip is one second."""
    contrastive, iou = maps
    return evaluate_maps(preset, [contrastive], [iou], [16.0], [np.array([moment], np.float32)], protocol)


# The official figures


@pytest.fixture(scope="module", params=CASE["datasets"])
def golden(request):
    """A dataset's twelve videos, rebuilt: its name, preset, and per video duration, moments and score maps."""
    dataset = request.param
    preset = PRESETS[PRESET_OF[dataset]]
    cells, side = cells_of(preset), preset.num_clips
    videos = []
    for number, video in enumerate(CASE["datasets"][dataset]["videos"]):
        moments = np.array(video["moments"], np.float32)
        grid = cells_to_moments(cells, video["duration"], side)
        iou2d = np.stack([temporal_iou(grid, moment) for moment in moments])

        shape = (len(moments), side, side)

        def noise(kind, number=number, shape=shape):
            name = f"eval.{dataset}.{kind}{number}"
            return recipe.normal(name, shape, CASE["seed"])[:, cells[:, 0], cells[:, 1]]

        contrastive = np.tanh(np.float32(0.8) * noise("c") + iou2d)
        iou = 1 / (1 + np.exp(-(noise("u") + 2 * iou2d)))
        videos.append((video["duration"], moments, contrastive, iou, iou2d))
    return dataset, preset, videos


def test_target_ious_equal_the_official_ones_bit_for_bit(golden):
    dataset, _, videos = golden
    with np.load(GOLDEN / "losses_and_recall_5.npz") as arrays:
        np.testing.assert_array_equal(videos[0][4], arrays[f"{dataset}.iou2d0"])


def test_evaluate_maps_reproduces_the_official_table(golden):
    dataset, preset, videos = golden
    durations, moments, contrastive, iou, _ = zip(*videos, strict=True)
    metrics = evaluate_maps(preset.name, contrastive, iou, durations, moments)
    official = CASE["datasets"][dataset]["recall"]
    assert list(metrics) == [*official, "mIoU"]
    for name, figure in official.items():
        # The official code computes the figures in float32.
        assert metrics[name] == pytest.approx(figure, abs=1e-6), name
    assert 0 < metrics["mIoU"] < 1
    assert all(type(value) is float for value in metrics.values())


# Protocols


@pytest.mark.parametrize(("protocol", "found"), [("mmn", 1.0), ("2dtan", 0.0)])
def test_an_iou_exactly_at_the_threshold_counts_in_mmn_and_not_in_2dtan(protocol, found):
    metrics = judge(charades_maps(((0, 0), 0.9)), [0, 2], protocol)
    assert metrics["mIoU"] == 0.5
    assert metrics["R@1,IoU@0.5"] == found
    # 7 s of 10: the quotient and the threshold 0.7 round to the same float32.
    assert judge(charades_maps(((0, 6), 0.9)), [0, 10], protocol)["R@1,IoU@0.7"] == found


def test_each_protocol_suppresses_at_its_own_iou():
    # [0, 4] and [0, 9] have IoU 4/9: one moment for 2D-TAN (0.4), two for MMN with this preset (0.5).
    maps = charades_maps(((0, 3), 0.9), ((0, 8), 0.8))
    assert judge(maps, [0, 9], "mmn")["R@5,IoU@0.7"] == 1.0
    assert judge(maps, [0, 9], "2dtan")["R@5,IoU@0.7"] == 0.0
    assert judge(maps, [0, 9], Protocol("own", strict=True, nms_iou=0.45))["R@5,IoU@0.7"] == 1.0


def test_both_protocols_keep_a_moment_exactly_at_the_nms_iou():
    # In float32 the IoU of [0, 2] and [0, 5] is exactly 0.4.
    maps = charades_maps(((0, 1), 0.9), ((0, 4), 0.8))
    assert judge(maps, [0, 5], Protocol("own", strict=False, nms_iou=0.4))["R@5,IoU@0.7"] == 1.0
    assert judge(maps, [0, 5], "2dtan")["R@5,IoU@0.7"] == 1.0


def test_protocol_names_are_keys_and_unknown_ones_are_refused():
    assert {name: protocol.name for name, protocol in PROTOCOLS.items()} == {
        name: name for name in ("mmn", "2dtan", "qvh")
    }
    with pytest.raises(InputError, match=r"^protocol: expected one of mmn, 2dtan, qvh, got 'tvr'"):
        get_protocol("tvr")
    with pytest.raises(InputError, match=r"protocol 'own': nms_iou: expected 0 to 1 or None, got 40"):
        Protocol("own", strict=False, nms_iou=40)


# Metrics


def test_recall_counts_sentences_with_a_good_moment_among_the_first_n():
    ious = np.array([[0.2, 0.9], [0.6, 0.1], [0.0, 0.0]], np.float32)
    np.testing.assert_array_equal(recall_at(ious, (1, 2), (0.5, 0.9), strict=False), [[1 / 3, 0], [2 / 3, 1 / 3]])
    np.testing.assert_array_equal(recall_at(ious, (1, 2), (0.5, 0.9), strict=True), [[1 / 3, 0], [2 / 3, 0]])


def test_absent_moments_never_count():
    ious = np.array([[np.nan, np.nan], [1.0, np.nan]], np.float32)
    np.testing.assert_array_equal(recall_at(ious, (1, 2), (0.0,), strict=False), [[0.5], [0.5]])
    assert mean_iou(ious) == 0.5


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (3,)])
def test_metrics_refuse_arrays_without_sentences_or_moments(shape):
    for metric in (mean_iou, lambda ious: recall_at(ious, (1,), (0.5,), strict=False)):
        with pytest.raises(InputError, match=r"^ious: expected \[S, K\]"):
            metric(np.zeros(shape, np.float32))


def test_recall_refuses_an_n_beyond_the_ranked_moments():
    with pytest.raises(InputError, match=r"^counts: expected numbers from 1 to 3 \(ranked moments\), got \[1, 5\]"):
        recall_at(np.zeros((2, 3), np.float32), (1, 5), (0.5,), strict=False)


def test_the_best_of_several_windows_counts():
    moments = np.array([[0, 2], [4, 6], [7, 8]], np.float32)
    windows = np.array([[0, 4], [4, 6]], np.float32)
    np.testing.assert_array_equal(best_ious(moments, windows), np.array([0.5, 1, 0], np.float32))
    maps = charades_maps(((4, 5), 0.9))
    metrics = evaluate_maps("charades-sta", [maps[0]], [maps[1]], [16.0], [[windows]])
    assert metrics["R@1,IoU@0.7"] == 1.0


# evaluate_maps


def test_fewer_moments_than_n_are_judged_as_they_are():
    metrics = judge(charades_maps(((0, 3), 0.9), ((8, 9), 0.8)), [8, 10])
    assert (metrics["R@1,IoU@0.5"], metrics["R@5,IoU@0.5"]) == (0.0, 1.0)


def test_a_sentence_without_any_moment_counts_as_not_found():
    metrics = judge(charades_maps(), [0, 16])
    assert set(metrics.values()) == {0.0}


def test_equal_scores_rank_by_cell_order():
    # The cells are disjoint, so none is suppressed; (2, 2) comes before (9, 9) in row-major order.
    maps = charades_maps(((9, 9), 0.5), ((2, 2), 0.5))
    assert judge(maps, [2, 3])["R@1,IoU@0.7"] == 1.0
    assert judge(maps, [9, 10])["R@1,IoU@0.7"] == 0.0


def test_a_video_without_sentences_changes_nothing():
    contrastive, iou = charades_maps(((0, 3), 0.9))
    moments = np.array([[0, 4]], np.float32)
    alone = evaluate_maps(CHARADES, [contrastive], [iou], [16.0], [moments])
    empty = np.zeros((0, 136), np.float32)
    both = evaluate_maps(CHARADES, [empty, contrastive], [empty, iou], [5.0, 16.0], [moments[:0], moments])
    assert alone == both


def test_best_figures_exist_for_the_presets_own_n_alone():
    metrics = judge(charades_maps(((0, 3), 0.9)), [0, 4], preset="hc-stvg")
    assert list(metrics) == ["R@1,IoU@0.3", "R@1,IoU@0.5", "Best_R1", "mIoU"]


def test_evaluate_maps_names_the_wrong_shape():
    maps, moments = np.ones((2, 136), np.float32), np.array([[0, 1], [1, 2]], np.float32)
    dense = np.ones((2, 16, 16), np.float32)
    for arguments, message in (
        (
            ([dense], [maps], [9.0], [moments]),
            r"^contrastive\[0\]: expected float32 \[S, P\] = \[2, 136\] .*\[2, 16, 16\]",
        ),
        (([maps], [maps[:1]], [9.0], [moments]), r"^iou\[0\]: expected .* 'charades-sta'\), got float32 \[1, 136\]"),
        (([maps], [maps, maps], [9.0], [moments]), r"^iou: expected one entry per video, 1 as in moments_s, got 2"),
        (([maps], [maps], [], [moments]), r"^durations_s: expected one entry per video, 1 .* got 0"),
        (([maps], [maps], [0.0], [moments]), r"^durations_s\[0\]: expected a finite number > 0, got 0.0"),
        (
            ([maps], [maps], [9.0], [moments[:, :1]]),
            r"^moments_s\[0\]\[0\]: expected seconds \[2\] or \[G, 2\], got \[1\]",
        ),
        (([maps], [maps], [9.0], [[moments[:0]] * 2]), r"^moments_s\[0\]\[0\]: .* got \[0, 2\]"),
        (([], [], [], []), r"^moments_s: expected at least one sentence, got none"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_maps("charades-sta", *arguments)
