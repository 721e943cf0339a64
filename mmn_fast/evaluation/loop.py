"""Runs an engine over a dataset, one batch of videos at a time. Evaluation and prediction share this loop."""

from __future__ import annotations

import contextlib
import logging
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mmn_fast.errors import InputError
from mmn_fast.evaluation.datasets import Sample, first_few
from mmn_fast.evaluation.notes import Note, cut_sentences, refuse
from mmn_fast.presets import Preset
from mmn_fast.tokenizer import without_warnings_of_cuts
from mmn_fast.types import Query, ScoreMaps, Video

logger = logging.getLogger(__name__)


class ScoringEngine(typing.Protocol):
    """The parts of an engine that evaluation uses."""

    @property
    def preset(self) -> Preset:
        """The model's preset."""

    def score_maps(self, batch: Sequence[Query], /) -> Sequence[ScoreMaps]:
        """Score every proposal, one entry per query."""


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
) -> tuple[list[Sample], tuple[Note, ...]]:
    """Choose the first `limit` samples that have features; log what is skipped or cut before the work begins.

    Args:
        engine: tells which sentences it cuts.
        samples: the data set; the notes of an `Annotations` are not logged again.
        features: clip features by video id.
        limit: number of videos; None for all.
        skip_missing: pass over videos without features.
        strict: refuse to skip videos and to cut sentences.

    Returns:
        The samples, and all notes, those of `samples` first.

    Raises:
        InputError: a video has no features (unless `skip_missing`), no video has any, or `strict` refuses something.
    """
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


def scored_batches(
    engine: ScoringEngine, samples: Sequence[Sample], features: FeatureStore, batch_size: int, progress: bool
) -> Iterator[tuple[Sample, ScoreMaps]]:
    """Yield every sample with its score maps; memory holds one batch of videos. `choose` has logged cut sentences."""
    with progress_bar(progress, len(samples)) as advance:
        for first in range(0, len(samples), batch_size):
            batch = samples[first : first + batch_size]
            queries = [
                Query(Video(features[sample.video_id], sample.duration_s, sample.video_id), list(sample.sentences))
                for sample in batch
            ]
            with without_warnings_of_cuts():
                scored = engine.score_maps(queries)
            yield from zip(batch, scored, strict=True)
            advance(len(batch))


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
