"""The GPU engine's own ops from embeddings to moments, as PyTorch operators `mmn_fast::*`; see `video_ops`.

Symbols: B videos, P proposals, J joint width, S sentences, Q pairs of a video and a sentence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmn_fast.kernels import host
from mmn_fast.kernels.gpu.operator import DTYPES, ELEMENTS, FLOAT, INT, check, operator, where

__all__ = ["pair_scores", "pair_top_moments", "temporal_nms"]


def _pair_scores_like(
    video_contrastive: Tensor,
    video_iou: Tensor,
    text_contrastive: Tensor,
    text_iou: Tensor,
    pair_videos: Tensor,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (pair_videos.shape[0], video_contrastive.shape[1])
    return tuple(video_contrastive.new_empty(shape, dtype=torch.float32) for _ in range(3))  # type: ignore[return-value]


@operator(
    "(Tensor video_contrastive, Tensor video_iou, Tensor text_contrastive, Tensor text_iou, Tensor pair_videos,"
    " Tensor pair_sentences, float power, bool product) -> (Tensor, Tensor, Tensor)",
    _pair_scores_like,
)
def pair_scores(
    video_contrastive: Tensor,
    video_iou: Tensor,
    text_contrastive: Tensor,
    text_iou: Tensor,
    pair_videos: Tensor,
    pair_sentences: Tensor,
    power: float,
    product: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Match pairs of a video and a sentence over every proposal, and fuse (`reference.match_scores`, `fuse_scores`).

    Args:
        video_contrastive: dtype [B, P, J], unit norm.
        video_iou: dtype [B, P, J].
        text_contrastive: dtype [S, J].
        text_iou: dtype [S, J].
        pair_videos: int32 [Q], the video of each pair, or -1 for a pair that gets zeros.
        pair_sentences: int32 [Q].
        power: p of the power fusion.
        product: fuse by the plain product.

    Returns:
        contrastive, iou and fused scores, float32 [Q, P] each.

    Raises:
        TypeError: an argument is no tensor, or has another dtype.
        ValueError: a device, shape or layout differs.
    """
    check("video_contrastive", video_contrastive, ELEMENTS, (None, None, None))
    device, same = video_contrastive.device, (video_contrastive.dtype,)
    _, proposals, joint = video_contrastive.shape
    check("video_iou", video_iou, same, tuple(video_contrastive.shape), device)
    check("text_contrastive", text_contrastive, same, (None, joint), device)
    check("text_iou", text_iou, same, tuple(text_contrastive.shape), device)
    check("pair_videos", pair_videos, INT, (None,), device)
    check("pair_sentences", pair_sentences, INT, (len(pair_videos),), device)
    scores = _pair_scores_like(video_contrastive, video_iou, text_contrastive, text_iou, pair_videos)
    host.extension.gpu_pair_scores(
        video_contrastive=video_contrastive.data_ptr(),
        video_iou=video_iou.data_ptr(),
        text_contrastive=text_contrastive.data_ptr(),
        text_iou=text_iou.data_ptr(),
        pair_videos=pair_videos.data_ptr(),
        pair_sentences=pair_sentences.data_ptr(),
        fused=scores[2].data_ptr(),
        contrastive=scores[0].data_ptr(),
        iou=scores[1].data_ptr(),
        pairs=len(pair_videos),
        proposals=proposals,
        joint=joint,
        power=power,
        product=product,
        dtype=DTYPES[video_contrastive.dtype],
        **where(video_contrastive),
    )
    return scores


def _pair_top_moments_like(
    fused: Tensor, cells: Tensor, durations: Tensor, top_k: int, *_: Any
) -> tuple[Tensor, Tensor]:
    shape = (fused.shape[0], top_k)
    return fused.new_empty(shape, dtype=torch.int32), fused.new_empty(shape)


