"""Running an engine over a dataset, a batch of videos at a time: what evaluating and predicting share."""

from __future__ import annotations

import contextlib
import logging
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mmn_fast.errors import InputError
from mmn_fast.evaluation.datasets import Sample, first_few
from mmn_fast.presets import Preset
from mmn_fast.types import Query, ScoreMaps, Video

logger = logging.getLogger(__name__)


class ScoringEngine(typing.Protocol):
    """What evaluating needs of an engine."""

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


def check_counts(**counts: int | None) -> None:
    """Refuse counts below 1; None is none given."""
    for name, number in counts.items():
        if number is not None and number < 1:
            raise InputError(f"{name}: expected a number >= 1, got {number!r}")


def with_features(
    samples: Sequence[Sample], features: FeatureStore, limit: int | None, skip_missing: bool
) -> tuple[list[Sample], int]:
    """The first `limit` samples that have features, and how many have none.

    Raises:
        InputError: a video has no features (unless `skip_missing`), or none has.
    """
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
    return chosen, len(missing)


def scored_batches(
    engine: ScoringEngine, samples: Sequence[Sample], features: FeatureStore, batch_size: int, progress: bool
) -> Iterator[tuple[Sample, ScoreMaps]]:
    """Every sample with its score maps; memory holds one batch of videos at a time."""
    with _progress(progress, len(samples)) as advance:
        for first in range(0, len(samples), batch_size):
            batch = samples[first : first + batch_size]
            queries = [
                Query(Video(features[sample.video_id], sample.duration_s, sample.video_id), list(sample.sentences))
                for sample in batch
            ]
            yield from zip(batch, engine.score_maps(queries), strict=True)
            advance(len(batch))


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
