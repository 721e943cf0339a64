"""Runs an engine over a data set of tubes, one batch of videos at a time."""

from __future__ import annotations

import logging
import time
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmn_fast.errors import InputError
from mmn_fast.evaluation.datasets import first_few
from mmn_fast.evaluation.evaluate import framed_table
from mmn_fast.evaluation.loop import check_counts, notes_of, progress_bar
from mmn_fast.evaluation.notes import Note, by_kind, cut_sentences, refuse
from mmn_fast.evaluation.tubes.annotations import TubeSample
from mmn_fast.evaluation.tubes.figures import TubeFigures
from mmn_fast.evaluation.tubes.results import TubeAnswer
from mmn_fast.presets import Preset
from mmn_fast.tokenizer import without_warnings_of_cuts
from mmn_fast.tubes import Tube, TubeMoment, TubeQuery

logger = logging.getLogger(__name__)

Tubes = Mapping[str, Sequence[Tube]]


class TubeEngine(typing.Protocol):
    """The part of an engine that evaluation of tubes needs."""

    @property
    def preset(self) -> Preset:
        """The preset whose conventions hold."""

    def ground_tubes(self, batch: Sequence[TubeQuery], /) -> list[list[list[TubeMoment]]]:
        """Ground sentences in tubes: per query and sentence the answer."""


