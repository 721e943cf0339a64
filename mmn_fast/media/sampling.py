"""Chooses, in one pass over a file, the frame that is shown at each wanted time."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mmn_fast.errors import InputError
from mmn_fast.media.info import promised_duration, usual_step
from mmn_fast.media.source import Source
from mmn_fast.media.times import Clock, Times


class Run:
    """State of one iteration that survives a second pass over the file.

    Attributes:
        times: the wanted times.
        number: how many of them were served.
    """

    def __init__(self, times: Times) -> None:
        self.times, self.number = times, 0


def too_long(path: Path, most_s: float, found: str) -> InputError:
    """The error that refuses a video of more than `most_s` seconds."""
    return InputError(f"{path}: expected a video of at most {most_s:g} s, got {found}")


class Sampler:
    """One pass over a file, from its start.

    Attributes:
        end_s: the end of the video in seconds after its first frame; None until the pass is over.
        lost: what could not be read, in one sentence; None until the pass is over, or if nothing was lost.
    """

    def __init__(self, path: Path, run: Run, source: Source, frames: Iterator[Any], most_s: float | None) -> None:
        """Start before the first frame.

        Args:
            path: the file's name for messages.
            run: wanted times that were served are left out.
            source: the open file.
            frames: its frames, from the first on.
            most_s: a longer video is refused.
        """
        self.end_s: float | None = None
        self.lost: str | None = None
        self._path, self._run, self._source, self._frames, self._most = path, run, source, frames, most_s
        tick = source.stream.time_base
        promised_s = promised_duration(source.container, source.stream)
        self._clock = Clock(tick.numerator, tick.denominator, usual_step(source.stream), promised_s)
        self._origin: int | None = None

    def chosen(self) -> Generator[tuple[float, Any]]:
        """Yield each wanted time and its frame (PyAV's `VideoFrame`); the same frame may come again.

        Raises:
            InputError: no frame can be decoded, or the video is longer than `most_s`.
            OddStampsError: as `Source.frames`.
        """
        shown = first_frame(self._path, self._frames)
        self._origin = shown.pts
        self._clock.place(shown.pts, shown.duration)
        self._source.begin(shown.pts, self._is_wanted)
        for frame in self._frames:
            time_s = self._clock.place(frame.pts, frame.duration, trusted=self._source.skipped)
            if time_s is None:
                continue
            yield from self._until(time_s, shown)
            shown = frame
        yield from self._until(self._clock.end(), shown)
        self._source.finish(self._clock.seconds(self._origin or 0), self._clock.end(), self._clock.jumps)
        self.end_s, self.lost = self._clock.end(), self._source.losses.sentence()

    def _until(self, time_s: float, shown: Any) -> Iterator[tuple[float, Any]]:
        """Yield the frame that is shown now for all wanted times before `time_s`."""
        if self._most is not None and time_s > self._most:
            raise too_long(self._path, self._most, "a longer one")
        while (wanted_s := self._run.times.at(self._run.number)) is not None and wanted_s < time_s:
            self._source.check(shown.pts, partial(self._is_by, wanted_s))
            self._run.number += 1
            yield wanted_s, shown

    def _is_by(self, wanted_s: float, stamp: int) -> bool:
        """Whether a time stamp is not later than a wanted time."""
        return self._clock.time_of(stamp) <= wanted_s

    def _is_wanted(self, start: int, end: int) -> bool:
        """Whether a wanted time falls on a frame that is shown from stamp `start` to stamp `end`."""
        origin = self._origin or 0
        wanted_s = self._run.times.after(self._clock.seconds(start - origin))
        return wanted_s is not None and wanted_s < self._clock.seconds(end - origin)


def first_frame(path: Path, frames: Iterator[Any]) -> Any:
    """The first of a file's frames.

    Raises:
        InputError: there is none.
    """
    first = next(frames, None)
    if first is None:
        raise InputError(f"{path}: expected a video, got one without any frame that can be decoded")
    return first
