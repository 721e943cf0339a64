"""Turns both branches' scores into moments, of videos or of tubes: fusion, top-k and non-maximum suppression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mmn_fast.arrays import Float32, Int32
from mmn_fast.geometry import plan_for
from mmn_fast.kernels.cpu import ops
from mmn_fast.presets import Preset
from mmn_fast.tubes import Track, TubeMoment, row_span, span_ious
from mmn_fast.types import Moment


def fuse_scores(contrastive: Float32, iou: Float32, preset: Preset) -> Float32:
    """Fuse the branches into the score that ranks moments.

    Args:
        contrastive: float32 [S, P], cosine.
        iou: float32 [S, P], sigmoid(10 cosine).
        preset: chooses the fusion: "power" (0.5 c + 0.5)^p u, "product" c u.

    Returns:
        float32 [S, P].
    """
    if preset.score_fusion == "product":
        return contrastive * iou
    # A cosine can round to just below -1; its power would be NaN.
    base = np.maximum(contrastive * np.float32(0.5) + np.float32(0.5), np.float32(0))
    return np.power(base, np.float32(preset.score_power)) * iou


def select_moments(
    fused: Float32, moments: Float32, iou_threshold: float, top_k: int, threads: int | None = None
) -> Int32:
    """Select each sentence's best proposals after greedy non-maximum suppression.

    Args:
        fused: float32 [S, P].
        moments: float32 [P, 2], start and end of each proposal in seconds.
        iou_threshold: IoU above which the worse of two moments is suppressed.
        top_k: moments per sentence, >= 1.
        threads: CPU threads; None takes the default.

    Returns:
        int32 [S, top_k]: indices into P, best first, then -1 (`kernels.reference.temporal_nms`).
    """
    return ops.temporal_nms(fused, moments, iou_threshold, top_k, threads=threads)


def _choosing(preset: Preset) -> dict[str, Any]:
    """A preset's arguments of `kernels.cpu.ops.top_moments`."""
    return {"fusion": preset.score_fusion, "power": preset.score_power, "iou_threshold": preset.nms_iou}


def match_moments(
    video: tuple[Float32, Float32],
    text: tuple[Float32, Float32],
    moments: Float32,
    preset: Preset,
    top_k: int,
    threads: int | None = None,
) -> tuple[Int32, Float32]:
    """Choose each sentence's best moments in one video on the CPU, in one pass.

    Args:
        video: contrastive and iou embeddings of the proposals, float32 [P, J].
        text: the same of the sentences, float32 [S, J].
        moments: float32 [P, 2], start and end of each proposal in seconds.
        preset: gives the fusion and the threshold of suppression.
        top_k: moments per sentence, >= 1.
        threads: CPU threads; None takes the default.

    Returns:
        As `kernels.cpu.ops.top_moments`: the choice int32 [S, top_k], and the fused scores float32 [S, top_k].
    """
    arrays = [np.ascontiguousarray(array) for array in (*video, *text)]
    return ops.top_moments(
        arrays[0],
        arrays[1],
        arrays[2],
        arrays[3],
        moments,
        **_choosing(preset),
        top_k=top_k,
        threads=threads,
    )


def match_pairs(
    pairs: Sequence[tuple[tuple[Float32, Float32], tuple[Float32, Float32]]],
    moments: Float32,
    preset: Preset,
    top_k: int,
    threads: int | None = None,
) -> tuple[Int32, Float32]:
    """Choose the best moments of several videos, each for its own sentences, on the CPU and in one call.

    Args:
        pairs: per pair `match_moments`'s `video` and `text`.
        moments: float32 [B, P, 2], start and end of each proposal in each pair's video, seconds.
        preset: as for `match_moments`.
        top_k: as for `match_moments`.
        threads: as for `match_moments`.

    Returns:
        As `kernels.cpu.ops.top_moments_of_pairs`: int32 [all S, top_k] and float32 [all S, top_k], pair after pair.
    """
    contiguous = np.ascontiguousarray
    return ops.top_moments_of_pairs(
        [(contiguous(vc), contiguous(vi), contiguous(tc), contiguous(ti)) for (vc, vi), (tc, ti) in pairs],
        moments,
        **_choosing(preset),
        top_k=top_k,
        threads=threads,
    )


