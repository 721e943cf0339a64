"""Recall tables, from given score maps (`evaluate_maps`) or from an engine that runs over a dataset (`evaluate`)."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmn_fast.arrays import Float32, Float64
from mmn_fast.errors import InputError, WriteError
from mmn_fast.evaluation.datasets import Sample, first_few
from mmn_fast.evaluation.judge import Judge
from mmn_fast.evaluation.loop import (
    FeatureStore,
    Ranking,
    ScoringEngine,
    check_counts,
    choose,
    num_skipped,
    ranked_batches,
    windows_for,
)
from mmn_fast.evaluation.metrics import Protocol, get_protocol
from mmn_fast.evaluation.notes import Note, by_kind
from mmn_fast.evaluation.predictions import PredictionsFile
from mmn_fast.evaluation.qvhighlights import FIGURES, RANGES
from mmn_fast.evaluation.ranking import rank_moments
from mmn_fast.geometry import proposal_cells, proposal_mask
from mmn_fast.postprocess import fuse_scores
from mmn_fast.presets import Preset, get_preset
from mmn_fast.types import Moment
from mmn_fast.windows import Windows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationReport:
    """Figures of one evaluation, with its data and its protocol.

    Attributes:
        protocol: the protocol, its NMS threshold filled in; the threshold is None if a file of predictions was scored.
        preset: name of the preset or of the file of predictions.
        metrics: each 0 to 1: "R@n,IoU@m" for the preset's n and m, "Best_R<n>" (mean of R@n over the m) and "mIoU" (of
            the best moment); the rules "qvh" add Moment-DETR's "MR-<range>-<figure>" (`qvhighlights`).
        num_videos: videos evaluated.
        num_sentences: sentences evaluated.
        num_skipped: videos passed over because they have no features.
        seconds: wall-clock time of the evaluation.
        notes: what was left out, clamped, cut, skipped or ignored, and why.
        windows: how long videos were cut; None if none was.
    """

    protocol: Protocol
    preset: str
    metrics: dict[str, float]
    num_videos: int
    num_sentences: int
    num_skipped: int
    seconds: float
    notes: tuple[Note, ...] = ()
    windows: Windows | None = None

    def to_dict(self) -> dict[str, Any]:
        """Give all values as plain JSON types; the notes stand under their kinds."""
        return {
            "protocol": self.protocol.name,
            "iou_test": self.protocol.test,
            "nms_iou": self.protocol.nms_iou,
            "preset": self.preset,
            **({} if self.windows is None else vars(self.windows)),
            "metrics": dict(self.metrics),
            "num_videos": self.num_videos,
            "num_sentences": self.num_sentences,
            "num_skipped": self.num_skipped,
            "seconds": self.seconds,
            **by_kind(self.notes),
        }

    def table(self) -> str:
        """Print the figures in percent under their names, below two lines that say how they were taken."""
        skipped = f", {self.num_skipped} videos skipped" if self.num_skipped else ""
        nms = self.protocol.nms_iou
        ranked = "moments as the file ranks them" if nms is None else f"NMS at IoU {nms:g}"
        header = (
            f"{self.preset}: {self.num_videos} videos, {self.num_sentences} sentences{skipped}\n"
            f"protocol {self.protocol.name}: IoU {self.protocol.test} m counts, {ranked}"
        )
        if self.windows is not None:
            header += f"\nvideos above {self.windows.window_s:g} s in windows that overlap by {self.windows.overlap:g}"
        plain = [name for name in self.metrics if not name.startswith(("Best_", "MR-"))]
        tables = [framed_table([plain, [f"{100 * self.metrics[name]:.2f}" for name in plain]])]
        ranges = [name for name in RANGES if f"MR-{name}-mAP" in self.metrics]
        if ranges:
            rows = [[f"{100 * self.metrics[f'MR-{name}-{figure}']:.2f}" for figure in FIGURES] for name in ranges]
            rows = [[name, *row] for name, row in zip(ranges, rows, strict=True)]
            tables.append(framed_table([["moments", *FIGURES], *rows]))
        return "\n".join([header, *tables])


def framed_table(rows: list[list[str]]) -> str:
    """Draw rows in a frame; a line sets the first row apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    lines = [
        "|" + "|".join(f" {cell:^{width}} " for cell, width in zip(row, widths, strict=True)) + "|" for row in rows
    ]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])


