"""Writes tiny video files whose frames show their own number, for tests of `mmn_fast.media`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

WIDTH, HEIGHT = 64, 48
_BITS = 8
_BAR = WIDTH // _BITS


def numbered(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A picture [H, W, 3] of eight bars, one per bit of `number`; white is 1, the left bar is the lowest bit."""
    bits = np.array([number >> bit & 1 for bit in range(_BITS)], np.uint8)
    row = bits[np.arange(width) * _BITS // width]
    return np.broadcast_to((40 + 170 * row)[None, :, None], (height, width, 3)).astype(np.uint8)


def number_of(picture: np.ndarray) -> int:
    """The number that a picture shows."""
    bars = np.array_split(picture[..., 1].astype(float).mean(axis=0), _BITS)
    return sum(1 << bit for bit, bar in enumerate(bars) if np.median(bar) > 125)


def write_video(
    path: Path,
    pictures: Sequence[np.ndarray] | int = 20,
    *,
    codec: str = "libx264",
    stamps: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 10),
    rate: int = 10,
    pixel_format: str = "yuv420p",
    options: Mapping[str, str] | None = None,
    container: Mapping[str, str] | None = None,
    format_name: str | None = None,
    setup: Any = None,
) -> Path:
    """Write a video.

    Args:
        path: the new file.
        pictures: uint8 [H, W, 3] each, or a number of numbered pictures.
        codec: FFmpeg's name of the encoder.
        stamps: presentation time stamps in `time_base`; None counts from 0.
        time_base: seconds per tick.
        rate: frames per second that the header names.
        pixel_format: FFmpeg's name.
        options: options of the encoder.
        container: options of the container.
        format_name: FFmpeg's name of the container; None goes by the path.
        setup: called with PyAV's new stream, before the first picture.
    """
    if isinstance(pictures, int):
        pictures = [numbered(number) for number in range(pictures)]
    with av.open(str(path), "w", format=format_name, options=dict(container or {})) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixel_format
        stream.codec_context.time_base = time_base
        stream.codec_context.thread_count = 1
        stream.options = (
            {"preset": "ultrafast", **(options or {})} if codec.startswith("libx26") else dict(options or {})
        )
        if setup is not None:
            setup(stream)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = stamps[number] if stamps is not None else number
            frame.time_base = time_base
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path
