"""`--protocol 2dtan` judges like 2D-TAN: an independent evaluation, in plain loops, agrees on every sentence."""

import dataclasses

import numpy as np
import pytest

from mmn_fast.errors import InputError
from mmn_fast.evaluation import PROTOCOLS, Protocol, evaluate_maps
from mmn_fast.evaluation.metrics import recall_at
from mmn_fast.evaluation.ranking import rank_moments
from mmn_fast.geometry import proposal_cells, proposal_mask
from mmn_fast.postprocess import fuse_scores
from mmn_fast.presets import PRESETS

CHARADES = PRESETS["charades-sta"]
TWO_D_TAN = PROTOCOLS["2dtan"]


def cells_of(preset):
    return proposal_cells(proposal_mask(preset.num_clips, preset.pooling_counts))


# The oracle: Python numbers (float64) and loops; NumPy for the float32 roundings alone.


def expected_segments(dense, duration_s):
    """List every cell of the upper triangle as (start, end), best first; masked cells have score 0."""
    side = len(dense)
    order = sorted(range(side * side), key=lambda at: (dense[at // side][at % side], at), reverse=True)
    return [
        tuple(float(np.float32(np.float32(edge) / np.float32(side)) * np.float32(duration_s)) for edge in (i, j + 1))
        for i, j in (divmod(at, side) for at in order)
        if i <= j
    ]


def expected_kept(segments, threshold, count):
    kept = []
    for start, end in segments:
        for other_start, other_end in kept:
            both = max(0.0, min(end, other_end) - max(start, other_start))
            if not both / ((other_end - other_start) + (end - start) - both) <= threshold:
                break
        else:
            kept.append((start, end))
        if len(kept) == count:
            break
    return kept


def expected_judgements(kept, truth, counts, thresholds):
    """Compute whether R@n,IoU@m holds, [len(counts)][len(thresholds)], and the best moment's IoU."""
    ious = []
    for start, end in kept:
        both = max(0.0, min(end, truth[1]) - max(start, truth[0]))
        ious.append(both / (max(end, truth[1]) - min(start, truth[0])))
    return [[any(iou > m for iou in ious[:n]) for m in thresholds] for n in counts], ious[0]


# Inputs: maps with ties and zeros, truths on the grid and off it


def sentences(preset, number, seed):
    """Draw per sentence the scores, float32 [P], the video's length and the truth; both are annotated (unrounded)."""
    rng = np.random.RandomState(seed)
    cells = cells_of(preset)
    for at in range(number):
        scores = rng.uniform(0, 1, len(cells)).astype(np.float32)
        if at % 3 == 0:  # ties, and scores of exactly 0
            scores = (np.floor(scores * 8) / 8).astype(np.float32)
        duration_s = round(rng.uniform(4, 200), 2)
        start, end = np.sort(rng.uniform(0, duration_s, 2))
        if at % 2:
            clip = duration_s / preset.num_clips
            start, end = np.floor(start / clip) * clip, np.ceil(end / clip) * clip
        else:
            start, end = round(start, 1), min(round(end, 1) + 0.1, duration_s)
        yield scores, duration_s, (float(start), float(end))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), [("charades-sta", 1200), ("activitynet-captions", 60), ("tacos", 20)])
@pytest.mark.parametrize("threshold", [0.4, 0.45, 0.5])
def test_every_judgement_is_that_of_the_independent_evaluation(name, number, threshold):
    preset, rules = PRESETS[name], dataclasses.replace(TWO_D_TAN, nms_iou=threshold)
    cells, counts, thresholds = cells_of(preset), (1, 5), (0.1, 0.3, 0.5, 0.7)
    for scores, duration_s, truth in sentences(preset, number, seed=int(100 * threshold)):
        dense = np.zeros((preset.num_clips, preset.num_clips), np.float32)
        dense[cells[:, 0], cells[:, 1]] = scores
        kept = expected_kept(expected_segments(dense.tolist(), duration_s), threshold, 5)
        found, best = expected_judgements(kept, truth, counts, thresholds)
        (ranked,) = rank_moments(scores[None], cells, duration_s, preset.num_clips, rules, 5)
        np.testing.assert_array_equal(ranked[:, :2].astype(np.float64), kept)
        ious = rules.ious(ranked[:, :2], np.array([truth]))
        np.testing.assert_array_equal(recall_at(ious[None], counts, thresholds, rules.strict), found)
        assert ious[0] == best


def test_the_table_is_that_of_the_independent_evaluation():
    found, best, maps = [], [], []
    for scores, duration_s, truth in sentences(CHARADES, 300, seed=7):
        contrastive = np.ones((1, len(scores)), np.float32)
        maps.append((contrastive, scores[None], duration_s, [np.array([truth])]))
        dense = np.zeros((16, 16), np.float32)
        dense[tuple(cells_of(CHARADES).T)] = fuse_scores(contrastive, scores[None], CHARADES)[0]
        kept = expected_kept(expected_segments(dense.tolist(), duration_s), 0.4, 5)
        judged, iou = expected_judgements(kept, truth, (1, 5), (0.5, 0.7))
        found.append(judged)
        best.append(iou)
    metrics = evaluate_maps(CHARADES, *zip(*maps, strict=True), "2dtan")
    shares = np.mean(found, axis=0)
    for n, count in enumerate((1, 5)):
        for m, threshold in enumerate((0.5, 0.7)):
            assert metrics[f"R@{count},IoU@{threshold}"] == shares[n, m]
    assert metrics["mIoU"] == np.mean(best)


def test_nms_computes_iou_in_double_precision_from_float32_ends():
    """The two moments have IoU 0.4 in float32 and more in float64: 2D-TAN keeps one, MMN both."""
    duration_s = 33.380001068115234
    moments = {(5, 15): 0.9, (1, 10): 0.8}
    cells = cells_of(CHARADES)
    scores = np.array([[moments.get(cell, 0) for cell in map(tuple, cells.tolist())]], np.float32)
    for rules, kept in ((TWO_D_TAN, 1), (Protocol("own", strict=False, nms_iou=0.4), 2)):
        (ranked,) = rank_moments(scores, cells, duration_s, 16, rules, 5)
        assert (ranked[:, 2] > 0).sum() == kept
        np.testing.assert_array_equal(ranked[0, :2], np.array([10.43125057220459, 33.380001068115234], np.float32))


def test_equal_scores_rank_by_descending_cell_and_zeros_are_candidates():
    cells = cells_of(CHARADES)
    scores = np.zeros((1, len(cells)), np.float32)
    for cell in ((9, 9), (2, 2)):
        scores[0, np.flatnonzero((cells == cell).all(axis=1))[0]] = 0.5
    (theirs,) = rank_moments(scores, cells, 16.0, 16, TWO_D_TAN, 3)
    np.testing.assert_array_equal(theirs, np.array([[9, 10, 0.5], [2, 3, 0.5], [15, 16, 0]], np.float32))
    (mmn,) = rank_moments(scores, cells, 16.0, 16, Protocol("own", strict=False, nms_iou=0.4), 3)
    np.testing.assert_array_equal(mmn, np.array([[2, 3, 0.5], [9, 10, 0.5]], np.float32))


def test_truths_are_compared_as_annotated_not_rounded_to_float32():
    """Moment and truth are both 0 to 0.7 of the video; the truth is the float64 product, so IoU is just below 1."""
    cells = cells_of(CHARADES)
    scores = (cells == (0, 6)).all(axis=1).astype(np.float32)[None]
    truth = 7 * 30.08 / 16
    (ranked,) = rank_moments(scores, cells, 30.08, 16, TWO_D_TAN, 1)
    (iou,) = TWO_D_TAN.ious(ranked[:, :2], np.array([[0, truth]]))
    end = float(ranked[0, 1])
    assert iou == min(end, truth) / max(end, truth) != 1


def test_unknown_rules_are_refused():
    with pytest.raises(InputError, match=r"protocol 'own': rules: expected one of mmn, 2dtan, qvh, got 'qvh-'"):
        Protocol("own", strict=True, rules="qvh-")
