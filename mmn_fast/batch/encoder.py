"""What encodes videos on a machine of the cluster: it loads the model once, then reads, extracts and encodes."""

from __future__ import annotations

import dataclasses
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from mmn_fast.embeddings import VideoEmbeddings
from mmn_fast.engine import Engine
from mmn_fast.errors import BackendUnavailable, InputError
from mmn_fast.features.extraction.videos import VideoFile
from mmn_fast.features.messages import first_line
from mmn_fast.types import Video

if TYPE_CHECKING:
    from mmn_fast.features.extractors.base import Extractor

Item = Video | VideoFile


@dataclass(frozen=True)
class Work:
    """What a process does with every video.

    Attributes:
        engine: a pickled `Engine`.
        extractor: makes the extractor of video files from the engine; called for the first file.
        any_features: take features of another contract than the model's.
        window_s: as for `Engine.encode_video`.
        overlap: the same.
        threads: CPU threads, for an engine that was loaded without a number of them.
    """

    engine: bytes
    extractor: Callable[[Engine], Extractor]
    any_features: bool = False
    window_s: float | None = None
    overlap: float | None = None
    threads: int = 1


@dataclass(frozen=True)
class Failed:
    """A video that cannot be encoded.

    Attributes:
        name: its file, or its id.
        reason: one sentence.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Encoded:
    """An encoded video.

    Attributes:
        embeddings: of this video alone.
        name: its file, or its id.
        lost: None, or what of its file was unreadable.
    """

    embeddings: VideoEmbeddings
    name: str
    lost: str | None = None


def name_of(item: Item) -> str:
    """What messages call a video: its file, or its id."""
    return str(item.path) if isinstance(item, VideoFile) else item.video_id


class Encoder:
    """Encodes videos."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._made: Extractor | None = None

    def prepare(self, reads_files: bool) -> str | None:
        """Load the model, and make the extractor if there are files to read.

        Returns:
            None, or one sentence that says why that is impossible here.
        """
        os.environ.setdefault("MMN_FAST_NUM_THREADS", str(self._work.threads))
        try:
            self._engine: Engine = pickle.loads(self._work.engine)
            if reads_files:
                self._extractor()
        except (InputError, BackendUnavailable) as error:
            return str(error)
        except Exception as error:  # of an extractor that is not ours
            return _reason(error, "extractor")
        return None

    def encode(self, items: list[Item]) -> list[Encoded | Failed]:
        """Encode videos; one that cannot be encoded does not hinder the others."""
        read: list[tuple[Video, str | None] | Failed] = [self._attempt(item) for item in items]
        good = [found for found in read if not isinstance(found, Failed)]
        try:
            made = iter(self._embed([video for video, _ in good]))
        except Exception:  # one of them is at fault: each alone says which
            made = iter([self._embed_alone(video) for video, _ in good])
        results: list[Encoded | Failed] = []
        for item, found in zip(items, read, strict=True):
            if isinstance(found, Failed):
                results.append(found)
                continue
            embeddings, name = next(made), name_of(item)
            if isinstance(embeddings, str):
                results.append(Failed(name, embeddings))
            else:
                results.append(Encoded(embeddings, name, found[1]))
        return results

    def _attempt(self, item: Item) -> tuple[Video, str | None] | Failed:
        if isinstance(item, Video):
            return item, None
        try:
            found = self._extractor().read(item.path)
        except Exception as error:  # a video must not end the run; the message names what happened
            return Failed(name_of(item), _reason(error, name_of(item)))
        contract = None if self._work.any_features else self._extractor().contract
        return Video(found.rows, found.duration_s, item.video_id, contract), found.lost

    def _extractor(self) -> Extractor:
        if self._made is None:
            self._made = self._work.extractor(self._engine)
        return self._made

    def _embed(self, videos: list[Video]) -> list[VideoEmbeddings | str]:
        if self._work.any_features:
            videos = [dataclasses.replace(video, contract=None) for video in videos]
        made = self._engine.encode_video(videos, window_s=self._work.window_s, overlap=self._work.overlap)
        return [made[[number]] for number in range(len(videos))]

    def _embed_alone(self, video: Video) -> VideoEmbeddings | str:
        try:
            return self._embed([video])[0]
        except Exception as error:
            name = f"video {video.video_id!r}"
            return _reason(error, name).replace("videos[0]", name)


def serve(connection: Connection) -> None:
    """Encode in a `process.child.Child`, until the other side closes the connection.

    Args:
        connection: its first message is a pickled `Work`, its second whether there are files to read. The answer is
            what `Encoder.prepare` says. Every further message is a pickled list of videos, and its answer the pickled
            list of results.
    """
    try:
        work: Work = pickle.loads(connection.recv_bytes())
    except (ImportError, AttributeError) as error:  # such as a module that only the caller's machine has
        connection.send(f"extractor: cannot be loaded: {type(error).__name__}: {first_line(error)}")
        return
    encoder = Encoder(work)
    connection.send(encoder.prepare(connection.recv()))
    while True:
        connection.send_bytes(pickle.dumps(encoder.encode(pickle.loads(connection.recv_bytes()))))


def _reason(error: Exception, name: str) -> str:
    """One sentence; those of this package name what they are about."""
    if isinstance(error, InputError):
        return str(error)
    why = "not enough memory" if isinstance(error, MemoryError) else f"{type(error).__name__}: {first_line(error)}"
    return f"{name}: {why}"