@dataclass(frozen=True)
class TubeReport:
    """Figures of one evaluation of tubes, with what was evaluated and how.

    Attributes:
        preset: name of the preset.
        protocol: name in `figures.PROTOCOLS`; None where nothing was compared.
        metrics: as `figures.TubeFigures.metrics`; empty where no truth is known.
        num_videos: videos with an answer; each has one sentence.
        seconds: wall-clock time.
        notes: what was left out or cut, and why.
    """

    preset: str
    protocol: str | None
    metrics: dict[str, float]
    num_videos: int
    seconds: float
    notes: tuple[Note, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Give all values as plain JSON types; the notes stand under their kinds."""
        facts = {name: getattr(self, name) for name in ("preset", "protocol", "metrics", "num_videos", "seconds")}
        return {**facts, **by_kind(self.notes)}

    def table(self) -> str:
        """Print the figures in percent under their names, below two lines that say how they were taken."""
        boxes = "x2 and y2 belong to a box" if self.protocol == "mmn" else "boxes end before x2 and y2"
        header = f"{self.preset}: {self.num_videos} videos, a sentence each\nprotocol {self.protocol}: {boxes}"
        return "\n".join([header, framed_table([[*self.metrics], [f"{100 * m:.2f}" for m in self.metrics.values()]])])


def evaluate_tubes(
    engine: TubeEngine,
    samples: Sequence[TubeSample],
    tubes: Tubes,
    *,
    protocol: str = "mmn",
    limit: int | None = None,
    strict: bool = False,
    batch_size: int = 8,
    progress: bool = False,
    on_answer: Callable[[TubeAnswer], None] | None = None,
) -> TubeReport:
    """Ground every sentence of a data set of tubes and compare the answers with the true tubes.

    Videos without tubes are left out of every mean, as in the official evaluation, and a note counts them.

    Args:
        engine: an engine whose preset is of tubes.
        samples: the data set, see `read_tube_annotations`; every sample has a truth.
        tubes: tubes by video id, see `features.tubes.open_tubes`.
        protocol: name in `figures.PROTOCOLS`.
        limit: only the first `limit` videos that have tubes.
        strict: refuse to leave out videos, and sentences that the text encoder would cut.
        batch_size: videos per call of the engine.
        progress: show a progress bar on stderr.
        on_answer: called with every answer, in the order of the samples; `list.append` collects them.

    Raises:
        InputError: an argument cannot be used, no video has tubes, a tube cannot be used (the message names the video
            and the tube), or `strict` refuses something.
    """
    started = time.perf_counter()
    check_counts(limit=limit, batch_size=batch_size)
    figures = TubeFigures(engine.preset.recall_ious, protocol)
    unknown = [sample.video_id for sample in samples if sample.truth is None]
    if unknown:
        raise InputError(
            f"samples: expected a true tube for every sentence, got none in {len(unknown)} of {len(samples)} videos:"
            f" {first_few(unknown)} (predict needs none)"
        )
    run = _Run(engine, samples, tubes, limit, strict)
    for sample, moment in run.answers(batch_size, progress):
        if sample.truth is None:
            continue  # refused above
        answer = (range(moment.start_frame, moment.end_frame + 1), moment.boxes)
        overlap = figures.add(answer, sample.truth, f"video {sample.video_id!r}")
        if on_answer is not None:
            on_answer(TubeAnswer(sample, moment, *overlap))
    seconds = time.perf_counter() - started
    return TubeReport(engine.preset.name, protocol, figures.metrics(), run.num_answers, seconds, run.notes)


def predict_tubes(
    engine: TubeEngine,
    samples: Sequence[TubeSample],
    tubes: Tubes,
    *,
    limit: int | None = None,
    strict: bool = False,
    batch_size: int = 8,
    progress: bool = False,
) -> tuple[list[TubeAnswer], TubeReport]:
    """Ground every sentence of a data set of tubes; the truth is not looked at.

    Args:
        engine: as for `evaluate_tubes`, and so are the others.
        samples: the sentences.
        tubes: tubes by video id.
        limit: only the first `limit` videos that have tubes.
        strict: refuse to leave out videos, and sentences that the text encoder would cut.
        batch_size: videos per call of the engine.
        progress: show a progress bar on stderr.

    Returns:
        The answers, for `results.write_results`, and a report without figures.

    Raises:
        InputError: as `evaluate_tubes`.
    """
    started = time.perf_counter()
    check_counts(limit=limit, batch_size=batch_size)
    run = _Run(engine, samples, tubes, limit, strict)
    answers = [TubeAnswer(*found) for found in run.answers(batch_size, progress)]
    seconds = time.perf_counter() - started
    return answers, TubeReport(engine.preset.name, None, {}, len(answers), seconds, run.notes)


class _Run:
    """A run over the samples whose videos have tubes.

    Attributes:
        notes: what was left out or cut; complete once all answers have come.
        num_answers: answers so far.
    """

    def __init__(
        self, engine: TubeEngine, samples: Sequence[TubeSample], tubes: Tubes, limit: int | None, strict: bool
    ) -> None:
        self._engine, self._tubes, self._strict, self._total = engine, tubes, strict, len(samples)
        absent = [sample.video_id for sample in samples if sample.video_id not in tubes]
        present = [sample for sample in samples if sample.video_id in tubes]
        if not present:
            few = f", such as {first_few(absent)}" if absent else ""
            raise InputError(f"features: expected tubes of an annotated video ({len(samples)}{few}), got none")
        self._chosen = present[:limit]
        beyond = [sample.video_id for sample in present[len(self._chosen) :]]
        cut = cut_sentences(engine, [sample.sentence for sample in self._chosen])
        if strict:
            refuse(cut)
        for note in cut:
            warnings.warn(str(note), stacklevel=4)
        self.notes, self.num_answers = (*notes_of(samples), *cut), 0
        self._note_absent(absent)
        if beyond:
            self._note(Note("limited", "videos", len(beyond), len(present), f"limit {limit}", first_few(beyond)))

    def answers(self, batch_size: int, progress: bool) -> Iterator[tuple[TubeSample, TubeMoment]]:
        """Yield every sample with its answer; memory holds the tubes of one batch of videos."""
        empty = []
        with progress_bar(progress, len(self._chosen)) as advance:
            for first in range(0, len(self._chosen), batch_size):
                batch = self._chosen[first : first + batch_size]
                queries = [
                    TubeQuery(self._tubes[sample.video_id], [sample.sentence], sample.video_id) for sample in batch
                ]
                with without_warnings_of_cuts():
                    found = self._engine.ground_tubes(queries)
                for sample, (moments,) in zip(batch, found, strict=True):
                    if moments:
                        self.num_answers += 1
                        yield sample, moments[0]
                    else:
                        empty.append(sample.video_id)
                advance(len(batch))
        self._note_absent(empty)

    def _note_absent(self, names: list[str]) -> None:
        if names:
            why = "they have no tubes, as in the official evaluation"
            note = Note("left_out", "videos", len(names), self._total, why, first_few(names))
            if self._strict:
                refuse([note])
            self._note(note)

    def _note(self, note: Note) -> None:
        logger.warning("%s", note)
        self.notes = (*self.notes, note)
