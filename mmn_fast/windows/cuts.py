"""Where a long video is cut: windows of whole feature rows, all of one length, that overlap and cover the video.

Row r of n rows covers the seconds from r * duration / n to (r + 1) * duration / n.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from mmn_fast.checks import Number, shown
from mmn_fast.errors import InputError
from mmn_fast.features import check_duration, check_features
from mmn_fast.presets import Preset
from mmn_fast.types import Video

DEFAULT_OVERLAP = 0.5
_SECONDS, _OVERLAP = Number(0, above=True), Number(0, 1, below=True)


@dataclass(frozen=True)
class Windows:
    """How to cut videos.

    Attributes:
        window_s: length of a window in seconds, > 0; a video that is not longer stays whole.
        overlap: share of a window that the next one repeats, 0 <= overlap < 1.
    """

    window_s: float
    overlap: float = DEFAULT_OVERLAP


class Window(NamedTuple):
    """A window of a video.

    Attributes:
        first: its first feature row.
        last: one past its last row.
        start_s: where it starts in the video, seconds.
        duration_s: its length, seconds.
    """

    first: int
    last: int
    start_s: float
    duration_s: float


@dataclass(frozen=True, eq=False)
class Piece:
    """A window as a video of its own.

    Attributes:
        start_s: where it starts in the whole video, seconds.
        video: its rows; shares the memory of the whole video's features.
    """

    start_s: float
    video: Video


def checked_windows(window_s: object, overlap: object, preset: Preset) -> Windows | None:
    """Check the arguments `window_s` and `overlap`; None if videos are not cut.

    Args:
        window_s: seconds, or None.
        overlap: share of a window, or None for `DEFAULT_OVERLAP`.
        preset: the model's.

    Raises:
        InputError: a value is out of range, there is an overlap without a window, or the model is of tubes.
    """
    if window_s is None:
        if overlap is not None:
            raise InputError(f"overlap: expected none without window_s, got {overlap!r}")
        return None
    if preset.of_tubes:
        raise InputError(
            f"window_s: expected none with preset {preset.name!r}, which is of tubes: a tube is grounded as a whole"
        )
    share = DEFAULT_OVERLAP if overlap is None else _OVERLAP(overlap, "overlap")
    return Windows(_SECONDS(window_s, "window_s"), share)


def cut(num_rows: int, duration_s: float, windows: Windows, name: str) -> list[Window]:
    """Cut a video at boundaries of rows.

    All windows have the same number of rows, the one nearest to `window_s`. A window starts `1 - overlap` of its length
    after the one before, rounded to whole rows, at least one; the last window is moved back so that it ends with the
    video, and so overlaps more.

    Args:
        num_rows: n, rows of the video's features.
        duration_s: length of the video in seconds.
        windows: length and overlap.
        name: the video's name in messages.

    Returns:
        The windows in temporal order. A video of at most `window_s` seconds is one window.

    Raises:
        InputError: a window is shorter than a row.
    """
    row_s = duration_s / num_rows
    if duration_s <= windows.window_s:
        return [Window(0, num_rows, 0.0, duration_s)]
    if windows.window_s < row_s:
        raise InputError(
            f"window_s: expected at least one feature row of {name}, {row_s:.6g} s, got {windows.window_s!r}"
        )
    length = round(windows.window_s / row_s)
    if length >= num_rows:
        return [Window(0, num_rows, 0.0, duration_s)]
    step = max(1, round(length * (1 - windows.overlap)))
    starts = [*range(0, num_rows - length, step), num_rows - length]
    return [Window(first, first + length, first * row_s, length * row_s) for first in starts]


def cut_rows(video: Video, preset: Preset, windows: Windows, name: str) -> tuple[Any, list[Window]]:
    """Check a video's features, block by block, and cut it.

    Args:
        video: the video, its duration checked.
        preset: gives D.
        windows: length and overlap.
        name: the video's name in messages.

    Returns:
        The features as a NumPy array [n, D], not copied if NumPy can share the memory, and the windows.

    Raises:
        InputError: the features cannot be used, or a window is shorter than a row.
    """
    rows = check_features(video.features, preset.input_size, f"{name}.features")
    said = f"video {shown(video.video_id)}" if video.video_id else name
    return rows, cut(len(rows), float(video.duration_s), windows, said)


def cut_video(video: Video, preset: Preset, window_s: float, overlap: float = DEFAULT_OVERLAP) -> list[Piece]:
    """Cut a video into the windows that an engine grounds, for calls that take no windows, such as `score_maps`.

    Args:
        video: the video.
        preset: the model's, `engine.preset`.
        window_s: length of a window in seconds, > 0.
        overlap: share of a window that the next one repeats, 0 <= overlap < 1.

    Returns:
        The windows in temporal order; add `start_s` to a window's times for times of the whole video.

    Raises:
        InputError: an argument cannot be used.
    """
    windows = checked_windows(_SECONDS(window_s, "window_s"), overlap, preset)
    assert windows is not None
    check_duration(video.duration_s, "video.duration_s")
    rows, found = cut_rows(video, preset, windows, "video")
    return [
        Piece(w.start_s, Video(rows[w.first : w.last], w.duration_s, video.video_id, video.contract)) for w in found
    ]
