"""Writes an engine's predictions for a dataset without known truth, and scores a file of predictions."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmn_fast.arrays import Float64
from mmn_fast.errors import InputError
from mmn_fast.evaluation.datasets import Sample, first_few
from mmn_fast.evaluation.evaluate import EvaluationReport
from mmn_fast.evaluation.judge import Judge
from mmn_fast.evaluation.loop import (
    FeatureStore,
    Ranking,
    ScoringEngine,
    check_counts,
    choose,
    notes_of,
    num_skipped,
    ranked_batches,
    windows_for,
)
from mmn_fast.evaluation.metrics import Protocol, get_protocol
from mmn_fast.evaluation.notes import Note, by_kind, refuse, say
from mmn_fast.evaluation.predictions import PredictionsFile
from mmn_fast.storage.documents import parse_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictionReport:
    """Summary of a file of predictions that was written.

    Attributes:
        predictions: the file.
        num_videos: videos in the file.
        num_sentences: sentences in the file, one line each.
        num_skipped: videos passed over because they have no features.
        seconds: wall-clock time.
        notes: what was left out, cut, skipped or ignored, and why.
    """

    predictions: str
    num_videos: int
    num_sentences: int
    num_skipped: int
    seconds: float
    notes: tuple[Note, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Give all values as plain JSON types; the notes stand under their kinds."""
        facts = asdict(self)
        del facts["notes"]
        return facts | by_kind(self.notes)


def predict(
    engine: ScoringEngine,
    samples: Sequence[Sample],
    features: FeatureStore,
    output: str | Path,
    *,
    protocol: str | Protocol = "mmn",
    limit: int | None = None,
    skip_missing: bool = False,
    strict: bool = False,
    batch_size: int = 8,
    top_k: int = 10,
    progress: bool = False,
    window_s: float | None = None,
    overlap: float | None = None,
    any_features: bool = False,
) -> PredictionReport:
    """Ground every sentence of a dataset and write the moments; true windows are ignored.

    Args:
        engine: scores sentences on videos.
        samples: the dataset, see `read_annotations(..., truth=False)`.
        features: clip features by video id.
        output: new file, a JSON line per sentence in QVHighlights' layout: `qid, query, vid, pred_relevant_windows`
            with up to `top_k` [start, end, score], best first, after NMS. The file appears when all lines are written.
        protocol: how moments are ranked: name in `PROTOCOLS`, or a protocol.
        limit: only the first `limit` videos that have features.
        skip_missing: pass over videos without features; the report counts them.
        strict: refuse to pass over videos, and refuse sentences that the text encoder would cut.
        batch_size: videos per call of the engine.
        top_k: moments per sentence.
        progress: show a progress bar on stderr.
        window_s: ground longer videos in windows, as `Engine.ground`; the protocols mmn and qvh alone.
        overlap: as for `Engine.ground`.
        any_features: warn of features of another contract than the model's instead of refusing them.

    Returns:
        The summary.

    Raises:
        InputError: an argument cannot be used, `output` exists, a video has no features (unless `skip_missing`),
            or `strict` refuses something.
        WriteError: the file cannot be written.
    """
    started = time.perf_counter()
    check_counts(limit=limit, batch_size=batch_size, top_k=top_k)
    rules = get_protocol(protocol).for_preset(engine.preset.nms_iou)
    ranking = Ranking(rules, top_k, windows_for(engine.preset, rules, window_s, overlap))
    chosen, notes = choose(engine, samples, features, limit, skip_missing, strict, any_features)
    with PredictionsFile(output, "output") as file:
        for sample, moments in ranked_batches(engine, chosen, features, batch_size, progress, ranking):
            file.write(sample, moments, top_k)
            if file.failure is not None:
                break
    if file.failure is not None:
        raise file.failure
    return PredictionReport(
        predictions=str(output),
        num_videos=len(chosen),
        num_sentences=sum(len(sample.sentences) for sample in chosen),
        num_skipped=num_skipped(notes),
        seconds=time.perf_counter() - started,
        notes=notes,
    )


