"""The losses of MMN (paper, section 3.3): mutual matching over positive pairs and two kinds of negatives, and
binary cross-entropy on scaled IoU.

Mutual matching takes the similarity matrix of all sentences and all proposals of the batch, and two softmaxes over it:

    L_mm = - mean log p(i_s | v_i) - mean log p(i_v | s_i)

over positive pairs of a sentence s_i and a proposal v_i. `loss_video` is the first term: a proposal must find its
sentence among all sentences of the batch. `loss_sentence` is the second term: a sentence must find its proposal.

Symbols: B videos, S sentences of the whole batch, P valid proposals, J joint width, K positives per sentence.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmn_fast.errors import InputError
from mmn_fast.presets import LossParams

__all__ = [
    "LossParams",
    "contrastive_loss",
    "contrastive_loss_packed",
    "iou_logits_packed",
    "iou_loss",
    "iou_loss_packed",
    "pairwise_iou",
    "sentence_ious",
]

# This term is added to the sum of exponentials that normalises p(i_v | s_i), as in the official code.
SENTENCE_EPS = 1e-6


def contrastive_loss(
    map2d: Tensor,
    sentences: Sequence[Tensor],
    iou2d: Sequence[Tensor],
    moments: Sequence[Tensor],
    mask: Tensor,
    params: LossParams,
) -> tuple[Tensor, Tensor]:
    """Compute both terms of the cross-modal mutual matching loss.

    Args:
        map2d: [B, J, N, N], contrastive embeddings of the 2D map, not normalised.
        sentences: per video [S_b, J], contrastive sentence embeddings, not normalised.
        iou2d: per video [S_b, N, N], IoU of every cell with the sentence's moment, the best of several.
        moments: per video [S_b, 2], start and end of the sentences' moments, seconds; or [S_b, G, 2], see
            `sentence_ious`.
        mask: bool [N, N], valid cells.
        params: temperatures, margin, thresholds.

    Returns:
        loss_video and loss_sentence, scalars; the recipe weighs them.

    Raises:
        InputError: the numbers of videos or of a video's sentences differ between the arguments.
    """
    counts = [len(per_video) for per_video in sentences]
    for name, values in (("iou2d", iou2d), ("moments", moments)):
        if [len(per_video) for per_video in values] != counts:
            raise InputError(f"{name}: expected {counts} sentences per video, got {[len(v) for v in values]}")
    if len(counts) != len(map2d):
        raise InputError(f"sentences: expected one entry per video of map2d, {len(map2d)}, got {len(counts)}")
    video_of = torch.arange(len(counts), device=map2d.device).repeat_interleave(
        torch.tensor(counts, device=map2d.device)
    )
    return contrastive_loss_packed(
        map2d[:, :, mask].mT, torch.cat(list(sentences)), video_of, torch.cat(list(iou2d))[:, mask],
        torch.cat(list(moments)), params,
    )  # fmt: skip


def contrastive_loss_packed(
    proposals: Tensor,
    sentences: Tensor,
    video_of: Tensor,
    iou: Tensor,
    moments: Tensor,
    params: LossParams,
    *,
    positives_of: slice = slice(None),
    cross_video: bool = True,
) -> tuple[Tensor, Tensor]:
    """`contrastive_loss` on packed proposals, with the sentences of all videos in a row.

    Memory holds a few matrices [S, B P], whatever K is: the positives of a sentence share its negatives.

    Args:
        proposals: [B, P, J], contrastive embeddings, not normalised.
        sentences: [S, J], contrastive embeddings, not normalised.
        video_of: int64 [S], the video of each sentence.
        iou: [S, P], IoU of every proposal of its video with the sentence's moment.
        moments: [S, 2], start and end of the sentence's moment, seconds; or [S, G, 2], see `sentence_ious`.
        params: temperatures, margin, thresholds.
        positives_of: the sentences whose pairs enter the means; all sentences are negatives. A process that has
            gathered the other processes' batches passes the slice of its own sentences.
        cross_video: False takes negatives only from the pair's own video (the paper's ablation).

    Returns:
        loss_video and loss_sentence, scalars.
    """
    num_videos, num_proposals, _ = proposals.shape
    f_v = F.normalize(at_least_float32(proposals.flatten(0, 1)), dim=-1)  # [B P, J]
    f_s = F.normalize(at_least_float32(sentences), dim=-1)  # [S, J]
    cosine = f_s @ f_v.mT  # [S, B P], f(s)^T f(v) of all pairs

    # The positive proposals of a sentence: the K best by IoU, as columns of `cosine`.
    best = iou[positives_of].topk(params.num_positive, dim=-1).indices  # [S', K]
    columns = video_of[positives_of, None] * num_proposals + best
    own = torch.arange(len(sentences), device=cosine.device)[positives_of]  # [S']
    positive = cosine[own[:, None], columns] - params.margin  # [S', K], f(v_i)^T f(s_i) - m

    loss_video = _video_term(cosine, positive, columns, own, video_of, moments, params, cross_video)
    sentence_cosine = cosine[positives_of].unflatten(1, (num_videos, num_proposals))
    loss_sentence = _sentence_term(
        sentence_cosine, positive, video_of[positives_of], iou[positives_of], params, cross_video
    )
    return loss_video, loss_sentence


def _video_term(
    cosine: Tensor,
    positive: Tensor,
    columns: Tensor,
    own: Tensor,
    video_of: Tensor,
    moments: Tensor,
    params: LossParams,
    cross_video: bool,
) -> Tensor:
    """Compute - mean log p(i_s | v_i): the positive proposals against all sentences.

    Negative sentences of the same video whose moment overlaps too much are left out.
    """
    logits = cosine[:, columns].permute(1, 2, 0)  # [S', K, S], f(v_i)^T f(s_j)
    same_video = video_of[own, None] == video_of  # [S', S]
    left_out = same_video & ~(sentence_ious(moments[own], moments) < params.sent_removal_iou)
    if not cross_video:
        left_out = left_out | ~same_video
    is_pair = own[:, None] == torch.arange(len(video_of), device=own.device)  # [S', S]
    logits = torch.where(is_pair[:, None], positive[..., None], logits) / params.tau_video
    logits = logits.masked_fill((left_out & ~is_pair)[:, None], -torch.inf)
    return (logits.logsumexp(-1) - positive / params.tau_video).mean()


def _sentence_term(
    cosine: Tensor, positive: Tensor, video_of: Tensor, iou: Tensor, params: LossParams, cross_video: bool
) -> Tensor:
    """Compute - mean log p(i_v | s_i): the sentences against all proposals.

    Proposals of the same video that overlap the moment are no negatives: their cosine is set to 0. They stay in the
    sum as exp(0), because the official models were trained this way.

    Args:
        cosine: [S', B, P].
        positive: [S', K], margin subtracted.
        video_of: int64 [S'].
        iou: [S', P].
        params: temperature and threshold.
        cross_video: whether other videos' proposals are negatives.
    """
    own_video = video_of[:, None] == torch.arange(cosine.shape[1], device=cosine.device)  # [S', B]
    overlapping = ~(iou < params.negative_video_iou)  # [S', P]
    logits = cosine.masked_fill(own_video[..., None] & overlapping[:, None], 0) / params.tau_sent
    if not cross_video:
        logits = logits.masked_fill(~own_video[..., None], -torch.inf)
    negatives = logits.flatten(1).logsumexp(-1, keepdim=True)  # [S', 1], shared by the K positives
    pair = positive / params.tau_sent
    eps = torch.full_like(pair, SENTENCE_EPS).log()
    return (torch.logaddexp(torch.logaddexp(pair, negatives), eps) - pair).mean()


def sentence_ious(first: Tensor, second: Tensor) -> Tensor:
    """IoU of sentences with sentences: that of the best pair of their moments.

    Args:
        first: [X, 2], one moment per sentence, or [X, G, 2]; a sentence with fewer than G moments repeats one.
        second: [Y, 2], or [Y, G, 2].

    Returns:
        [X, Y], as `pairwise_iou`.
    """
    if first.dim() == 2:
        return pairwise_iou(first, second)
    best = None
    for moments in first.unbind(1):  # one at a time: memory holds [X, Y, G]
        ious = pairwise_iou(moments, second.flatten(0, 1)).unflatten(1, second.shape[:2]).amax(-1)
        best = ious if best is None else torch.maximum(best, ious)
    assert best is not None
    return best


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of spans with spans; the union is the sum of lengths minus the overlap.

    Args:
        first: [X, 2], start and end.
        second: [Y, 2], start and end.

    Returns:
        [X, Y]; NaN where both spans are empty.
    """
    overlap = (
        torch.minimum(first[:, None, 1], second[:, 1]) - torch.maximum(first[:, None, 0], second[:, 0])
    ).clamp(min=0)  # fmt: skip
    return overlap / ((first[:, 1] - first[:, 0])[:, None] + (second[:, 1] - second[:, 0]) - overlap)


def iou_loss(
    scores2d: Tensor | Sequence[Tensor],
    iou2d: Tensor | Sequence[Tensor],
    mask: Tensor,
    min_iou: float,
    max_iou: float,
) -> Tensor:
    """Binary cross-entropy between the iou scores and linearly scaled IoU, over valid cells.

    Args:
        scores2d: [S, N, N] or per video [S_b, N, N], 0 to 1.
        iou2d: IoU of every cell with the sentence's moment, as `scores2d`.
        mask: bool [N, N], valid cells.
        min_iou: IoU that counts as 0.
        max_iou: IoU that counts as 1.

    Returns:
        The mean, a scalar.
    """
    scores2d = scores2d if isinstance(scores2d, Tensor) else torch.cat(list(scores2d))
    iou2d = iou2d if isinstance(iou2d, Tensor) else torch.cat(list(iou2d))
    return F.binary_cross_entropy(scores2d[:, mask], _scaled(iou2d[:, mask], min_iou, max_iou))


def iou_loss_packed(logits: Tensor, iou: Tensor, min_iou: float, max_iou: float) -> Tensor:
    """`iou_loss` on packed proposals, from logits (scores before the sigmoid).

    Args:
        logits: [S, P], 10 cosine.
        iou: [S, P].
        min_iou: IoU that counts as 0.
        max_iou: IoU that counts as 1.
    """
    return F.binary_cross_entropy_with_logits(logits, _scaled(iou, min_iou, max_iou))


def _scaled(iou: Tensor, min_iou: float, max_iou: float) -> Tensor:
    return ((iou - min_iou) / (max_iou - min_iou)).clamp(0, 1)


def iou_logits_packed(proposals: Tensor, sentences: Tensor, video_of: Tensor) -> Tensor:
    """Compute the iou branch's logits of every sentence with the proposals of its own video.

    Args:
        proposals: [B, P, J], iou embeddings, not normalised.
        sentences: [S, J], iou embeddings, not normalised, the sentences of all videos in a row.
        video_of: int64 [S], ascending.

    Returns:
        [S, P], 10 cosine; the score is its sigmoid.
    """
    # Sentences are padded to S_max, the most of any video, for one batched product: [B, S_max, J] x [B, J, P].
    counts = torch.bincount(video_of, minlength=len(proposals))
    place = torch.arange(len(video_of), device=video_of.device) - (counts.cumsum(0) - counts)[video_of]
    unit = F.normalize(at_least_float32(sentences), dim=-1)
    padded = unit.new_zeros(len(proposals), int(counts.max()), unit.shape[1])
    padded[video_of, place] = unit
    cosine = padded @ F.normalize(at_least_float32(proposals), dim=-1).mT
    return 10 * cosine[video_of, place]


def at_least_float32(x: Tensor) -> Tensor:
    """Convert to at least float32: exponentials of cosines / 0.1 need more digits than 16-bit types have."""
    return x if x.dtype == torch.float64 else x.float()
