"""Recall tables: of score maps at hand (`evaluate_maps`), or of an engine over a dataset (`evaluate`)."""

from __future__ import annotations

import contextlib
import logging
import math
import time
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmn_fast.errors import InputError, WriteError
from mmn_fast.evaluation.datasets import Sample, first_few
from mmn_fast.evaluation.metrics import Protocol, get_protocol, mean_iou, recall_at
from mmn_fast.evaluation.predictions import PredictionsFile
from mmn_fast.evaluation.ranking import rank_moments
from mmn_fast.geometry import proposal_cells, proposal_mask
from mmn_fast.postprocess import fuse_scores
from mmn_fast.presets import Preset, get_preset
from mmn_fast.types import FloatArray, Moment, Query, ScoreMaps, Video

IntArray = npt.NDArray[np.int32]

logger = logging.getLogger(__name__)


class ScoringEngine(typing.Protocol):
    """What `evaluate` needs of an engine."""

    @property
    def preset(self) -> Preset:
        """The preset whose conventions hold."""

    def score_maps(self, batch: Sequence[Query], /) -> Sequence[ScoreMaps]:
        """Score every proposal, one entry per query."""


class FeatureStore(typing.Protocol):
    """Clip features by video id."""

    def __contains__(self, video_id: str, /) -> bool:
        """Tell whether the store has the video."""

    def __getitem__(self, video_id: str, /) -> Any:
        """Read the video's features, float [n_src, D]."""


