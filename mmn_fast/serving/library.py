"""The index that the service searches and changes, and the video files that are at hand for its videos."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmn_fast.embeddings import TextEmbeddings, VideoEmbeddings
from mmn_fast.engine import Engine
from mmn_fast.errors import InputError
from mmn_fast.index import Match, MomentIndex
from mmn_fast.index.search import Wanted
from mmn_fast.media import open_video
from mmn_fast.process.forks import Lock
from mmn_fast.serving.http.problems import Problem
from mmn_fast.types import Video
from mmn_fast.viz.images import encode_png

_REFRESH_S = 1.0  # how old the state of an index may be that another process changes
_THUMBNAIL_SIDE = 320
_CHANGES = 64  # changes after which the index is made compact: each one added a file or left a removed video


class Library:
    """An index, its engine, and video files. Its methods may be called from several threads.

    Args:
        index: opened with `engine`.
        engine: encodes what is added.
        files: id -> the video's file, for those that can be shown; they are only read.
    """

    def __init__(self, index: MomentIndex, engine: Engine, files: Mapping[str, Path] | None = None) -> None:
        self.index, self._engine, self._files = index, engine, dict(files or {})
        self._writing, self._changes = Lock(), 0
        self._refreshed = time.monotonic()
        self._thumbnail = lru_cache(256)(_thumbnail)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def num_bytes(self) -> int:
        """Size of the index's files."""
        return int(self.index.info()["bytes"])

    def fresh(self) -> MomentIndex:
        """The index, at most a second behind what other processes have committed."""
        if time.monotonic() - self._refreshed > _REFRESH_S:
            self._refreshed = time.monotonic()
            self.index.refresh()
        return self.index

    def embeddings(self, video_id: str) -> VideoEmbeddings:
        """The stored embeddings of a video.

        Raises:
            Problem: 404, there is none of this id.
        """
        self.check(video_id)
        return self.index.embeddings([video_id])

    def search(self, text: TextEmbeddings, wanted: Wanted, videos: Sequence[str] | None) -> list[list[Match]]:
        """The best moments of all videos, or of those with the given ids, as `MomentIndex.search` gives them."""
        return self.fresh().search(text, wanted.top_k, wanted.per_video, videos, wanted.min_score)

    def check(self, video_id: str) -> None:
        """Refuse an id that the index does not have, with 404."""
        if video_id not in self.fresh():
            raise Problem(404, f"video: there is no {video_id!r} in the index")

    def add(self, video: Video, replace: bool, window_s: float | None, overlap: float | None) -> None:
        """Add a video.

        Raises:
            Problem: 409, its id is there already.
            InputError: it cannot be added.
        """
        with self._changing():
            if video.video_id in self.fresh() and not replace:
                raise Problem(409, f"video_id: {video.video_id!r} is in the index; send replace=true to replace it")
            self.index.add([video], replace=replace, window_s=window_s, overlap=overlap)
            if replace:
                self._files.pop(video.video_id, None)

    def remove(self, video_id: str) -> None:
        """Remove a video.

        Raises:
            Problem: 404, there is none of this id.
        """
        with self._changing():
            self.check(video_id)
            self.index.remove([video_id])

    def describe(self, video_id: str) -> dict[str, Any]:
        """Id and length of a video, and whether its file can be shown.

        Raises:
            Problem: 404, there is none of this id.
        """
        self.check(video_id)
        return {
            "video_id": video_id,
            "duration_s": self.index.duration_s(video_id),
            "playable": video_id in self._files,
        }

    def page(self, offset: int, limit: int) -> dict[str, Any]:
        """A part of the list of videos, in the order in which they were added."""
        ids = self.fresh().video_ids
        videos = [self.describe(video_id) for video_id in ids[offset : offset + limit]]
        return {"total": len(ids), "offset": offset, "videos": videos}

    def file(self, video_id: str) -> Path:
        """The file of a video.

        Raises:
            Problem: 404, there is none.
        """
        self.check(video_id)
        path = self._files.get(video_id)
        if path is None or not path.is_file():
            raise Problem(404, f"video: the file of {video_id!r} is not at hand; --media names a folder of files")
        return path

    def thumbnail(self, video_id: str, at_s: float) -> bytes:
        """A frame of a video as PNG, at most 320 pixels wide or high.

        Raises:
            Problem: 404, there is no file or no such frame.
        """
        path = self.file(video_id)
        image = self._thumbnail(path, round(at_s, 1))
        if image is None:
            raise Problem(404, f"at_s: expected a time within the video {video_id!r}, got {at_s:g}")
        return image

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One change at a time; now and then the index becomes compact."""
        with self._writing:
            yield
            self._changes += 1
            if self._changes >= _CHANGES:
                self._changes = 0
                self.index.compact()


def _thumbnail(path: Path, at_s: float) -> bytes | None:
    try:
        with open_video(path, threads=1) as video:
            for _, frame in video.frames_at([at_s], max_side=_THUMBNAIL_SIDE):
                return encode_png(frame)
    except InputError as error:
        raise InputError(str(error).replace(str(path), "the video's file")) from None
    return None
