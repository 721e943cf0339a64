"""Frames of a video file at wanted times."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import chain, pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

from mmn_fast.arrays import Uint8
from mmn_fast.checks import Integer, Number, Optional
from mmn_fast.errors import InputError
from mmn_fast.media.ahead import ahead
from mmn_fast.media.info import MediaInfo, describe
from mmn_fast.media.picture import Painter
from mmn_fast.media.plan import OddStampsError
from mmn_fast.media.sampling import Run, Sampler, first_frame, too_long
from mmn_fast.media.source import Source, reaches
from mmn_fast.media.times import Every, Listed, Times
from mmn_fast.process.cores import usable_cores
from mmn_fast.process.environment import requested_threads

_MOST_THREADS = 16  # FFmpeg's own limit for frames in parallel
_FRAMES_AHEAD = 3  # frames that are decoded while the caller works
_MAX_SIDE = Optional(Integer(1, 2**14))


def probe(path: str | os.PathLike[str]) -> MediaInfo:
    """Describe a video file by its header and its first frame.

    Raises:
        InputError: as `open_video`.
    """
    with open_video(path, threads=1) as reader:
        return reader.info


def open_video(path: str | os.PathLike[str], *, threads: int = 0, max_duration_s: float | None = None) -> VideoReader:
    """Open a video file.

    Args:
        path: a local file. Whatever other file or address its content names is not opened.
        threads: threads of the decoder; 0 means `MMN_FAST_NUM_THREADS`, else the cores that the process may use.
        max_duration_s: a longer video is refused, on opening if its header and its packets agree on it, else when the
            decoder comes to it.

    Returns:
        The reader; close it, or use it in a `with` statement.

    Raises:
        InputError: the file is not there, unreadable, no video (an image, a cover picture and a list of files are
            none), encrypted, longer than `max_duration_s`, or without any frame that can be decoded. The message names
            file and reason. PyAV may also be missing.
    """
    return VideoReader(path, threads=threads, max_duration_s=max_duration_s)


class VideoReader:
    """A video file. `frames` and `frames_at` may be called again and again; each starts at the beginning.

    Attributes:
        info: what the header and the first frame say.
        duration_s: seconds from the first frame's time to the end of the last frame, found by decoding; None until an
            iterator was exhausted.
        lost: what could not be read, and how much, in one sentence; None if nothing was lost, or until an iterator was
            exhausted.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 0, max_duration_s: float | None = None) -> None:
        """Open the file and decode its first frame: see `open_video`."""
        self._path = Path(path)
        self._threads = _decoder_threads(threads)
        self._max = Optional(Number(0, above=True))(max_duration_s, "max_duration_s")
        self.duration_s: float | None = None
        self.lost: str | None = None
        self._fresh: tuple[Source, Iterator[Any]] | None = None
        self.info = self._opened()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Iterators that are running keep it open until they end."""
        if self._fresh is not None:
            self._fresh[0].close()
            self._fresh = None

    def frames(self, fps: float, max_side: int | None = None) -> Iterator[tuple[float, Uint8]]:
        """Yield the frames at (k + 0.5) / fps seconds after the first frame's time, for k = 0, 1, ... until the end.

        Args:
            fps: wanted frames per second; more than the video has gives frames again.
            max_side: pictures are shrunk to this many pixels on the longer side; None keeps their size.

        Yields:
            The wanted time in seconds and the frame shown then: uint8 [H, W, 3], RGB, square pixels, upright. All
            frames have one size. The same array may come again, so a caller does not write into it.

        Raises:
            InputError: a bad argument, the video turns out to be longer than `max_duration_s`, or it cannot be decoded.
        """
        times = Every(Number(0, 1e4, above=True)(fps, "fps"))
        return self._iterate(times, _MAX_SIDE(max_side, "max_side"))

    def frames_at(self, times: Sequence[float], max_side: int | None = None) -> Iterator[tuple[float, Uint8]]:
        """Yield the frames at ascending times in seconds after the first frame's time; none for times after the end.

        Parts of the file that no time needs are read but not decoded, if that gives the same frames.

        Args:
            times: wanted times, each at least 0 and not before the one before it.
            max_side: as in `frames`.

        Yields:
            As `frames`.

        Raises:
            InputError: as `frames`.
        """
        checked = [Number(0)(time, f"times[{number}]") for number, time in enumerate(times)]
        for number, (before, after) in enumerate(pairwise(checked), 1):
            if after < before:
                raise InputError(f"times[{number}]: expected a time that is not before {before:g}, got {after:g}")
        return self._iterate(Listed(checked), _MAX_SIDE(max_side, "max_side"))

    def _opened(self) -> MediaInfo:
        source = Source(self._path, self._threads)
        try:
            frames = source.frames()
            first = first_frame(self._path, frames)
            info = describe(str(self._path), source.container, source.stream, first)
            self._check_length(info)
        except BaseException:
            source.close()
            raise
        self._fresh = source, chain((first,), frames)
        return info

    def _check_length(self, info: MediaInfo) -> None:
        if self._max is None or info.duration_s is None or info.duration_s <= self._max:
            return
        if reaches(self._path, self._max):
            raise too_long(self._path, self._max, f"one of {info.duration_s:.1f} s")

    def _iterate(self, times: Times, max_side: int | None) -> Iterator[tuple[float, Uint8]]:
        self.duration_s = self.lost = None
        run = Run(times)
        try:
            yield from self._pass(run, max_side, skipping=True)
        except OddStampsError:
            yield from self._pass(run, max_side, skipping=False)

    def _pass(self, run: Run, max_side: int | None, *, skipping: bool) -> Iterator[tuple[float, Uint8]]:
        """Decode the file once, from its start; yield the wanted frames that the run has not had yet."""
        if skipping and self._fresh is not None:
            (source, frames), self._fresh = self._fresh, None
        else:
            source = Source(self._path, self._threads, skipping=skipping)
            frames = source.frames()
        with closing(source):
            sampler = Sampler(self._path, run, source, frames, self._max)
            painter = Painter(self._path, source.stream, max_side)
            last = picture = None
            with closing(self._in_time(sampler.chosen())) as chosen:
                for time_s, frame in chosen:
                    if picture is None or frame is not last:
                        last, picture = frame, painter.paint(frame)
                    yield time_s, picture
            self.duration_s, self.lost = sampler.end_s, sampler.lost

    def _in_time(self, chosen: Generator[tuple[float, Any]]) -> Generator[tuple[float, Any]]:
        """Decode beside the painting and the caller's work, unless one thread is all there is."""
        return ahead(chosen, _FRAMES_AHEAD) if self._threads > 1 else chosen


def _decoder_threads(threads: int) -> int:
    asked = Integer(0, 4096)(threads, "threads")
    return min(_MOST_THREADS, requested_threads(asked or None) or usable_cores())
