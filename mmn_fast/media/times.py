"""Wanted times of frames, and the clock that places decoded frames in time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

LONGEST_S = 3600.0
"""A frame that stays longer is a damaged time stamp, not a slide."""
LONG_S = 600.0
"""A frame that stays longer may be one: if it also lasts beyond twice the duration that the header promises, it is."""
_BACK_S = 1.0
"""Stamps that fall back by less are stray frames; by more, the start of another recording in the same file."""


class Times(Protocol):
    """Ascending wanted times in seconds after the first frame."""

    def at(self, number: int) -> float | None:
        """The time of a number from 0 on; None after the last."""

    def after(self, time_s: float) -> float | None:
        """The first wanted time that is not before `time_s`; None after the last."""


@dataclass(frozen=True)
class Every:
    """The middles of the intervals of 1 / fps seconds: (k + 0.5) / fps."""

    fps: float

    def at(self, number: int) -> float:
        """The time of a number from 0 on."""
        return (number + 0.5) / self.fps

    def after(self, time_s: float) -> float:
        """The first wanted time that is not before `time_s`."""
        number = max(0, int(time_s * self.fps - 0.5) - 1)
        while self.at(number) < time_s:
            number += 1
        return self.at(number)


@dataclass(frozen=True)
class Listed:
    """Times of a list, ascending."""

    times: Sequence[float]

    def at(self, number: int) -> float | None:
        """The time of a number from 0 on; None after the last."""
        return self.times[number] if number < len(self.times) else None

    def after(self, time_s: float) -> float | None:
        """The first wanted time that is not before `time_s`; None after the last."""
        return self.at(bisect_left(self.times, time_s))


class Clock:
    """Places frames in time, in the order in which they are shown; the first frame's time is 0.

    Frames without a time stamp follow at the usual distance. A stamp that falls back by over a second, or leaps too far
    (`LONGEST_S`, `LONG_S`), starts a new count: the frame follows the one before it at the usual distance. A stamp that
    falls back by less belongs to no place in time; that frame is not shown.

    Attributes:
        jumps: number of new counts.
    """

    def __init__(self, numerator: int, denominator: int, usual_step_s: float, promised_s: float | None = None) -> None:
        """Start before the first frame.

        Args:
            numerator: seconds of a tick of the time stamps are `numerator / denominator`.
            denominator: likewise.
            usual_step_s: seconds from a frame to the next, where no stamp says it.
            promised_s: the duration that the header promises, if any.
        """
        self.jumps = 0
        self._num, self._den = numerator, denominator
        self._usual = max(1, round(usual_step_s * denominator / numerator))
        self._longest = int(LONGEST_S * denominator / numerator)
        self._long = int(LONG_S * denominator / numerator)
        self._promised = int(min(promised_s or 1e12, 1e12) * denominator / numerator)
        self._back = int(_BACK_S * denominator / numerator)
        self._origin: int | None = None  # the stamp of time 0, in the present count
        self._last: int | None = None  # ticks of the last frame after the first frame
        self._duration = 0

    def seconds(self, ticks: int) -> float:
        """Seconds of a number of ticks, correctly rounded."""
        return ticks * self._num / self._den

    def time_of(self, stamp: int) -> float:
        """The time of a stamp in the present count."""
        return self.seconds(stamp - (self._origin or 0))

    def place(self, stamp: int | None, duration: int | None, *, trusted: bool = False) -> float | None:
        """The time of the next frame in seconds after the first frame; None if the frame is not shown.

        Args:
            stamp: its presentation time stamp in ticks, if it has one.
            duration: ticks that it is shown, if known.
            trusted: frames between this one and the last were left out, and their stamps were checked: no jump.
        """
        if self._last is None:
            ticks = 0
        elif stamp is None or self._origin is None:
            ticks = self._last + self._step()
        else:
            ticks = stamp - self._origin
            if -self._back <= ticks - self._last <= 0:
                return None
            if not (trusted or self._is_step(ticks - self._last)):
                self.jumps += 1
                ticks = self._last + self._step()
        if stamp is not None:
            self._origin = stamp - ticks
        self._last, self._duration = ticks, duration or 0
        return self.seconds(ticks)

    def end(self) -> float:
        """Seconds from the first frame to the end of the last one."""
        return self.seconds((self._last or 0) + self._step())

    def _step(self) -> int:
        return self._duration if self._is_step(self._duration) else self._usual

    def _is_step(self, ticks: int) -> bool:
        """Whether the last frame may be shown for so long."""
        late = (self._last or 0) + ticks > 2 * self._promised
        return 0 < ticks <= (self._long if late else self._longest)
