"""One training step's objective for tubes (HC-STVG), and the choice of a preset's objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmn_fast.model import MMN
from mmn_fast.training.losses import iou_logits_packed, iou_loss_packed
from mmn_fast.training.objective import Losses, MomentLosses, Objective, TubeLosses
from mmn_fast.training.sparse import encode_video
from mmn_fast.training.tube_data import TubeBatch
from mmn_fast.training.tube_losses import tube_contrastive_loss


class TubeObjective(nn.Module):
    """The losses of a batch of videos with their tubes; all tubes are one batch to the network and to BatchNorm.

    Args:
        model: the model, trained in place.
        losses: "full", the official losses; "corrected", what their formula should have been (`tube_losses` says what
            differs); "iou-only" leaves the contrastive losses out (they are 0).
        share_statistics: BatchNorm's statistics are over all processes' batches.
    """

    def __init__(self, model: MMN, losses: TubeLosses = "full", share_statistics: bool = False) -> None:
        super().__init__()
        self.model = model
        self._losses = losses
        self._group: Any = dist.group.WORLD if share_statistics else None

    def forward(
        self, batch: TubeBatch, counts: Sequence[tuple[int, int]] = (), moves_statistics: bool = True
    ) -> Tensor:
        """Compute the losses.

        Args:
            batch: the process's videos, tubes and sentences.
            counts: ignored; negatives are the batch's own.
            moves_statistics: whether this batch updates BatchNorm's running statistics.

        Returns:
            [3]: loss_video and loss_sentence, means over videos, and loss_iou, the mean over all tubes' cells.
        """
        params = self.model.preset.loss
        contrastive_v, iou_v = encode_video(self.model, batch.pre_clips, self._group, moves_statistics)
        contrastive_s, iou_s = self.model.text_encoder(batch.token_ids, batch.lengths)
        # Losses are computed in full precision, whatever the precision of the products.
        with torch.autocast(batch.target.device.type, enabled=False):
            # Every tube is scored with its own video's sentence.
            tubes = torch.arange(len(batch.video_of), device=batch.video_of.device)
            logits = iou_logits_packed(iou_v, iou_s[batch.video_of], tubes)
            loss_iou = iou_loss_packed(logits, batch.target, params.min_iou, params.max_iou)
            if self._losses == "iou-only":
                # Zero times both branches gives every parameter a gradient in every process.
                zero = 0 * (contrastive_v.sum() + contrastive_s.sum())
                return torch.stack([zero, zero, loss_iou])
            loss_video, loss_sentence = tube_contrastive_loss(
                contrastive_v,
                contrastive_s,
                batch.video_of,
                batch.target,
                params,
                corrected=self._losses == "corrected",
            )
        return torch.stack([loss_video, loss_sentence, loss_iou])


def make_objective(
    model: MMN, losses: Losses, share_negatives: bool = False, share_statistics: bool = False
) -> Objective | TubeObjective:
    """Make the objective of the model's preset.

    Args:
        model: the model, trained in place.
        losses: a name in `objective.TUBE_LOSSES` for a preset of tubes, in `objective.MOMENT_LOSSES` for others.
        share_negatives: see `Objective`; False for tubes.
        share_statistics: BatchNorm's statistics are over all processes' batches.
    """
    if model.preset.of_tubes:
        return TubeObjective(model, cast(TubeLosses, losses), share_statistics)
    return Objective(model, cast(MomentLosses, losses), share_negatives, share_statistics)