def read_predictions(path: str | Path) -> dict[str, Float64]:
    """Read a file of predictions in QVHighlights' layout, one JSON object per line.

    Args:
        path: the file. Each line has `qid` and `pred_relevant_windows`, a list of [start, end, score]; other keys are
            ignored.

    Returns:
        Per qid (as text) its moments in the file's order, float64 [K, 3].

    Raises:
        InputError: the file is missing, or a line cannot be used; the message names the line.
    """
    path = Path(path)
    found: dict[str, Float64] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where = f"predictions: {path}: line {number}"
                    name, moments = _prediction(line, where)
                    if name in found:
                        raise InputError(f"{where}: qid {name!r} is taken by an earlier line")
                    found[name] = moments
    except OSError as error:
        raise InputError(f"predictions: {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"predictions: {path}: expected UTF-8 text, got other bytes") from None
    if not found:
        raise InputError(f"predictions: {path}: expected a JSON line per sentence, got none")
    return found


def _prediction(line: str, where: str) -> tuple[str, Float64]:
    record = parse_json(line, where, one_line=True)
    if not isinstance(record, dict) or "qid" not in record or "pred_relevant_windows" not in record:
        raise InputError(f"{where}: expected an object with qid and pred_relevant_windows, got {line.strip()[:60]!r}")
    name, windows = record["qid"], record["pred_relevant_windows"]
    if isinstance(name, bool) or not isinstance(name, (int, str)):
        raise InputError(f"{where}: qid: expected an integer or a string, got {name!r}")
    if not isinstance(windows, list):
        raise InputError(f"{where}: pred_relevant_windows: expected a list, got {type(windows).__name__}")
    for window in windows:
        if not isinstance(window, list) or len(window) != 3 or not all(map(_is_finite, window)):
            raise InputError(f"{where}: expected [start, end, score] of finite numbers, got {str(window)[:60]}")
        if window[0] > window[1]:
            raise InputError(f"{where}: expected start <= end, got {window}")
    return str(name), np.array(windows, np.float64).reshape(-1, 3)


def _is_finite(number: object) -> bool:
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return False
    return abs(number) < 1e30 and math.isfinite(number)  # 1e30: the limit of durations too


def score_file(
    predictions: str | Path,
    samples: Sequence[Sample],
    *,
    protocol: str | Protocol = "mmn",
    recall_at: Sequence[int] = (1, 5),
    recall_ious: Sequence[float] = (0.3, 0.5, 0.7),
    skip_missing: bool = False,
    strict: bool = False,
) -> EvaluationReport:
    """Score a file of predictions, without a model and without features.

    Moments count in the file's order and no NMS is run. With the same protocol, n and m, a file that `evaluate` wrote
    gives the figures of `evaluate`. A sentence with an empty list counts as not found (Moment-DETR's evaluator stops
    there). Predictions of sentences that the annotations lack are left out, with a warning that counts them.

    Args:
        predictions: the file, see `read_predictions`.
        samples: the dataset with its truth, see `read_annotations`.
        protocol: name in `PROTOCOLS`, or a protocol; how moments are compared with the truth.
        recall_at: the n of R@n.
        recall_ious: the m of IoU@m.
        skip_missing: leave out sentences without predictions, with a warning that counts them.
        strict: refuse to leave out sentences or predictions.

    Returns:
        The report; its protocol has no NMS threshold.

    Raises:
        InputError: the file cannot be used, a sentence has no predictions (unless `skip_missing`), or `strict` refuses
            something.
    """
    started = time.perf_counter()
    rules = replace(get_protocol(protocol), nms_iou=None)
    found = read_predictions(predictions)
    num_predictions = len(found)
    judge = Judge(rules, recall_at, recall_ious)
    missing: list[str] = []
    videos, num_sentences = set(), 0
    for sample in samples:
        for query_id, windows in zip(sample.query_ids, sample.moments_s, strict=True):
            moments = found.pop(str(query_id), None)
            if moments is None:
                missing.append(str(query_id))
                continue
            if not len(windows):
                raise InputError(f"samples: sentence {query_id!r} has no true window")
            judge.add(moments, windows)
            videos.add(sample.video_id)
            num_sentences += 1
    total = num_sentences + len(missing)
    if missing and (not skip_missing or not num_sentences):
        hint = "" if skip_missing else " (skip_missing leaves them out)"
        raise InputError(
            f"predictions: {predictions} lacks {len(missing)} of {total} sentences: {first_few(missing)}{hint}"
        )
    notes = []
    if missing:
        notes.append(Note("skipped", "sentences", len(missing), total, "they have no predictions", first_few(missing)))
    if found:
        why, few = "the annotations lack their sentences", first_few(list(found))
        notes.append(Note("left_out", "predictions", len(found), num_predictions, why, few))
    if strict:
        refuse(notes)
    say(logger, predictions, tuple(notes))
    return EvaluationReport(
        protocol=rules,
        preset=Path(predictions).name,
        metrics=judge.metrics(),
        num_videos=len(videos),
        num_sentences=num_sentences,
        num_skipped=len({sample.video_id for sample in samples}) - len(videos),
        seconds=time.perf_counter() - started,
        notes=(*notes_of(samples), *notes),
    )
