"""One training step's objective: a batch in, three losses out. DistributedDataParallel wraps this module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmn_fast.model import MMN
from mmn_fast.training.data import Batch
from mmn_fast.training.losses import contrastive_loss_packed, iou_logits_packed, iou_loss_packed
from mmn_fast.training.sparse import encode_video

MomentLosses = Literal["full", "no-cross-video", "iou-only"]
TubeLosses = Literal["full", "corrected", "iou-only"]
Losses = Literal[MomentLosses, TubeLosses]
MOMENT_LOSSES: tuple[str, ...] = get_args(MomentLosses)
TUBE_LOSSES: tuple[str, ...] = get_args(TubeLosses)


class Objective(nn.Module):
    """The losses of a batch.

    Args:
        model: the model, trained in place.
        losses: "full"; "no-cross-video" takes negatives of mutual matching only from the pair's own video; "iou-only"
            leaves mutual matching out (its terms are 0).
        share_negatives: proposals and sentences of the other processes' batches are negatives too.
        share_statistics: BatchNorm's statistics are over all processes' batches.
    """

    def __init__(
        self,
        model: MMN,
        losses: MomentLosses = "full",
        share_negatives: bool = False,
        share_statistics: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self._losses = losses
        self._share_negatives = share_negatives
        self._group: Any = dist.group.WORLD if share_statistics else None

    def forward(self, batch: Batch, counts: Sequence[tuple[int, int]] = (), moves_statistics: bool = True) -> Tensor:
        """Compute the losses.

        Args:
            batch: the process's videos and sentences.
            counts: (videos, sentences) of each process, in order of rank; only with shared negatives.
            moves_statistics: whether this batch updates BatchNorm's running statistics.

        Returns:
            [3]: loss_video, loss_sentence and loss_iou; means over the batch's sentences.
        """
        params = self.model.preset.loss
        contrastive_v, iou_v = encode_video(self.model, batch.pre_clips, self._group, moves_statistics)
        contrastive_s, iou_s = self.model.text_encoder(batch.token_ids, batch.lengths)
        # The losses are computed in float32 even if autocast rounds the model's products.
        with torch.autocast(batch.iou.device.type, enabled=False):
            logits = iou_logits_packed(iou_v, iou_s, batch.video_of)
            loss_iou = iou_loss_packed(logits, batch.iou, params.min_iou, params.max_iou)
            if self._losses == "iou-only":
                # Zero times both branches gives every parameter a gradient in every process.
                zero = 0 * (contrastive_v.sum() + contrastive_s.sum())
                return torch.stack([zero, zero, loss_iou])
            cells, sentences = contrastive_v, contrastive_s
            video_of, iou, moments, own = batch.video_of, batch.iou, batch.moments, slice(None)
            if self._share_negatives:
                rank = dist.get_rank()
                videos, num_sentences = zip(*counts, strict=True)
                cells = torch.cat(_gather(contrastive_v, videos))
                sentences = torch.cat(_gather(contrastive_s, num_sentences))
                video_of = torch.cat(
                    [v + sum(videos[:r]) for r, v in enumerate(_gather(batch.video_of, num_sentences))]
                )
                iou = torch.cat(_gather(batch.iou, num_sentences))
                moments = torch.cat(_gather(batch.moments, num_sentences))
                start = sum(num_sentences[:rank])
                own = slice(start, start + num_sentences[rank])
            loss_video, loss_sentence = contrastive_loss_packed(
                cells,
                sentences,
                video_of,
                iou,
                moments,
                params,
                positives_of=own,
                cross_video=self._losses == "full",
            )
        return torch.stack([loss_video, loss_sentence, loss_iou])


def _gather(x: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """Gather every process's tensor, [lengths[r], ...] from rank r; gradients flow back to each process."""
    padded = torch.cat([x, x.new_zeros(max(lengths) - len(x), *x.shape[1:])])
    everyone: Tensor = _AllGather.apply(padded) if x.is_floating_point() else _all_gather(padded)
    return [part[:length] for part, length in zip(everyone, lengths, strict=True)]


def _all_gather(x: Tensor) -> Tensor:
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.stack(parts)


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _all_gather(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous()
        dist.all_reduce(total)
        return total[dist.get_rank()]
