"""Runs an engine over a dataset, one batch of videos at a time. Evaluation and prediction share this loop."""

from __future__ import annotations

import contextlib
import logging
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmn_fast.arrays import Float32
from mmn_fast.errors import InputError
from mmn_fast.evaluation.datasets import Sample, first_few
from mmn_fast.evaluation.metrics import Protocol
from mmn_fast.evaluation.notes import Note, cut_sentences, refuse
from mmn_fast.evaluation.ranking import rank_moments
from mmn_fast.features.matching import refuse_other_features
from mmn_fast.presets import Preset
from mmn_fast.tokenizer import without_warnings_of_cuts
from mmn_fast.types import Moment, Query, ScoreMaps, Video
from mmn_fast.windows import Windows, checked_windows
from mmn_fast.windows.grounding import inside_a_bar

logger = logging.getLogger(__name__)


class ScoringEngine(typing.Protocol):
    """The parts of an engine that evaluation uses; the contract of its model's features, if it has one, is another."""

    @property
    def preset(self) -> Preset:
        """The model's preset."""

    def score_maps(self, batch: Sequence[Query], /) -> Sequence[ScoreMaps]:
        """Score every proposal, one entry per query."""


class WindowEngine(ScoringEngine, typing.Protocol):
    """An engine that cuts long videos into windows."""

    def ground(
        self, batch: Sequence[Query], /, top_k: int, *, window_s: float, overlap: float
    ) -> list[list[list[Moment]]]:
        """Find the moments of sentences."""


class FeatureStore(typing.Protocol):
    """Clip features by video id."""

    def __contains__(self, video_id: str, /) -> bool:
        """Tell whether the store has the video."""

    def __getitem__(self, video_id: str, /) -> Any:
        """Read the video's features, float [n_src, D]."""


def check_counts(**counts: int | None) -> None:
    """Refuse counts below 1; None means that no count was given."""
    for name, number in counts.items():
        if number is not None and number < 1:
            raise InputError(f"{name}: expected a number >= 1, got {number!r}")


def choose(
    engine: ScoringEngine,
    samples: Sequence[Sample],
    features: FeatureStore,
    limit: int | None,
    skip_missing: bool,
    strict: bool,
    any_features: bool = False,
) -> tuple[list[Sample], tuple[Note, ...]]:
    """Choose the first `limit` samples that have features; log what is skipped or cut before the work begins.

    Args:
        engine: tells which sentences it cuts.
        samples: the data set; the notes of an `Annotations` are not logged again.
        features: clip features by video id.
        limit: number of videos; None for all.
        skip_missing: pass over videos without features.
        strict: refuse to skip videos and to cut sentences.
        any_features: warn of features of another contract than the model's instead of refusing them.

    Returns:
        The samples, and all notes, those of `samples` first.

    Raises:
        InputError: the features have another contract than the model's, a video has no features (unless
            `skip_missing`), no video has any, or `strict` refuses something.
    """
    where = f"features: {getattr(features, 'path', 'the store')}"
    contracts = getattr(engine, "contract", None), getattr(features, "contract", None)
    refuse_other_features(*contracts, where, any_features)
    missing = [sample.video_id for sample in samples if sample.video_id not in features]
    if missing and not skip_missing:
        few = f"{len(missing)} of {len(samples)} videos: {first_few(missing)}"
        raise InputError(f"features: no features for {few} (skip_missing leaves them out)")
    skipped = _some("skipped", len(samples), "they have no features", missing)
    if strict:
        refuse(skipped)
    absent = set(missing)
    present = [sample for sample in samples if sample.video_id not in absent]
    chosen = present[:limit]
    if not chosen:
        raise InputError(f"samples: expected at least one video with features, got none of {len(samples)}")
    beyond = [sample.video_id for sample in present[len(chosen) :]]
    limited = _some("limited", len(present), f"limit {limit}", beyond)
    cut = cut_sentences(engine, [sentence for sample in chosen for sentence in sample.sentences])
    if strict:
        refuse(cut)
    for note in (*skipped, *limited):
        logger.warning("%s", note)
    for note in cut:
        warnings.warn(str(note), stacklevel=3)
    return chosen, (*notes_of(samples), *skipped, *limited, *cut)


