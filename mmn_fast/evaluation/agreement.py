"""Agreement of a fast path with the reference: both ground the demo model's test split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmn_fast.arrays import Float32
from mmn_fast.engine import Engine
from mmn_fast.evaluation import evaluate_maps
from mmn_fast.types import Query, ScoreMaps


@dataclass(frozen=True, eq=False)
class LabelledSplit:
    """Videos with their sentences and true spans.

    Attributes:
        batch: one query per video.
        moments_s: per video the true spans in seconds, as `evaluation.evaluate_maps` takes them.
    """

    batch: list[Query]
    moments_s: list[Float32 | Sequence[Float32]]

    @property
    def num_sentences(self) -> int:
        """Sentences of all videos."""
        return sum(len(query.sentences) for query in self.batch)


@dataclass(frozen=True)
class Agreement:
    """One engine against another on the same sentences.

    Attributes:
        num_sentences: sentences compared.
        max_fused_difference: largest difference of a fused score.
        top1: share of sentences whose best proposal is the same.
        recall: R@n,IoU@m of the engine, 0 to 1.
        recall_difference: `recall` minus the reference's recall.
    """

    num_sentences: int
    max_fused_difference: float
    top1: float
    recall: dict[str, float]
    recall_difference: dict[str, float]


def recall(engine: Engine, split: LabelledSplit, maps: Sequence[ScoreMaps]) -> dict[str, float]:
    """R@n,IoU@m and mIoU of score maps on the split, 0 to 1."""
    durations_s = [query.video.duration_s for query in split.batch]
    contrastive, iou = [one.contrastive for one in maps], [one.iou for one in maps]
    return evaluate_maps(engine.preset, contrastive, iou, durations_s, split.moments_s)


def agreement(engine: Engine, reference: Engine, split: LabelledSplit) -> Agreement:
    """Compare an engine with the reference.

    Args:
        engine: a fast path with the demo model.
        reference: backend "torch" in fp64 with the same model, or any other engine to compare with.
        split: the videos and sentences to compare on.
    """
    return agreement_with(engine, reference.score_maps(split.batch), split)


def agreement_with(engine: Engine, theirs: Sequence[ScoreMaps], split: LabelledSplit) -> Agreement:
    """`agreement` from the reference's score maps of the split."""
    ours = engine.score_maps(split.batch)
    same = [a.fused.argmax(1) == b.fused.argmax(1) for a, b in zip(ours, theirs, strict=True)]
    figures, expected = recall(engine, split, ours), recall(engine, split, theirs)
    return Agreement(
        num_sentences=split.num_sentences,
        max_fused_difference=max(float(np.abs(a.fused - b.fused).max()) for a, b in zip(ours, theirs, strict=True)),
        top1=float(np.concatenate(same).mean()),
        recall=figures,
        recall_difference={name: value - expected[name] for name, value in figures.items()},
    )
