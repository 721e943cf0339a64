"""Training values of a preset: parameters of the losses and the official schedule."""

from __future__ import annotations

from dataclasses import dataclass

from mmn_fast.checks import Each, Integer, Number, Rule, check_fields, fail

_SIZE = Integer()
_IOU = Number(0, 1)
LOSS_RULES: dict[str, Rule] = {
    "tau_video": Number(0, above=True),
    "tau_sent": Number(0, above=True),
    "margin": Number(-2, 2),
    "negative_video_iou": _IOU,
    "sent_removal_iou": Number(0),
    "num_positive": _SIZE,
    "min_iou": _IOU,
    "max_iou": _IOU,
}
RECIPE_RULES: dict[str, Rule] = {
    "learning_rate": Number(0, above=True),
    "batch_size": _SIZE,
    "epochs": _SIZE,
    "milestones": Each(Integer(0), least=0),
    "freeze_text_epochs": Integer(0),
    "all_losses_epochs": Integer(0),
    "contrastive_weight": Number(0),
    "test_batch_size": _SIZE,
    "betas": Each(Number(0, 1, below=True), least=2, most=2),
    "weight_decay": Number(0),
    "max_gradient_norm": Number(0, above=True),
    "processes": _SIZE,
    "seed": Integer(0),
}


@dataclass(frozen=True)
class LossParams:
    """Parameters of the mutual matching loss (paper, section 3.3) and of the iou loss.

    Attributes:
        tau_video: temperature of the video-to-sentence term.
        tau_sent: temperature of the sentence-to-video term.
        margin: margin subtracted from the positive pair's cosine.
        negative_video_iou: cells of the same video below this IoU are negatives.
        sent_removal_iou: sentences of the same video at or above this IoU are no negatives.
        num_positive: positive proposals per sentence, the best by IoU.
        min_iou: IoU that the iou loss scales to 0.
        max_iou: IoU that the iou loss scales to 1.
    """

    tau_video: float = 0.1
    tau_sent: float = 0.1
    margin: float = 0.4
    negative_video_iou: float = 0.5
    sent_removal_iou: float = 0.5
    num_positive: int = 1
    min_iou: float = 0.5
    max_iou: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, LOSS_RULES, "loss")
        if self.min_iou >= self.max_iou:
            raise fail("loss: min_iou", f"a number below max_iou, {self.max_iou}", self.min_iou)


@dataclass(frozen=True)
class Recipe:
    """The official training schedule of a preset.

    Attributes:
        learning_rate: AdamW rate of everything but the text encoder; the text encoder takes a tenth of it.
        batch_size: videos per step, over all processes.
        epochs: number of epochs.
        milestones: epochs after which the rate is divided by ten.
        freeze_text_epochs: epochs in which DistilBERT is not updated.
        all_losses_epochs: epochs with full contrastive terms; later epochs multiply these terms by another 0.01.
        contrastive_weight: weight of the two contrastive terms relative to the iou loss.
        test_batch_size: videos per evaluation batch.
        betas: AdamW's decay rates of the gradient's mean and of its squares' mean.
        weight_decay: AdamW's weight decay.
        max_gradient_norm: the gradient's norm is clipped to this.
        processes: parts of a step's batch, each with its own negatives, BatchNorm statistics and means, whose gradients
            are averaged. The official code computes each part in a process of its own.
        seed: seed of the initial weights and of dropout. The order of an epoch's videos depends on the epoch alone.
    """

    learning_rate: float = 1e-4
    batch_size: int = 48
    epochs: int = 18
    milestones: tuple[int, ...] = (8, 13)
    freeze_text_epochs: int = 4
    all_losses_epochs: int = 7
    contrastive_weight: float = 0.05
    test_batch_size: int = 48
    betas: tuple[float, ...] = (0.9, 0.99)
    weight_decay: float = 1e-5
    max_gradient_norm: float = 5.0
    processes: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, RECIPE_RULES, "recipe")