def to_moments(
    chosen: Int32, scores: Float32, moments: Float32, pairs: npt.NDArray[np.intp] | None = None
) -> list[list[Moment]]:
    """List the moments that `select_moments` chose.

    Args:
        chosen: int32 [S, top_k], -1 for none.
        scores: float32 [S, top_k], the fused scores of the chosen moments.
        moments: float32 [P, 2], seconds; of several videos, [B, P, 2].
        pairs: [S], for several videos: which of them each sentence is about.

    Returns:
        Per sentence its moments, best first.
    """
    if not moments.size:
        return [[] for _ in chosen]
    cells = np.maximum(chosen, 0)
    # tolist() converts all numbers at once; one by one, conversion takes longer than finding the moments.
    spans = (moments[cells] if pairs is None else moments[pairs[:, None], cells]).tolist()
    return [
        [_moment(start, end, score) for p, (start, end), score in zip(row, ends, values, strict=True) if p >= 0]
        for row, ends, values in zip(chosen.tolist(), spans, scores.tolist(), strict=True)
    ]


_slots: Any = Moment
_set_start, _set_end, _set_score = _slots.start_s.__set__, _slots.end_s.__set__, _slots.score.__set__


def _moment(start_s: float, end_s: float, score: float) -> Moment:
    """Make `Moment(start_s, end_s, score)` in 0.26 us; a frozen dataclass takes 0.72 us to write its slots."""
    moment: Moment = object.__new__(Moment)
    _set_start(moment, start_s)
    _set_end(moment, end_s)
    _set_score(moment, score)
    return moment


def to_tube_moments(fused: Float32, tracks: Sequence[Track], preset: Preset, top_k: int) -> list[list[TubeMoment]]:
    """Choose each sentence's best rows among all tubes of a video.

    The first is the official answer: the largest score among the cells that stand for at least one row, the first one
    of equals in the order of tubes, then cells. The official code gives one answer. Those after it are ours: each is
    the best that is left when every cell is gone whose vIoU with a better answer is above `preset.nms_iou`.

    Args:
        fused: float32 [K, S, P], finite.
        tracks: frames and boxes of the K tubes.
        preset: gives N, the cells and the threshold.
        top_k: moments per sentence, >= 1.

    Returns:
        Per sentence its moments, best first: fewer than top_k where suppression leaves fewer, none without tubes.
    """
    if not len(tracks):
        return [[] for _ in range(fused.shape[1])]
    cells, first_rows = plan_for(preset).cells, np.cumsum([0, *(len(frames) for frames, _ in tracks)])
    spans = np.stack([row_span(len(frames), preset.num_clips, cells) for frames, _ in tracks])
    rows = (spans + first_rows[:-1, None, None]).reshape(-1, 2)  # of all tubes, one after the other
    together = np.concatenate([frames for frames, _ in tracks]), np.concatenate([boxes for _, boxes in tracks])
    answers: list[list[TubeMoment]] = []
    for scores in np.moveaxis(fused, 1, 0).reshape(fused.shape[1], len(rows)):
        left = np.where(rows[:, 0] < rows[:, 1], scores, -np.inf)
        found: list[TubeMoment] = []
        while left[best := int(left.argmax())] > -np.inf:
            tube, cell = divmod(best, len(cells))
            moment = _tube_moment(tube, spans[tube, cell].tolist(), tracks[tube], float(scores[best]))
            found.append(moment)
            if len(found) == top_k:
                break
            left[best] = -np.inf
            track = tracks[tube][0][moment.start_row : moment.end_row], moment.boxes
            left[span_ious(track, together, rows)[0] > preset.nms_iou] = -np.inf
        answers.append(found)
    return answers


def _tube_moment(tube: int, rows: list[int], track: Track, score: float) -> TubeMoment:
    start, end = rows
    frames, boxes = track
    return TubeMoment(tube, start, end, int(frames[start]), int(frames[end - 1]), boxes[start:end].copy(), score)