class UnwrittenPredictions(WriteError):  # noqa: N818 - named for its subject, like BackendUnavailable
    """The predictions of an evaluation could not be written.

    Attributes:
        report: the figures.
    """

    def __init__(self, message: str, report: EvaluationReport) -> None:
        super().__init__(message)
        self.report = report

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.report)


@dataclass(frozen=True, eq=False)
class QueryResult:
    """Moments found for one sentence, and how well the best one fits.

    Attributes:
        video_id: the video's name.
        query_id: the sentence's name, as in predictions.
        sentence: the sentence.
        duration_s: length of the video in seconds.
        moments: moments found, best first, after NMS.
        truth_s: ground-truth windows, float32 [G, 2] seconds.
        iou: IoU of the best moment with the window that it fits best, as "mIoU" counts it; 0 if no moment was found.
    """

    video_id: str
    query_id: str | int
    sentence: str
    duration_s: float
    moments: tuple[Moment, ...]
    truth_s: Float32
    iou: float


def evaluate_maps(
    preset: str | Path | Preset,
    contrastive: Sequence[Float32],
    iou: Sequence[Float32],
    durations_s: Sequence[float],
    moments_s: Sequence[Float32 | Sequence[Float32]],
    protocol: str | Protocol = "mmn",
) -> dict[str, float]:
    """Recall and mean IoU of score maps.

    Args:
        preset: gives the cells, the fusion, and the n and m of R@n,IoU@m.
        contrastive: per video float32 [S, P], the contrastive cosines of the valid cells in row-major order.
        iou: per video float32 [S, P], the iou scores of the same cells.
        durations_s: per video its length in seconds.
        moments_s: per video the ground truth, seconds: [S, 2], or S arrays [G, 2] if sentences have several windows
            (the window that fits best counts).
        protocol: name in `PROTOCOLS`, or a protocol.

    Returns:
        The metrics, as in `EvaluationReport.metrics`.

    Raises:
        InputError: an array has another shape (the message names the video's index), or there is no sentence.
    """
    preset = get_preset(preset)
    rules = get_protocol(protocol).for_preset(preset.nms_iou)
    counts = {"contrastive": len(contrastive), "iou": len(iou), "durations_s": len(durations_s)}
    for name, count in counts.items():
        if count != len(moments_s):
            raise InputError(f"{name}: expected one entry per video, {len(moments_s)} as in moments_s, got {count}")
    cells = proposal_cells(proposal_mask(preset.num_clips, preset.pooling_counts))
    judge = Judge(rules, preset.recall_at, preset.recall_ious)
    for video, duration_s in enumerate(durations_s):
        windows = _windows(moments_s[video], f"moments_s[{video}]")
        shape = (len(windows), len(cells))
        if not (math.isfinite(duration_s) and duration_s > 0):
            raise InputError(f"durations_s[{video}]: expected a finite number > 0, got {duration_s!r}")
        maps = [
            _packed(array[video], shape, f"{name}[{video}]", preset)
            for name, array in (("contrastive", contrastive), ("iou", iou))
        ]
        fused = fuse_scores(maps[0], maps[1], preset)
        moments = rank_moments(fused, cells, duration_s, preset.num_clips, rules, judge.num_judged)
        for ranked, truth in zip(moments, windows, strict=True):
            judge.add(ranked, truth)
    return judge.metrics()


