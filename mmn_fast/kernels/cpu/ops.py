"""The C++ ops on NumPy arrays: allocates outputs and calls `mmn_fast._C`. Without torch.

The extension checks arrays (dtype: TypeError; shape, layout and values: ValueError); its messages are in csrc/python.
Pass a torch CPU tensor as `tensor.numpy()`.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

from mmn_fast.arrays import Float32, Float64, Int32, Int64
from mmn_fast.kernels.host import _C, num_threads


def temporal_nms(
    scores: Float32,
    moments: Float32,
    iou_threshold: float,
    top_k: int,
    out: Int32 | None = None,
    threads: int | None = None,
) -> Int32:
    """Select every sentence's `top_k` best moments, greedily; a moment that overlaps a better one too much is dropped.

    Equivalent to:
        order = scores[s].argsort(descending=True, stable=True)   # without the cells whose score is exactly 0
        for cell in order:
            if not (iou(moments[cell], moments[kept]) > iou_threshold).any(): kept.append(cell)

    Args:
        scores: Fused scores, float32 [S, P], C-contiguous, no NaN. A score of exactly 0 is no candidate.
        moments: Start and end of every proposal, float32 [P, 2], finite seconds.
        iou_threshold: A moment is dropped if its IoU with a better one is strictly greater, 0 to 1.
        top_k: At least 1; may exceed P.
        out: Result, int32 [S, top_k], overlapping no input; allocated if None.
        threads: See `num_threads`. The result does not depend on it.

    Returns:
        `out`: proposals, best first (for equal scores, the lower index first), then -1.

    Raises:
        TypeError: An argument is no array, or has another dtype.
        ValueError: A shape, layout or value differs from the above; or MMN_FAST_CPU_ISA cannot be used.
    """
    _require_arrays(scores=scores, moments=moments)
    top_k = _require_top_k(top_k)
    if out is None:
        out = np.empty((*scores.shape[:1], top_k), np.int32)
    _require_arrays(out=out)
    _C.temporal_nms(
        scores=scores,
        moments=moments,
        iou_threshold=iou_threshold,
        top_k=top_k,
        out=out,
        threads=num_threads(threads),
    )
    return out


def match_scores(
    video_contrastive: Float32,
    video_iou: Float32,
    text_contrastive: Float32,
    text_iou: Float32,
    threads: int | None = None,
) -> tuple[Float32, Float32]:
    """Match every sentence with every proposal of one video.

    Equivalent to:
        text_contrastive @ video_contrastive.T, 1 / (1 + np.exp(-10 * text_iou @ video_iou.T))

    Args:
        video_contrastive: float32 [P, J], unit norm, C-contiguous.
        video_iou: float32 [P, J], unit norm.
        text_contrastive: float32 [S, J], unit norm.
        text_iou: float32 [S, J], unit norm.
        threads: See `num_threads`. The result does not depend on it.

    Returns:
        contrastive [S, P], the cosine; iou [S, P], sigmoid(10 cosine). A score does not depend on the rest of the call.

    Raises:
        TypeError: An argument is no array, or has another dtype.
        ValueError: A shape or layout differs from the above; or MMN_FAST_CPU_ISA cannot be used.
    """
    _require_arrays(
        video_contrastive=video_contrastive, video_iou=video_iou, text_contrastive=text_contrastive, text_iou=text_iou
    )
    shape = (*text_contrastive.shape[:1], *video_contrastive.shape[:1])
    contrastive, iou = np.empty(shape, np.float32), np.empty(shape, np.float32)
    _C.match_scores(
        video_contrastive=video_contrastive,
        video_iou=video_iou,
        text_contrastive=text_contrastive,
        text_iou=text_iou,
        contrastive=contrastive,
        iou=iou,
        threads=num_threads(threads),
    )
    return contrastive, iou


def top_moments(
    video_contrastive: Float32,
    video_iou: Float32,
    text_contrastive: Float32,
    text_iou: Float32,
    moments: Float32,
    *,
    fusion: str,
    power: float,
    iou_threshold: float,
    top_k: int,
    threads: int | None = None,
) -> tuple[Int32, Float32]:
    """Choose every sentence's best moments in one video: `match_scores`, fusion and `temporal_nms` in one pass.

    No array of size S x P is held: memory beside the outputs is 128 P bytes per thread, for any S.

    Equivalent to:
        c, u = match_scores(video_contrastive, video_iou, text_contrastive, text_iou)
        fused = c * u if fusion == "product" else np.maximum(0.5 * c + 0.5, 0) ** power * u
        cells = temporal_nms(fused, moments, iou_threshold, top_k)
        cells, np.where(cells >= 0, np.take_along_axis(fused, cells, 1), 0)

    Args:
        video_contrastive: float32 [P, J], unit norm, C-contiguous.
        video_iou: float32 [P, J], unit norm.
        text_contrastive: float32 [S, J], unit norm.
        text_iou: float32 [S, J], unit norm.
        moments: Start and end of every proposal, float32 [P, 2], finite seconds.
        fusion: "power" or "product".
        power: Exponent of the power fusion, finite. 0.5 gives a correctly rounded root; another exponent has a relative
            error of at most (2 + |power ln(base)|) 2^-23.
        iou_threshold: A moment is dropped if its IoU with a better one is strictly greater, 0 to 1.
        top_k: At least 1; may exceed P.
        threads: See `num_threads`. The result does not depend on it.

    Returns:
        int32 [S, top_k]: proposals, best first (for equal scores, the lower index first), then -1; and their fused
        scores, float32 [S, top_k], then 0. A row does not depend on the rest of the call.

    Raises:
        TypeError: An argument is no array, or has another dtype.
        ValueError: A shape, layout or value differs from the above; a score is NaN; or MMN_FAST_CPU_ISA cannot be used.
    """
    _require_arrays(
        video_contrastive=video_contrastive,
        video_iou=video_iou,
        text_contrastive=text_contrastive,
        text_iou=text_iou,
        moments=moments,
    )
    top_k = _require_top_k(top_k)
    shape = (*text_contrastive.shape[:1], top_k)
    cells, scores = np.empty(shape, np.int32), np.empty(shape, np.float32)
    _C.top_moments(
        video_contrastive=video_contrastive,
        video_iou=video_iou,
        text_contrastive=text_contrastive,
        text_iou=text_iou,
        moments=moments,
        fusion=fusion,
        power=power,
        iou_threshold=iou_threshold,
        top_k=top_k,
        cells=cells,
        scores=scores,
        threads=num_threads(threads),
    )
    return cells, scores


def target_iou(
    boxes: Float64,
    starts: Int64,
    first_frames: Int64,
    bounds: Int64,
    truth: Float64,
    truth_first_frame: int,
    half_open: bool = False,
    threads: int | None = None,
) -> Float32:
    """Compute the vIoU of every span of every tube with the video's true tube.

    Equivalent to `kernels.reference.target_iou`, which holds tubes as pairs of frames and boxes.

    Args:
        boxes: float64 [rows, 4], x1, y1, x2, y2 of all tubes, one tube after another.
        starts: int64 [K + 1]: tube t has rows starts[t] : starts[t + 1].
        first_frames: int64 [K]: frame number of each tube's first row.
        bounds: int64 [K, N + 1], rising: cell (i, j) of tube t stands for its rows bounds[t, i] : bounds[t, j + 1].
        truth: float64 [frames, 4], boxes of the true tube.
        truth_first_frame: frame number of the true tube's first row.
        half_open: Boxes end before x2 and y2; otherwise these pixels belong to the boxes.
        threads: See `num_threads`. The result does not depend on it.

    Returns:
        float32 [K, N, N], 0 where a span is empty: float64 sums, rounded once.

    Raises:
        TypeError: An argument is no array, or has another dtype.
        ValueError: A shape, layout or value differs from the above, or a box is not finite or ends before it begins.
    """
    _require_arrays(boxes=boxes, starts=starts, first_frames=first_frames, bounds=bounds, truth=truth)
    sides = bounds.shape[-1] - 1 if bounds.ndim else 0
    out = np.empty((*first_frames.shape[:1], max(sides, 0), max(sides, 0)), np.float32)
    _C.target_iou(
        boxes=boxes,
        starts=starts,
        first_frames=first_frames,
        bounds=bounds,
        truth=truth,
        truth_first_frame=truth_first_frame,
        half_open=half_open,
        out=out,
        threads=num_threads(threads),
    )
    return out


def top_moments_of_pairs(
    pairs: Sequence[tuple[Float32, Float32, Float32, Float32]],
    moments: Float32,
    *,
    fusion: str,
    power: float,
    iou_threshold: float,
    top_k: int,
    threads: int | None = None,
) -> tuple[Int32, Float32]:
    """Choose the best moments of several videos, each for its own sentences, in one call of the kernel.

    Where other threads want Python's interpreter, a call gets it back only after up to `sys.getswitchinterval()`; one
    call for all pairs waits once.

    Equivalent to:
        found = [top_moments(*pair, spans, ...) for pair, spans in zip(pairs, moments)]
        tuple(np.concatenate(arrays) for arrays in zip(*found))

    Args:
        pairs: per pair `top_moments`'s first four arguments; P and J are the same in all, S may differ.
        moments: Start and end of every proposal in each pair's video, float32 [B, P, 2], finite seconds.
        fusion: As for `top_moments`.
        power: As for `top_moments`.
        iou_threshold: As for `top_moments`.
        top_k: As for `top_moments`.
        threads: As for `top_moments`.

    Returns:
        int32 [all S, top_k] and float32 [all S, top_k], pair after pair, as from `top_moments`.

    Raises:
        TypeError: As `top_moments`.
        ValueError: As `top_moments`, or the pairs do not have the moments' P.
    """
    for vc, vi, tc, ti in pairs:
        _require_arrays(video_contrastive=vc, video_iou=vi, text_contrastive=tc, text_iou=ti)
    _require_arrays(moments=moments)
    shape = (sum(len(pair[2]) for pair in pairs), _require_top_k(top_k))
    cells, scores = np.empty(shape, np.int32), np.empty(shape, np.float32)
    _C.top_moments_of_pairs(
        pairs=pairs,
        moments=moments,
        fusion=fusion,
        power=power,
        iou_threshold=iou_threshold,
        top_k=top_k,
        cells=cells,
        scores=scores,
        threads=num_threads(threads),
    )
    return cells, scores


def _require_arrays(**arrays: object) -> None:
    for name, value in arrays.items():
        if not isinstance(value, np.ndarray):
            raise TypeError(f"{name}: expected a NumPy array, got {type(value).__name__}")


def _require_top_k(top_k: int) -> int:
    try:
        count = operator.index(top_k)
    except TypeError:
        raise TypeError(f"top_k: expected a whole number, got {top_k!r}") from None
    if count < 1:
        raise ValueError(f"top_k: expected at least 1, got {count}")
    return count