@dataclass(frozen=True)
class EvaluationReport:
    """Figures of one evaluation and what they are figures of.

    Attributes:
        protocol: the protocol, its NMS threshold filled in.
        preset: the preset's name.
        metrics: "R@n,IoU@m" for the preset's n and m, "Best_R<n>" (their mean over the m) and "mIoU" (of the best
            moment); each 0 to 1.
        num_videos: videos evaluated.
        num_sentences: sentences evaluated.
        num_skipped: videos passed over because they have no features.
        seconds: wall-clock time of the evaluation.
    """

    protocol: Protocol
    preset: str
    metrics: dict[str, float]
    num_videos: int
    num_sentences: int
    num_skipped: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Give all values as plain JSON types."""
        return {
            "protocol": self.protocol.name,
            "iou_test": self.protocol.test,
            "nms_iou": self.protocol.nms_iou,
            "preset": self.preset,
            "metrics": dict(self.metrics),
            "num_videos": self.num_videos,
            "num_sentences": self.num_sentences,
            "num_skipped": self.num_skipped,
            "seconds": self.seconds,
        }

    def table(self) -> str:
        """Print the figures in percent under their names, below two lines that say how they were taken."""
        skipped = f", {self.num_skipped} videos skipped" if self.num_skipped else ""
        header = (
            f"{self.preset}: {self.num_videos} videos, {self.num_sentences} sentences{skipped}\n"
            f"protocol {self.protocol.name}: IoU {self.protocol.test} m counts, NMS at IoU {self.protocol.nms_iou:g}"
        )
        columns = {name: f"{100 * value:.2f}" for name, value in self.metrics.items() if not name.startswith("Best_")}
        widths = [max(len(name), len(figure)) for name, figure in columns.items()]
        rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
        rows = [
            "|" + "|".join(f" {cell:^{width}} " for cell, width in zip(row, widths, strict=True)) + "|"
            for row in (list(columns), list(columns.values()))
        ]
        return "\n".join([header, rule, rows[0], rule, rows[1], rule])


class UnwrittenPredictions(WriteError):  # noqa: N818 - what it is about, as BackendUnavailable
    """The predictions of an evaluation could not be written.

    Attributes:
        report: the figures.
    """

    def __init__(self, message: str, report: EvaluationReport) -> None:
        super().__init__(message)
        self.report = report


@dataclass(frozen=True, eq=False)
class QueryResult:
    """What was found for one sentence, and how well it fits.

    Attributes:
        video_id: the video's name.
        query_id: the sentence's name, as in predictions.
        sentence: the sentence.
        duration_s: length of the video in seconds.
        moments: moments found, best first, after NMS.
        truth_s: ground-truth windows, float32 [G, 2] seconds.
        iou: IoU of the best moment as "mIoU" counts it: with the window it fits best, 0 where none was found.
    """

    video_id: str
    query_id: str | int
    sentence: str
    duration_s: float
    moments: tuple[Moment, ...]
    truth_s: FloatArray
    iou: float


def evaluate_maps(
    preset: str | Path | Preset,
    contrastive: Sequence[FloatArray],
    iou: Sequence[FloatArray],
    durations_s: Sequence[float],
    moments_s: Sequence[FloatArray | Sequence[FloatArray]],
    protocol: str | Protocol = "mmn",
) -> dict[str, float]:
    """Recall and mean IoU of score maps.

    Args:
        preset: gives the cells, the fusion, and the n and m of R@n,IoU@m.
        contrastive: per video float32 [S, P], the contrastive cosines of the valid cells in row-major order.
        iou: per video float32 [S, P], the iou scores of the same cells.
        durations_s: per video its length in seconds.
        moments_s: per video the ground truth, seconds: [S, 2], or S arrays [G, 2] where sentences have several windows
            (the best-fitting one counts).
        protocol: name in `PROTOCOLS`, or a protocol.

    Returns:
        The metrics, as in `EvaluationReport.metrics`.

    Raises:
        InputError: a shape is not as above (the video's index is named), or there is no sentence.
    """
    preset = get_preset(preset)
    rules = get_protocol(protocol).for_preset(preset.nms_iou)
    counts = {"contrastive": len(contrastive), "iou": len(iou), "durations_s": len(durations_s)}
    for name, count in counts.items():
        if count != len(moments_s):
            raise InputError(f"{name}: expected one entry per video, {len(moments_s)} as in moments_s, got {count}")
    cells = proposal_cells(proposal_mask(preset.num_clips, preset.pooling_counts))
    scorer = _Scorer(preset, rules)
    for video, duration_s in enumerate(durations_s):
        windows = _windows(moments_s[video], f"moments_s[{video}]")
        shape = (len(windows), len(cells))
        if not (math.isfinite(duration_s) and duration_s > 0):
            raise InputError(f"durations_s[{video}]: expected a finite number > 0, got {duration_s!r}")
        maps = [
            _packed(array[video], shape, f"{name}[{video}]", preset)
            for name, array in (("contrastive", contrastive), ("iou", iou))
        ]
        scorer.add(fuse_scores(maps[0], maps[1], preset), cells, duration_s, windows)
    return scorer.metrics()


def evaluate(
    engine: ScoringEngine,
    samples: Sequence[Sample],
    features: FeatureStore,
    *,
    protocol: str | Protocol = "mmn",
    predictions: str | Path | None = None,
    limit: int | None = None,
    skip_missing: bool = False,
    batch_size: int = 8,
    top_k: int = 10,
    progress: bool = False,
    on_result: Callable[[QueryResult], None] | None = None,
) -> EvaluationReport:
    """Ground every sentence of a dataset and compare with its ground truth.

    Memory holds one batch of videos at a time. All arguments, and that every video has features, are checked before the
    first batch.

    Args:
        engine: scores sentences on videos.
        samples: the dataset, see `read_annotations`.
        features: clip features by video id.
        protocol: name in `PROTOCOLS`, or a protocol.
        predictions: new file to write the moments to, one JSON line per sentence in QVHighlights' layout: `qid, query,
            vid, pred_relevant_windows` with up to `top_k` [start, end, score], best first, after NMS. It appears when
            all of them are written, or not at all; if the disk refuses it, the evaluation goes on without.
        limit: evaluate only so many videos, the first ones (that have features).
        skip_missing: pass over videos without features; the report counts them.
        batch_size: videos per call of the engine.
        top_k: moments per sentence in the predictions.
        progress: show a progress bar on stderr.
        on_result: called with every sentence's result, in the order of the samples; `list.append` collects them.

    Returns:
        The report.

    Raises:
        InputError: an argument cannot be used, `predictions` exists, or a video has no features (unless
            `skip_missing`).
        UnwrittenPredictions: everything was evaluated, but `predictions` could not be written; it has the report.
    """
    started = time.perf_counter()
    for name, number in (("limit", limit), ("batch_size", batch_size), ("top_k", top_k)):
        if number is not None and number < 1:
            raise InputError(f"{name}: expected a number >= 1, got {number!r}")
    preset = engine.preset
    rules = get_protocol(protocol).for_preset(preset.nms_iou)
    missing = [sample.video_id for sample in samples if sample.video_id not in features]
    if missing:
        few = f"{len(missing)} of {len(samples)} videos: {first_few(missing)}"
        if not skip_missing:
            raise InputError(f"features: no features for {few} (skip_missing passes over them)")
        logger.warning("skipping videos without features, %s", few)
    absent = set(missing)
    chosen = [sample for sample in samples if sample.video_id not in absent][:limit]
    if not chosen:
        raise InputError(f"samples: expected at least one video with features, got none of {len(samples)}")

    scorer = _Scorer(preset, rules, top_k)
    file = None if predictions is None else PredictionsFile(predictions)
    with file or contextlib.nullcontext(), _progress(progress, len(chosen)) as advance:
        for first in range(0, len(chosen), batch_size):
            batch = chosen[first : first + batch_size]
            queries = [
                Query(Video(features[sample.video_id], sample.duration_s, sample.video_id), list(sample.sentences))
                for sample in batch
            ]
            for sample, maps in zip(batch, engine.score_maps(queries), strict=True):
                moments = scorer.add(maps.fused, maps.cells, sample.duration_s, sample.moments_s)
                if file is not None:
                    file.write(sample, moments, top_k)
                if on_result is not None:
                    for result in _results(sample, moments, top_k, rules):
                        on_result(result)
            advance(len(batch))
    report = EvaluationReport(
        protocol=rules,
        preset=preset.name,
        metrics=scorer.metrics(),
        num_videos=len(chosen),
        num_sentences=sum(len(sample.sentences) for sample in chosen),
        num_skipped=len(missing),
        seconds=time.perf_counter() - started,
    )
    if file is not None and file.failure is not None:
        raise UnwrittenPredictions(str(file.failure), report)
    return report


class _Scorer:
    """Ranks moments and collects the IoUs that the metrics are made of: a few floats per sentence."""

    def __init__(self, preset: Preset, protocol: Protocol, top_k: int = 1) -> None:
        self._preset = preset
        self._protocol = protocol
        self._num_judged = max(preset.recall_at)
        self._top_k = max(self._num_judged, top_k)
        self._ious: list[npt.NDArray[Any]] = []

    def add(
        self, fused: FloatArray, cells: IntArray, duration_s: float, windows_s: Sequence[npt.NDArray[Any]]
    ) -> list[npt.NDArray[np.float32]]:
        """Judge one video; returns per sentence its ranked moments, float32 [up to top_k, 3]: start, end, score."""
        ranked = rank_moments(fused, cells, duration_s, self._preset.num_clips, self._protocol, self._top_k)
        for moments, windows in zip(ranked, windows_s, strict=True):
            ious = self._protocol.ious(moments[: self._num_judged, :2], windows)
            missing = self._num_judged - len(ious)
            self._ious.append(np.pad(ious, (0, missing), constant_values=np.nan))
        return ranked

    def metrics(self) -> dict[str, float]:
        """Compute the metrics of everything added, as in `EvaluationReport.metrics`."""
        counts, thresholds = self._preset.recall_at, self._preset.recall_ious
        if not self._ious:
            raise InputError("moments_s: expected at least one sentence, got none")
        ious = np.stack(self._ious)
        recall = recall_at(ious, counts, thresholds, self._protocol.strict)
        named = {
            f"R@{count},IoU@{threshold:.1f}": float(recall[n, m])
            for n, count in enumerate(counts)
            for m, threshold in enumerate(thresholds)
        }
        named |= {f"Best_R{count}": float(recall[n].mean()) for n, count in enumerate(counts)}
        return named | {"mIoU": mean_iou(ious)}


def _packed(array: Any, shape: tuple[int, int], where: str, preset: Preset) -> FloatArray:
    array = np.asarray(array)
    if array.shape != shape:
        expected = f"[S, P] = {list(shape)} (sentences of moments_s, valid cells of {preset.name!r})"
        raise InputError(f"{where}: expected float32 {expected}, got {array.dtype} {list(array.shape)}")
    return array.astype(np.float32, copy=False)


def _windows(moments: Any, where: str) -> list[npt.NDArray[np.float64]]:
    """Bring a video's ground truth to float64 [G, 2] per sentence."""
    windows = [np.asarray(moment, np.float64) for moment in moments]
    for sentence, window in enumerate(windows):
        if window.shape != (2,) and (window.ndim != 2 or window.shape[1] != 2 or len(window) == 0):
            raise InputError(f"{where}[{sentence}]: expected seconds [2] or [G, 2], got {list(window.shape)}")
    return [window.reshape(-1, 2) for window in windows]


def _results(
    sample: Sample, moments: list[npt.NDArray[np.float32]], top_k: int, protocol: Protocol
) -> Iterator[QueryResult]:
    for query_id, sentence, truth, ranked in zip(
        sample.query_ids, sample.sentences, sample.moments_s, moments, strict=True
    ):
        iou = float(np.nan_to_num(protocol.ious(ranked[:1, :2], truth))[0]) if len(ranked) else 0.0
        chosen = tuple(Moment(*row) for row in ranked[:top_k].tolist())
        windows = truth.astype(np.float32)
        yield QueryResult(sample.video_id, query_id, sentence, sample.duration_s, chosen, windows, iou)


@contextlib.contextmanager
def _progress(shown: bool, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar over `total` videos on stderr; yields the function that moves it on."""
    if not shown:
        yield lambda _count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("videos"), BarColumn(), MofNCompleteColumn(), TextColumn("ETA"), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("videos", total=total)
        yield lambda count: bar.advance(task, count)