@operator(
    "(Tensor fused, Tensor cells, Tensor durations, int top_k, int clips, float iou_threshold) -> (Tensor, Tensor)",
    _pair_top_moments_like,
)
def pair_top_moments(
    fused: Tensor, cells: Tensor, durations: Tensor, top_k: int, clips: int, iou_threshold: float
) -> tuple[Tensor, Tensor]:
    """The best proposals of each pair after greedy non-maximum suppression (`reference.temporal_nms`).

    Args:
        fused: float32 [Q, P]; 0 and NaN are no candidates.
        cells: int32 [P, 2] as (i, j).
        durations: float32 [Q], seconds; moments are computed as in `geometry.cells_to_moments`, bit for bit.
        top_k: at least 1; may exceed P.
        clips: N.
        iou_threshold: IoU above which the worse of two moments is dropped, 0 to 1.

    Returns:
        chosen int32 [Q, top_k], best first, then -1; their fused scores float32 [Q, top_k], then 0.

    Raises:
        TypeError: an argument is no tensor, or has another dtype.
        ValueError: a device, shape, layout or value differs.
    """
    check("fused", fused, FLOAT, (None, None))
    pairs, proposals = fused.shape
    check("cells", cells, INT, (proposals, 2), fused.device)
    check("durations", durations, FLOAT, (pairs,), fused.device)
    _check_selection(top_k, iou_threshold)
    chosen, scores = _pair_top_moments_like(fused, cells, durations, top_k)
    keys = torch.empty_like(fused, dtype=torch.int32)
    host.extension.gpu_pair_top_moments(
        fused=fused.data_ptr(),
        cells=cells.data_ptr(),
        durations=durations.data_ptr(),
        keys=keys.data_ptr(),
        chosen=chosen.data_ptr(),
        chosen_scores=scores.data_ptr(),
        pairs=pairs,
        proposals=proposals,
        top_k=top_k,
        clips=clips,
        iou_threshold=iou_threshold,
        **where(fused),
    )
    return chosen, scores


def _temporal_nms_like(scores: Tensor, moments: Tensor, top_k: int, *_: Any) -> Tensor:
    return scores.new_empty((scores.shape[0], top_k), dtype=torch.int32)


@operator("(Tensor scores, Tensor moments, int top_k, float iou_threshold) -> Tensor", _temporal_nms_like)
def temporal_nms(scores: Tensor, moments: Tensor, top_k: int, iou_threshold: float) -> Tensor:
    """The best moments of each sentence after greedy non-maximum suppression (`reference.temporal_nms`).

    Args:
        scores: float32 [S, P]; 0 and NaN are no candidates.
        moments: float32 [P, 2], start and end in seconds; the caller guarantees finite values.
        top_k: at least 1; may exceed P.
        iou_threshold: IoU above which the worse of two moments is dropped, 0 to 1.

    Returns:
        int32 [S, top_k], best first, then -1.

    Raises:
        TypeError: an argument is no tensor, or has another dtype.
        ValueError: a device, shape, layout or value differs.
    """
    check("scores", scores, FLOAT, (None, None))
    sentences, proposals = scores.shape
    check("moments", moments, FLOAT, (proposals, 2), scores.device)
    _check_selection(top_k, iou_threshold)
    chosen = _temporal_nms_like(scores, moments, top_k)
    keys = torch.empty_like(scores, dtype=torch.int32)
    host.extension.gpu_temporal_nms(
        scores=scores.data_ptr(),
        moments=moments.data_ptr(),
        keys=keys.data_ptr(),
        out=chosen.data_ptr(),
        queries=sentences,
        cells=proposals,
        top_k=top_k,
        iou_threshold=iou_threshold,
        **where(scores),
    )
    return chosen


def _check_selection(top_k: int, iou_threshold: float) -> None:
    if top_k < 1:
        raise ValueError(f"top_k: expected at least 1, got {top_k}")
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold: expected 0 to 1, got {iou_threshold}")
