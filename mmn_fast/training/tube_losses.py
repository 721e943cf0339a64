"""The contrastive losses of HC-STVG: mutual matching for videos that are sets of tubes and have one sentence each.

Symbols: V videos; K_b tubes of video b; G = sum of K_b tubes in a row; o_b the first tube of video b in that row; P
valid cells; J joint width; c(b, g, p) the cosine of video b's sentence with cell p of tube g; y(g, p) the target of
that cell: the vIoU of its rows with the true tube of tube g's video; m the margin; tau the temperatures.

The positive of video b is the first maximum of y over its tubes and cells: cell p* of the video's tube number t*, with
pos = c(b, o_b + t*, p*) - m. Both losses are means over the videos:

    video     - log( exp(pos / tau) / (exp(pos / tau) + sum over b' != b of exp(c(b', o_b + t*, p*) / tau)) )
    sentence  - log( exp(pos / tau) / (exp(pos / tau) + negatives + 1e-6) )

The official negatives are, with n(p) = [y < 0.5] and h(p) = [y >= max y - 1e-6] on the positive's own tube:

    sum over p of exp(((n + h) c(b, o_b + t*, p) - m h) / tau) + sum over g != t* and p of exp(c(b, g, p) / tau)

They have five peculiarities. `full` keeps them, because the published models were trained with them:

1. A cell of the positive's tube that is neither (n = h = 0) adds exp(0) = 1.
2. The positive is in the denominator twice: as pos, and as the cell p* of the first sum.
3. Where max y < 0.5, the cosine of the positive's second appearance counts twice, because n + h = 2.
4. The second sum leaves out tube number t* of the batch, which is tube o_b + t* only for the first video. For all other
   videos the positive's tube stays among the negatives, p* without its margin, and an unrelated tube is left out.
5. The video's other tubes are negatives as a whole, however well their cells match the truth.

`corrected` is the formula without these peculiarities. Its negatives are

    sum over all negative g, p of exp(c(b, g, p) / tau)

All cells of other videos' tubes are negative. A cell of the video's own tubes is negative if y < 0.5 and it does not
tie with the positive (y < max y - 1e-6). So the positive counts once, matching cells add nothing, and all of a video's
tubes follow one rule. A video with max y = 0 has no positive: `corrected` leaves it out of both means and keeps its
sentence and tubes as negatives of the others. Otherwise the video loss is the same in both.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmn_fast.recipes import LossParams
from mmn_fast.training.losses import SENTENCE_EPS, at_least_float32

__all__ = ["tube_contrastive_loss"]

_TIE = 1e-6  # a target this close below the largest counts as the largest


def tube_contrastive_loss(
    proposals: Tensor,
    sentences: Tensor,
    video_of: Tensor,
    target: Tensor,
    params: LossParams,
    corrected: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute both contrastive losses of a batch of videos, each with its tubes and one sentence.

    Memory holds a few arrays [V, G, P].

    Args:
        proposals: [G, P, J], contrastive embeddings of every tube's valid cells, not normalised.
        sentences: [V, J], contrastive embeddings, not normalised.
        video_of: int64 [G], ascending: the video of each tube; every video has at least one tube.
        target: [G, P], vIoU of every cell's rows with the true tube of its video, 0 to 1.
        params: temperatures, margin, `negative_video_iou`.
        corrected: use the corrected formula instead of the official one, see the module.

    Returns:
        loss_video and loss_sentence, scalars.
    """
    cells = F.normalize(at_least_float32(proposals), dim=-1)  # [G, P, J]
    unit = F.normalize(at_least_float32(sentences), dim=-1)  # [V, J]
    cosine = torch.einsum("vj,gpj->vgp", unit, cells)  # [V, G, P]
    videos = torch.arange(len(sentences), device=cosine.device)
    tube, cell, best = _positives(target, video_of, len(sentences))
    counts = torch.bincount(video_of, minlength=len(sentences))
    row = counts.cumsum(0) - counts + tube  # o_b + t*
    pos = cosine[videos, row, cell] - params.margin  # [V]

    pairs = cosine[:, row, cell].mT  # [b, b'], the positive of b with the sentence of b'
    pairs = torch.where(torch.eye(len(videos), dtype=torch.bool, device=pairs.device), pos[:, None], pairs)
    video = (pairs / params.tau_video).logsumexp(1) - pos / params.tau_video

    if corrected:
        negative = (target < params.negative_video_iou) & (target < (best - _TIE)[video_of, None])  # [G, P]
        own = videos[:, None] == video_of  # [V, G]
        left_out = own[..., None] & ~negative
        terms = [cosine.masked_fill(left_out, -torch.inf).flatten(1)]
    else:
        on_tube = target[row]  # [V, P]
        is_best = (on_tube >= best[:, None] - _TIE).to(cosine.dtype)
        times = (on_tube < params.negative_video_iou).to(cosine.dtype) + is_best
        left_out = tube[:, None] == torch.arange(cosine.shape[1], device=cosine.device)  # [V, G], peculiarity 4
        terms = [
            times * cosine[videos, row] - params.margin * is_best,
            cosine.masked_fill(left_out[..., None], -torch.inf).flatten(1),
        ]
    logits = torch.cat([pos[:, None], *terms], 1) / params.tau_sent
    eps = logits.new_full((len(logits), 1), SENTENCE_EPS).log()
    sentence = torch.cat([logits, eps], 1).logsumexp(1) - pos / params.tau_sent
    if not corrected:
        return video.mean(), sentence.mean()
    has_positive = (best > 0).to(video.dtype)
    share = has_positive / has_positive.sum().clamp(min=1)
    return (video * share).sum(), (sentence * share).sum()


def _positives(target: Tensor, video_of: Tensor, num_videos: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find the first maximum of the target over each video's tubes and cells.

    Returns:
        int64 [V] number of the tube within the video, int64 [V] cell, [V] the maximum.
    """
    counts = torch.bincount(video_of, minlength=num_videos)
    place = torch.arange(len(video_of), device=video_of.device) - (counts.cumsum(0) - counts)[video_of]
    padded = target.new_full((num_videos, int(counts.max()), target.shape[1]), -1)
    padded[video_of, place] = target
    index = padded.flatten(1).argmax(1)  # argmax gives the first of equal values; `max` does not promise that
    best = padded.flatten(1)[torch.arange(num_videos, device=index.device), index]
    return index // target.shape[1], index % target.shape[1], best
