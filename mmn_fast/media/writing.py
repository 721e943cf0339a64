"""Writes a video file."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from mmn_fast.arrays import Uint8, described
from mmn_fast.errors import InputError
from mmn_fast.media.container import av_module
from mmn_fast.storage.files import whole_file

_CODEC = "libx264"
_KEY_FRAMES_S = 2  # seconds from one frame to which a player can jump to the next
# Quality, 0 (best) to 51. At x264's usual 23, features of the demo's videos change so much that R@1,IoU@0.7 loses up to
# ten points; at 4 it loses less than one, and a minute takes 0.4 MB.
_OPTIONS = {"crf": "4", "preset": "veryfast"}


def encoder() -> Any:
    """The module `av`, which writes videos.

    Raises:
        InputError: PyAV is missing, or its H.264 encoder.
    """
    try:
        av = av_module()
    except InputError:
        raise InputError("writing videos needs PyAV (pip install mmn_fast[video])") from None
    if _CODEC not in av.codecs_available:
        raise InputError(f"this PyAV has no encoder for H.264 ({_CODEC}); the wheels on PyPI have it")
    return av


def write_video(path: str | Path, frames: Iterable[Uint8], fps: int) -> Path:
    """Write frames as an MP4 file that every browser plays (H.264, 4:2:0); it appears whole or not at all.

    The same frames give the same bytes on every number of cores.

    Args:
        path: file to write; an existing file is replaced.
        frames: uint8 [H, W, 3], RGB, at least one, all of one size, with even H and W.
        fps: frames per second, >= 1.

    Returns:
        The path.

    Raises:
        InputError: as `encoder`, or a frame is something else.
        WriteError: the file cannot be written.
    """
    av = encoder()
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise InputError("frames: expected at least one, got none")
    if first.dtype.name != "uint8" or first.shape[2:] != (3,) or any(side % 2 for side in first.shape[:2]):
        raise InputError(f"frames: expected RGB uint8 [H, W, 3] with even H and W, got {described(first)}")
    with whole_file(path) as file, av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(_CODEC, rate=fps)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.gop_size = _KEY_FRAMES_S * fps
        stream.thread_count = 1
        stream.options = dict(_OPTIONS)
        for frame in chain((first,), frames):
            if frame.shape != first.shape:
                raise InputError(f"frames: expected frames of one size, {described(first)}, got {described(frame)}")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return Path(path)
