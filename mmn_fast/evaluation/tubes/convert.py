"""Converts the published files of HC-STVG's official solution, once, into the layout of `features.tubes`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmn_fast.errors import InputError
from mmn_fast.evaluation.datasets import first_few
from mmn_fast.evaluation.loop import progress_bar
from mmn_fast.evaluation.notes import Note, by_kind, refuse, say
from mmn_fast.evaluation.tubes.annotations import (
    INVERTED,
    TubeSample,
    read_tube_annotations,
    write_tube_annotations,
)
from mmn_fast.features.published_tubes import PublishedStream, PublishedVideo, published_files, read_video
from mmn_fast.features.tubes import TubesWriter
from mmn_fast.storage.files import new_directory
from mmn_fast.tubes import Tube

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConversionReport:
    """What was converted.

    Attributes:
        output: the directory.
        num_videos: videos with tubes.
        num_tubes: their tubes.
        num_sentences: entries of annotations.json; 0 where no sentence was known and there is no such file.
        notes: what was left out, and why.
    """

    output: str
    num_videos: int
    num_tubes: int
    num_sentences: int
    notes: tuple[Note, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Give all values as plain JSON types; the notes stand under their kinds."""
        names = ("output", "num_videos", "num_tubes", "num_sentences")
        return {**{name: getattr(self, name) for name in names}, **by_kind(self.notes)}


def convert_hc_stvg(
    tubes: str | Path,
    features: Sequence[str | Path],
    output: str | Path,
    annotations: str | Path | None = None,
    strict: bool = False,
    progress: bool = False,
) -> ConversionReport:
    """Convert published tubes and features, without running what the pickles hold.

    `output` gets `tubes.h5` (see `features.tubes`) and, where sentences are known, `annotations.json` in the official
    layout: those of `annotations`, or those that prepared files hold.

    Args:
        tubes: folder of `<video>_tubes.pkl`, or of prepared files `<video>.pkl`.
        features: one per stream, in the order of `Preset.feature_streams` (CSN, flow): a folder of `<video>.pkl` with
            averaged pre-clips, or a file with the rows of all tubes. All of one kind; none keeps boxes alone.
        output: directory to create; must not exist.
        annotations: official annotations or test queries; videos that they do not name are left out.
        strict: refuse to leave out videos.
        progress: show a progress bar on stderr.

    Raises:
        InputError: a file cannot be read without running code, is damaged, or does not fit the others; the message
            names the video and the tube.
        WriteError: the directory cannot be written.
    """
    if Path(output).exists():
        raise InputError(f"output: {output} already exists; expected the name of a new directory")
    files = published_files(Path(tubes), "tubes")
    streams = [PublishedStream(Path(path)) for path in features]
    if len({stream.is_prepared for stream in streams}) > 1:
        raise InputError("features: expected folders of prepared files, or files with rows, got both")
    samples: dict[str, TubeSample] | None = None
    if annotations is not None:
        samples = {sample.video_id: sample for sample in read_tube_annotations(annotations, truth=None, strict=strict)}
    wanted = list(files) if samples is None else [video_id for video_id in samples if video_id in files]
    if not wanted:
        raise InputError(f"tubes: expected tubes of at least one annotated video in {tubes}, got none")
    known: list[TubeSample] = []
    found = _Found()
    with new_directory(Path(output), "output") as folder:
        with TubesWriter(folder / "tubes.h5") as writer, progress_bar(progress, len(wanted)) as advance:
            for video_id in wanted:
                video = read_video(files[video_id], video_id)
                sample = _sample_of(video) if samples is None else samples[video_id]
                if found.add(video):
                    writer.write(video_id, _with_features(video, streams))
                    known += [] if sample is None else [sample]
                advance(1)
        notes = (*_notes_of_names(samples, files), *found.notes(samples is None))
        if strict:
            refuse(notes)
        if not found.num_tubes:
            raise InputError(f"tubes: expected a video with tubes in {tubes}, got {len(wanted)} videos without one")
        if known:
            write_tube_annotations(folder / "annotations.json", known)
    say(logger, tubes, notes)
    num_videos = len(wanted) - len(found.empty)
    return ConversionReport(str(output), num_videos, found.num_tubes, len(known), notes)


class _Found:
    """Counts what the files of tubes hold.

    Attributes:
        empty: videos without tubes.
        num_tubes: all tubes.
    """

    def __init__(self) -> None:
        self.empty: list[str] = []
        self.num_tubes, self._videos = 0, 0
        self._inverted: dict[str, int] = {}
        self._true_boxes = 0

    def add(self, video: PublishedVideo) -> bool:
        """Count a video; gives whether it has tubes."""
        self._videos += 1
        self.num_tubes += len(video.tubes)
        if not video.tubes:
            self.empty.append(video.video_id)
        if video.inverted:
            self._inverted[video.video_id] = video.inverted
        self._true_boxes += 0 if video.truth is None else len(video.truth[0])
        return bool(video.tubes)

    def notes(self, truth_is_theirs: bool) -> list[Note]:
        """What was left out or changed; true boxes count where they are not those of an annotation file."""
        notes = []
        if self.empty:
            why = "they have no tubes"
            notes.append(Note("left_out", "videos", len(self.empty), self._videos, why, first_few(self.empty)))
        if self._inverted and truth_is_theirs:
            count, first = sum(self._inverted.values()), first_few(list(self._inverted))
            notes.append(Note("clamped", "boxes", count, self._true_boxes, INVERTED, first))
        return notes


def _with_features(video: PublishedVideo, streams: Sequence[PublishedStream]) -> list[Tube]:
    """The video's tubes with the features of every stream."""
    if not streams:
        return video.tubes
    found = [stream.read(video.video_id, len(video.tubes)) for stream in streams]
    if not streams[0].is_prepared:
        return [replace(tube, features=list(own)) for tube, *own in zip(video.tubes, *found, strict=True)]
    lengths = {len(clips[0]) for clips in found}
    if len(lengths) > 1:
        raise InputError(f"video {video.video_id!r}: expected as many pre-clips in every stream, got {sorted(lengths)}")
    joined = (np.concatenate([clips.astype(np.float32) for clips in own], axis=1) for own in zip(*found, strict=True))
    return [replace(tube, pre_clips=clips) for tube, clips in zip(video.tubes, joined, strict=True)]


def _sample_of(video: PublishedVideo) -> TubeSample | None:
    """The sample that a prepared file holds."""
    if video.sentence is None:
        return None
    truth = None if video.truth is None else (video.truth[0], video.truth[1].astype(np.float64))
    return TubeSample(video.file_name, video.video_id, video.sentence, truth)


def _notes_of_names(samples: dict[str, TubeSample] | None, files: dict[str, Path]) -> list[Note]:
    """Videos that only the annotations name, or only the files."""
    notes = []
    if samples is not None:
        unnamed = [video_id for video_id in files if video_id not in samples]
        absent = [video_id for video_id in samples if video_id not in files]
        if unnamed:
            why = "the annotations do not name them"
            notes.append(Note("left_out", "videos", len(unnamed), len(files), why, first_few(unnamed)))
        if absent:
            why = "annotated, but they have no file of tubes"
            notes.append(Note("left_out", "videos", len(absent), len(samples), why, first_few(absent)))
    return notes
