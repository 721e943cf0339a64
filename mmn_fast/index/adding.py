"""Videos on their way into an index: encoded in blocks, and converted one by one, so that memory holds few of them."""

from __future__ import annotations

import numbers
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import suppress

import numpy as np

from mmn_fast.checks import Number, Text
from mmn_fast.embeddings import VideoEmbeddings, check_embeddings
from mmn_fast.engine import Engine
from mmn_fast.errors import InputError, WriteError
from mmn_fast.index.manifest import Manifest
from mmn_fast.index.shards import Entry, norm_of, stored
from mmn_fast.index.writing import Writer
from mmn_fast.request import VIDEOS_AT_ONCE
from mmn_fast.types import Video
from mmn_fast.windows.cuts import Windows, checked_windows

_ID, _LENGTH, _START = Text(), Number(0, above=True), Number(0)
_NUMBERED = re.compile(r"^videos\[(\d+)\]")


def items_of(videos: object) -> Iterable[object]:
    """The argument `videos` of `MomentIndex.add` as an iterable of videos and embeddings, which is read lazily.

    Raises:
        InputError: it is neither embeddings nor an ordered iterable.
    """
    if isinstance(videos, VideoEmbeddings):
        return [videos]
    if isinstance(videos, (str, bytes, Mapping, Set, Video)) or not isinstance(videos, Iterable):
        raise InputError(f"videos: expected VideoEmbeddings or a list of Video, got {type(videos).__name__}")
    return videos


class Adding:
    """Adds videos to an index whose lock is held.

    Args:
        writer: changes the index.
        engine: encodes videos; None takes embeddings alone.
        replace: a video with a known id replaces the one that is there.
        window_s: as for `Engine.encode_video`.
        overlap: the same.

    Raises:
        InputError: the windows cannot be used.
    """

    def __init__(
        self, writer: Writer, engine: Engine | None, replace: bool, window_s: float | None, overlap: float | None
    ) -> None:
        self._writer, self._engine, self._replace = writer, engine, replace
        self._windows = checked_windows(window_s, overlap, writer.manifest.preset)

    def add(self, items: Iterable[object]) -> int:
        """Add videos and embeddings; what is encoded when something goes wrong is kept.

        Returns:
            How many videos were added.
        """
        count = 0
        try:
            for where, embeddings in self._encoded(items):
                check_entries(embeddings, self._writer.manifest, where)
                for entry in _entries(embeddings, self._writer.manifest.storage, where):
                    self._writer.add(entry)
                    count += 1
        except WriteError:
            raise
        except BaseException:  # Ctrl-C too
            with suppress(WriteError):
                self._writer.flush()
            raise
        self._writer.flush()
        return count

    def _encoded(self, items: Iterable[object]) -> Iterator[tuple[str, VideoEmbeddings]]:
        """Yield embeddings with their name in messages: those among the items, and those of blocks of videos."""
        block: list[Video] = []
        first, weight = 0, 0.0
        for number, item in enumerate(items):
            where = f"videos[{number}]"
            if isinstance(item, VideoEmbeddings):
                check_embeddings(item, VideoEmbeddings, where, self._writer.manifest.fingerprint)
                for video_id in item.video_ids:
                    self._announce(video_id, f"{where}.video_ids")
                if block:
                    yield "videos", self._encode(block, first)
                    block, weight = [], 0.0
                yield where, item
                continue
            if not isinstance(item, Video):
                raise InputError(f"{where}: expected mmn_fast.Video or VideoEmbeddings, got {type(item).__name__}")
            self._announce(item.video_id, f"{where}.video_id")
            first = first if block else number
            block.append(item)
            weight += _num_windows(item.duration_s, self._windows)
            if weight >= VIDEOS_AT_ONCE:
                yield "videos", self._encode(block, first)
                block, weight = [], 0.0
        if block:
            yield "videos", self._encode(block, first)

    def _announce(self, video_id: str, where: str) -> None:
        self._writer.announce(_ID(video_id, where), where, self._replace)

    def _encode(self, block: list[Video], first: int) -> VideoEmbeddings:
        """Encode a block of videos; `first` is the number of its first one in messages."""
        if self._engine is None:
            raise InputError("videos: expected VideoEmbeddings, because the index was opened without an engine")
        windows = {} if self._windows is None else vars(self._windows)
        try:
            return self._engine.encode_video(block, **windows)
        except InputError as error:
            found = _NUMBERED.match(str(error))
            if found is None:
                raise
            number = int(found[1])
            said = f"videos[{first + number}] ({block[number].video_id!r}){str(error)[found.end() :]}"
            raise InputError(said) from error


def _num_windows(duration_s: object, windows: Windows | None) -> float:
    """About how many windows a video has; its duration is not checked yet."""
    if windows is None or not isinstance(duration_s, numbers.Real):
        return 1.0
    return max(1.0, float(duration_s) / (windows.window_s * (1 - windows.overlap)))


def check_entries(embeddings: VideoEmbeddings, manifest: Manifest, where: str) -> None:
    """Refuse embeddings that an index cannot hold, before the first of them is stored.

    Args:
        embeddings: the videos; ids and fingerprint are checked.
        manifest: the index's.
        where: their name in messages.

    Raises:
        InputError: a shape, duration, window or value cannot be used.
    """
    spans = embeddings.spans
    shape = (sum(map(len, spans)), manifest.num_proposals, manifest.preset.joint_size)
    for name in ("contrastive", "iou"):
        array = getattr(embeddings, name)
        if array.shape != shape or array.dtype != np.float32:
            raise InputError(f"{where}: {name}: expected float32 {list(shape)}, got {array.dtype} {list(array.shape)}")
    row = 0
    for video_id, duration_s, windows in zip(embeddings.video_ids, embeddings.durations_s, spans, strict=True):
        said = f"{where}: video {video_id!r}"
        _LENGTH(duration_s, f"{said}: duration_s")
        if not windows:
            raise InputError(f"{said}: expected at least one window, got none")
        for start_s, length_s in windows:
            _START(start_s, f"{said}: start of a window")
            _LENGTH(length_s, f"{said}: length of a window")
        part = slice(row, row := row + len(windows))
        for name in ("contrastive", "iou"):
            if not np.isfinite(getattr(embeddings, name)[part]).all():
                raise InputError(f"{said}: {name} holds NaN or infinite values")


def _entries(embeddings: VideoEmbeddings, storage: str, where: str) -> Iterator[Entry]:
    """Yield the videos of checked embeddings as they are stored."""
    row = 0
    facts = zip(embeddings.video_ids, embeddings.durations_s, embeddings.spans, strict=True)
    for video_id, duration_s, spans in facts:
        part = slice(row, row := row + len(spans))
        rows = stored(embeddings.contrastive[part], embeddings.iou[part], storage, f"{where}: video {video_id!r}")
        windows = tuple((float(start), float(length)) for start, length in spans)
        yield Entry(video_id, float(duration_s), windows, rows, norm_of(rows))