def notes_of(samples: Sequence[object]) -> tuple[Note, ...]:
    """What reading the annotations left out or clamped; a plain list has no notes."""
    notes: tuple[Note, ...] = getattr(samples, "notes", ())
    return notes


def num_skipped(notes: Sequence[Note]) -> int:
    """Videos passed over because they have no features."""
    return sum(note.count for note in notes if (note.kind, note.what) == ("skipped", "videos"))


def _some(kind: str, total: int, why: str, names: list[str]) -> tuple[Note, ...]:
    return (Note(kind, "videos", len(names), total, why, first_few(names)),) if names else ()


@dataclass(frozen=True)
class Ranking:
    """How moments are ranked.

    Attributes:
        rules: the protocol, its NMS threshold filled in.
        top_k: moments per sentence.
        windows: how long videos are cut; None cuts none.
    """

    rules: Protocol
    top_k: int
    windows: Windows | None = None


def windows_for(preset: Preset, rules: Protocol, window_s: float | None, overlap: float | None) -> Windows | None:
    """Check the windows of an evaluation; None if videos are not cut.

    Raises:
        InputError: a value cannot be used, or the protocol does not rank by the model's own suppression, which merges
            windows.
    """
    windows = checked_windows(window_s, overlap, preset)
    if windows is not None and (rules.rules == "2dtan" or rules.nms_iou != preset.nms_iou):
        raise InputError(
            f"window_s: expected none with protocol {rules.name!r}: windows are merged by the preset's own suppression,"
            " as the protocols mmn and qvh rank moments"
        )
    return windows


def ranked_batches(
    engine: ScoringEngine,
    samples: Sequence[Sample],
    features: FeatureStore,
    batch_size: int,
    progress: bool,
    ranking: Ranking,
) -> Iterator[tuple[Sample, list[Float32]]]:
    """Ground every sample's sentences; memory holds one batch of videos. `choose` has logged cut sentences.

    Yields:
        Each sample, and per sentence its moments, best first: float32 [K, 3], start and end in seconds and score.
    """
    windows = ranking.windows
    with progress_bar(progress, len(samples)) as advance:
        for first in range(0, len(samples), batch_size):
            batch = samples[first : first + batch_size]
            queries = [
                Query(Video(features[sample.video_id], sample.duration_s, sample.video_id), list(sample.sentences))
                for sample in batch
            ]
            is_long = [windows is not None and sample.duration_s > windows.window_s for sample in batch]
            with without_warnings_of_cuts():
                whole = [query for query, long in zip(queries, is_long, strict=True) if not long]
                scored = iter(engine.score_maps(whole) if whole else [])
                for sample, query, long in zip(batch, queries, is_long, strict=True):
                    yield (
                        sample,
                        _in_windows(engine, query, ranking)
                        if long
                        else _whole(next(scored), sample, engine.preset, ranking),
                    )
            advance(len(batch))


def _whole(maps: ScoreMaps, sample: Sample, preset: Preset, ranking: Ranking) -> list[Float32]:
    return rank_moments(maps.fused, maps.cells, sample.duration_s, preset.num_clips, ranking.rules, ranking.top_k)


def _in_windows(engine: ScoringEngine, query: Query, ranking: Ranking) -> list[Float32]:
    windows = ranking.windows
    assert windows is not None
    cutting = typing.cast(WindowEngine, engine)
    with inside_a_bar():
        (found,) = cutting.ground([query], ranking.top_k, window_s=windows.window_s, overlap=windows.overlap)
    rows = [[(moment.start_s, moment.end_s, moment.score) for moment in moments] for moments in found]
    return [np.array(row, np.float32).reshape(-1, 3) for row in rows]


@contextlib.contextmanager
def progress_bar(shown: bool, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar over `total` videos on stderr; yield the function that advances it."""
    if not shown:
        yield lambda _count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("videos"), BarColumn(), MofNCompleteColumn(), TextColumn("ETA"), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("videos", total=total)
        yield lambda count: bar.advance(task, count)
