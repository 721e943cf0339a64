"""What `index add` takes: files of features, folders and files of videos, saved embeddings."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mmn_fast.cli.videos.extractors import chosen_extractor
from mmn_fast.errors import InputError, named_as
from mmn_fast.evaluation.datasets import duration_of, first_few, given_durations

if TYPE_CHECKING:
    from mmn_fast.embeddings import VideoEmbeddings
    from mmn_fast.engine import Engine
    from mmn_fast.features import FeatureStore
    from mmn_fast.features.extraction.videos import VideoFile
    from mmn_fast.types import Video

Wanted = Callable[[str], bool]


@dataclass(frozen=True)
class Reading:
    """How sources are read.

    Attributes:
        engine: its model takes the features.
        extractor: the value of `--extractor`.
        feature_key: the value of `--feature-key`; None takes the preset's.
        durations: the value of `--durations`.
        any_features: take features of another contract, with a warning.
    """

    engine: Engine
    extractor: str | None = None
    feature_key: str | None = None
    durations: Path | None = None
    any_features: bool = False


@dataclass
class Tally:
    """What became of the videos of all sources.

    Attributes:
        kept: videos that were in the index already.
        skipped: file -> why it is not in the index.
    """

    kept: int = 0
    skipped: dict[str, str] = field(default_factory=dict)


class Source(ABC):
    """A source of videos, opened and checked; reading is lazy."""

    @property
    @abstractmethod
    def ids(self) -> Sequence[str]:
        """Ids of its videos."""

    @abstractmethod
    def read(self, wanted: Wanted, tally: Tally) -> Iterator[Video | VideoEmbeddings]:
        """Yield the wanted videos; those that are not wanted are counted as kept."""

    def unread(self, wanted: Wanted, tally: Tally) -> Iterator[Video | VideoEmbeddings | VideoFile]:
        """As `read`, but video files are left to another process to read."""
        yield from self.read(wanted, tally)


def open_sources(names: Sequence[str], reading: Reading) -> list[Source]:
    """Open what `index add` is given, and check all that can be checked before any work.

    Raises:
        InputError: a source is nothing that an index takes, lacks lengths, or has a video of another source.
    """
    sources: list[Source] = []
    videos: list[str] = []
    for name in names:
        path = Path(name)
        if path.suffix.lower() in (".h5", ".hdf5") or _is_folder_of_features(path):
            sources.append(_Features(name, reading))
        elif path.suffix.lower() == ".safetensors" and path.is_file():
            sources.append(_Embeddings(name))
        else:
            videos.append(name)
    if videos:
        sources.append(_Videos(videos, reading))
    first: dict[str, None] = {}
    for source in sources:
        twice = [video_id for video_id in source.ids if video_id in first]
        if twice:
            raise InputError(f"sources: expected every video once, got {first_few(twice)} in two sources")
        first |= dict.fromkeys(source.ids)
    return sources


def _is_folder_of_features(path: Path) -> bool:
    from mmn_fast.features.messages import is_video

    return path.is_dir() and not any(is_video(entry) for entry in path.iterdir())


class _Features(Source):
    """Features of many videos, as `features.open_features` reads them."""

    def __init__(self, name: str, reading: Reading) -> None:
        from mmn_fast.features import open_features
        from mmn_fast.features.matching import refuse_other_features

        preset = reading.engine.preset
        key = preset.feature_key if reading.feature_key is None else reading.feature_key
        with named_as("path", "sources"):
            self._store: FeatureStore = open_features(name, key, preset.input_size)
        refuse_other_features(reading.engine.contract, self._store.contract, f"sources: {name}", reading.any_features)
        lengths, source = ({}, "") if reading.durations is None else given_durations(reading.durations)
        self._durations: dict[str, float] = {}
        missing = []
        for video_id in self._store.ids():
            if video_id in lengths:
                self._durations[video_id] = duration_of(lengths[video_id], f"durations: {source}: video {video_id!r}")
            elif (duration_s := self._store.duration_s(video_id)) is not None:
                self._durations[video_id] = duration_s
            else:
                missing.append(video_id)
        if missing:
            raise InputError(
                f"durations: {source or 'none given, and'} {'lacks' if source else f'{name} does not say'} the lengths"
                f" of {len(missing)} of the {len(self._store)} videos of {name}: {first_few(missing)}"
            )

    @property
    def ids(self) -> list[str]:
        return self._store.ids()

    def read(self, wanted: Wanted, tally: Tally) -> Iterator[Video]:
        from mmn_fast.types import Video

        with self._store:
            for video_id in self._store.ids():
                if wanted(video_id):
                    yield Video(self._store[video_id], self._durations[video_id], video_id)
                else:
                    tally.kept += 1


class _Embeddings(Source):
    """Embeddings that `VideoEmbeddings.save` wrote."""

    def __init__(self, name: str) -> None:
        from mmn_fast.embeddings import VideoEmbeddings

        try:
            self._embeddings = VideoEmbeddings.load(name)
        except InputError as error:
            raise InputError(f"sources: {error}") from None

    @property
    def ids(self) -> tuple[str, ...]:
        return self._embeddings.video_ids

    def read(self, wanted: Wanted, tally: Tally) -> Iterator[VideoEmbeddings]:
        chosen = [number for number, video_id in enumerate(self.ids) if wanted(video_id)]
        tally.kept += len(self.ids) - len(chosen)
        if chosen:
            yield self._embeddings if len(chosen) == len(self.ids) else self._embeddings[chosen]


class _Videos(Source):
    """Video files; one that cannot be read is named and skipped."""

    def __init__(self, names: Sequence[str], reading: Reading) -> None:
        from mmn_fast.features.extraction.videos import find_videos

        with named_as("videos", "sources"):
            self._files: list[VideoFile] = find_videos(names)
        self._any_features = reading.any_features
        self._extractor: Any = chosen_extractor(reading.engine, reading.extractor, reading.any_features)

    @property
    def ids(self) -> list[str]:
        return [file.video_id for file in self._files]

    def read(self, wanted: Wanted, tally: Tally) -> Iterator[Video]:
        from mmn_fast.types import Video

        for file in self.unread(wanted, tally):
            try:
                video = Video.open(file.path, self._extractor, video_id=file.video_id)
            except InputError as error:
                tally.skipped[str(file.path)] = str(error)
                typer.echo(f"mmn-fast: warning: skipped: {error}", err=True)
                continue
            yield dataclasses.replace(video, contract=None) if self._any_features else video

    def unread(self, wanted: Wanted, tally: Tally) -> Iterator[VideoFile]:
        for file in self._files:
            if wanted(file.video_id):
                yield file
            else:
                tally.kept += 1
