"""What a video file is: its size as displayed, rotation, frame rate, codec."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

_FRAME_RATES = (1e-3, 1e3)  # a rate outside is a header's mistake
_USUAL_RATE = 25.0
_ASPECTS = (Fraction(1, 5), Fraction(5))  # real anamorphic pixels are between 1/2 and 5/2


@dataclass(frozen=True)
class MediaInfo:
    """A video file, as its header and its first frame describe it.

    Attributes:
        path: the file.
        duration_s: seconds that the header promises; None if it promises nothing. It may be wrong: the end of the
            video is only known once it was decoded (`VideoReader.duration_s`).
        width: pixels of a frame as displayed: square pixels, after rotation.
        height: likewise.
        frame_rate: average frames per second; None if unknown.
        rotation: degrees clockwise (0, 90, 180 or 270) that a player turns the stored pictures by.
        codec: FFmpeg's name of the codec, such as "h264".
        pixel_format: FFmpeg's name of the stored pixels' format, such as "yuv420p10le".
    """

    path: str
    duration_s: float | None
    width: int
    height: int
    frame_rate: float | None
    rotation: int
    codec: str
    pixel_format: str


@dataclass(frozen=True)
class Turn:
    """How stored pictures are turned for display: optionally transposed, then columns and rows reversed.

    Attributes:
        transposed: rows become columns.
        left_right: columns are reversed, after the transposition.
        up_down: rows are reversed, after the transposition.
    """

    transposed: bool = False
    left_right: bool = False
    up_down: bool = False

    @classmethod
    def of(cls, frame: Any) -> Turn:
        """The turn of a frame's display matrix; none if it has no matrix."""
        try:
            found = next((data for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
        except ValueError:  # PyAV does not know a kind of data that lies beside the matrix; then without mirroring
            return _TURNS.get(round(-frame.rotation / 90) % 4, cls())
        values = np.frombuffer(bytes(found), np.int32) if found is not None else np.zeros(0, np.int32)
        if len(values) < 5 or not (values[0] or values[1]):
            return cls()
        a, b, _, c, d = (int(value) for value in values[:5])  # x' = a x + c y, y' = b x + d y
        if abs(a) >= abs(b):
            return cls(False, a < 0, d < 0)
        return cls(True, c < 0, b < 0)

    @property
    def degrees(self) -> int:
        """Clockwise rotation, without mirroring: 0, 90, 180 or 270."""
        if self.transposed:
            return 90 if self.left_right else 270
        return 180 if self.up_down else 0

    def apply(self, picture: np.ndarray) -> np.ndarray:
        """Turn a picture [H, W, 3]; returns a contiguous array."""
        if self.transposed:
            picture = picture.swapaxes(0, 1)
        if self.left_right:
            picture = picture[:, ::-1]
        if self.up_down:
            picture = picture[::-1]
        return np.ascontiguousarray(picture)


_TURNS = {1: Turn(True, True, False), 2: Turn(False, True, True), 3: Turn(True, False, True)}
"""Turns by quarters, clockwise."""


def pixel_aspect(stream: Any) -> Fraction:
    """Width of a stored pixel over its height; 1 if it is unknown or absurd."""
    aspect = stream.sample_aspect_ratio
    return Fraction(aspect) if aspect and _ASPECTS[0] <= aspect <= _ASPECTS[1] else Fraction(1)


def frame_rate(stream: Any) -> float | None:
    """Average frames per second of a stream; None if its header gives no sensible rate."""
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate and _FRAME_RATES[0] <= rate <= _FRAME_RATES[1]:
            return float(rate)
    return None


def usual_step(stream: Any) -> float:
    """Seconds from one frame to the next, where no time stamp says it."""
    return 1 / (frame_rate(stream) or _USUAL_RATE)


def promised_duration(container: Any, stream: Any) -> float | None:
    """Seconds that the header promises for the stream, else for the file; None if it promises nothing."""
    found = stream_duration(stream)
    if found is None and container.duration is not None:
        found = container.duration / 1e6  # FFmpeg's AV_TIME_BASE
    return found if found is not None and found > 0 else None


def stream_duration(stream: Any) -> float | None:
    """Seconds that the header promises for this stream alone; None if it promises nothing."""
    if stream.duration is not None and stream.time_base:
        return float(stream.duration * stream.time_base)
    tag = stream.metadata.get("DURATION", "")  # Matroska: 00:00:10.000000000
    parts = tag.split(":")
    try:
        hours, minutes, seconds = (float(part) for part in parts)
    except ValueError:
        return None
    return hours * 3600 + minutes * 60 + seconds


def describe(path: str, container: Any, stream: Any, frame: Any) -> MediaInfo:
    """Describe an open file by its header and its first frame."""
    turn = Turn.of(frame)
    width, height = displayed_size(frame.width, frame.height, pixel_aspect(stream))
    context = stream.codec_context
    return MediaInfo(
        path=path,
        duration_s=promised_duration(container, stream),
        width=height if turn.transposed else width,
        height=width if turn.transposed else height,
        frame_rate=frame_rate(stream),
        rotation=turn.degrees,
        codec=context.codec.canonical_name,
        pixel_format=frame.format.name,
    )


def displayed_size(width: int, height: int, aspect: Fraction) -> tuple[int, int]:
    """Size in square pixels of a stored picture whose pixels have a width/height of `aspect`; before rotation."""
    return max(1, round(width * aspect)), height