def evaluate(
    engine: ScoringEngine,
    samples: Sequence[Sample],
    features: FeatureStore,
    *,
    protocol: str | Protocol = "mmn",
    predictions: str | Path | None = None,
    limit: int | None = None,
    skip_missing: bool = False,
    strict: bool = False,
    batch_size: int = 8,
    top_k: int = 10,
    progress: bool = False,
    any_features: bool = False,
    on_result: Callable[[QueryResult], None] | None = None,
    window_s: float | None = None,
    overlap: float | None = None,
) -> EvaluationReport:
    """Ground every sentence of a dataset and compare with its ground truth.

    Memory holds one batch of videos at a time. Before the first batch, all arguments are checked, and whether every
    video has features.

    Args:
        engine: scores sentences on videos.
        samples: the dataset, see `read_annotations`.
        features: clip features by video id.
        protocol: name in `PROTOCOLS`, or a protocol.
        predictions: new file to write the moments to, one JSON line per sentence in QVHighlights' layout: `qid, query,
            vid, pred_relevant_windows` with up to `top_k` [start, end, score], best first, after NMS. The file appears
            when all lines are written, or not at all; if the disk refuses it, the evaluation goes on without it.
        limit: evaluate only the first `limit` videos that have features.
        skip_missing: pass over videos without features; the report counts them.
        strict: refuse to pass over videos, and refuse sentences that the text encoder would cut. `read_annotations`
            has its own `strict`.
        batch_size: videos per call of the engine.
        top_k: moments per sentence in the predictions.
        progress: show a progress bar on stderr.
        any_features: warn of features of another contract than the model's instead of refusing them.
        on_result: called with every sentence's result, in the order of the samples; `list.append` collects them.
        window_s: ground longer videos in windows, as `Engine.ground`; the protocols mmn and qvh alone.
        overlap: as for `Engine.ground`.

    Returns:
        The report.

    Raises:
        InputError: an argument cannot be used, `predictions` exists, a video has no features (unless `skip_missing`),
            or `strict` refuses something.
        UnwrittenPredictions: everything was evaluated, but `predictions` could not be written; the error has the
            report.
    """
    started = time.perf_counter()
    check_counts(limit=limit, batch_size=batch_size, top_k=top_k)
    preset = engine.preset
    rules = get_protocol(protocol).for_preset(preset.nms_iou)
    cut = windows_for(preset, rules, window_s, overlap)
    unknown = [sample.video_id for sample in samples if not all(map(len, sample.moments_s))]
    if unknown:
        raise InputError(
            f"samples: expected a true window for every sentence, got none in {len(unknown)} of {len(samples)} videos: "
            f"{first_few(unknown)} (predict needs none)"
        )
    chosen, notes = choose(engine, samples, features, limit, skip_missing, strict, any_features)

    judge = Judge(rules, preset.recall_at, preset.recall_ious)
    ranking = Ranking(rules, max(judge.num_judged, top_k), cut)
    file = None if predictions is None else PredictionsFile(predictions)
    with file or contextlib.nullcontext():
        for sample, moments in ranked_batches(engine, chosen, features, batch_size, progress, ranking):
            for ranked, windows in zip(moments, sample.moments_s, strict=True):
                judge.add(ranked, windows)
            if file is not None:
                file.write(sample, moments, top_k)
            if on_result is not None:
                for result in _results(sample, moments, top_k, rules):
                    on_result(result)
    report = EvaluationReport(
        protocol=rules,
        preset=preset.name,
        metrics=judge.metrics(),
        num_videos=len(chosen),
        num_sentences=sum(len(sample.sentences) for sample in chosen),
        num_skipped=num_skipped(notes),
        seconds=time.perf_counter() - started,
        notes=notes,
        windows=cut,
    )
    if file is not None and file.failure is not None:
        raise UnwrittenPredictions(str(file.failure), report)
    return report


def _packed(array: Any, shape: tuple[int, int], where: str, preset: Preset) -> Float32:
    array = np.asarray(array)
    if array.shape != shape:
        expected = f"[S, P] = {list(shape)} (sentences of moments_s, valid cells of {preset.name!r})"
        raise InputError(f"{where}: expected float32 {expected}, got {array.dtype} {list(array.shape)}")
    return array.astype(np.float32, copy=False)


def _windows(moments: Any, where: str) -> list[Float64]:
    """Convert a video's ground truth to float64 [G, 2] per sentence."""
    windows = [np.asarray(moment, np.float64) for moment in moments]
    for sentence, window in enumerate(windows):
        if window.shape != (2,) and (window.ndim != 2 or window.shape[1] != 2 or len(window) == 0):
            raise InputError(f"{where}[{sentence}]: expected seconds [2] or [G, 2], got {list(window.shape)}")
    return [window.reshape(-1, 2) for window in windows]


def _results(sample: Sample, moments: list[Float32], top_k: int, protocol: Protocol) -> Iterator[QueryResult]:
    for query_id, sentence, truth, ranked in zip(
        sample.query_ids, sample.sentences, sample.moments_s, moments, strict=True
    ):
        iou = float(np.nan_to_num(protocol.ious(ranked[:1, :2], truth))[0]) if len(ranked) else 0.0
        chosen = tuple(Moment(*row) for row in ranked[:top_k].tolist())
        windows = truth.astype(np.float32)
        yield QueryResult(sample.video_id, query_id, sentence, sample.duration_s, chosen, windows, iou)
