"""The film of a page: the video's own file, which the page holds or finds beside it, if browsers play it."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from mmn_fast.arrays import Uint8
from mmn_fast.checks import in_bytes
from mmn_fast.errors import InputError
from mmn_fast.media import MediaInfo, open_video, probe
from mmn_fast.viz.svg import number, text

EMBEDDED_BYTES = 16 * 2**20
"""Most bytes of a video that a page holds; base64 makes four of three. A larger video is linked."""

_STRIP, _STRIP_SIDE = 14, 160  # frames above the timelines, and their longer side in pixels
_SHEET, _SHEET_SIDE = 240, 256  # the same for a page that shows frames instead of the file

# First bytes of a file, from an offset on -> its container and media type.
_CONTAINERS = ((4, b"ftyp", "MP4", "video/mp4"), (0, b"\x1a\x45\xdf\xa3", "WebM or Matroska", "video/webm"))
# Codecs that Chromium, Firefox and Safari play in such a container, and pixel formats if not all of them.
_CODECS: dict[str, dict[str, tuple[str, ...] | None]] = {
    "video/mp4": {"h264": ("yuv420p", "yuvj420p"), "av1": None, "vp9": None},
    "video/webm": {"vp8": None, "vp9": None, "av1": None},
}


@dataclass(frozen=True, eq=False)
class Film:
    """A video file on a page; `film_of` makes one.

    Attributes:
        described: size, codec and frame rate, in words.
        type: media type, such as "video/mp4".
        content: the file as base64; None for a linked file.
        link: for a linked file, its place relative to the page, as a URL.
        frames: RGB uint8 [n, H, W, 3], frames evenly spread over the video.
        why_not: codec, pixels and container that not every browser plays; None if every browser plays the file.
    """

    described: str
    type: str
    content: str | None
    link: str | None
    frames: Uint8
    why_not: str | None

    @property
    def source(self) -> str:
        """Where a page's policy lets this video load from."""
        return "blob:" if self.link is None else "'self' file:"

    @property
    def footer(self) -> str:
        """What the page needs, in a sentence."""
        if self.link is None:
            return "This page holds the video, is complete in itself and loads nothing."
        return f"This page plays {self.link}: keep both where they are, or move them together."

    def data(self) -> dict[str, Any]:
        """The data of film.js."""
        gone = "" if self.link is None else f", or does not find it at {self.link}"
        trouble = f"This browser cannot play the video ({self.described}){gone}."
        return {"type": self.type, "content": self.content, "link": self.link, "trouble": trouble}

    def player(self) -> str:
        """The panel that plays the file."""
        return """<section class="panel player" aria-label="Video">
<video id="film" controls playsinline preload="auto" aria-label="The video"></video>
<p id="trouble" class="trouble" role="alert" hidden></p>
<p id="now" class="now"></p>
</section>"""

    def trouble(self) -> str:
        """A paragraph that says why the page shows frames instead of the file."""
        said = f"Not every browser plays this file ({self.why_not}): the page shows {len(self.frames)} frames of it."
        return f'<p class="trouble">{text(said)}</p>'


def film_of(path: str | Path, duration_s: float, page: str | Path | None = None, limit: int = EMBEDDED_BYTES) -> Film:
    """Make the film of a page: read the file, and some frames of it.

    Args:
        path: the video file.
        duration_s: its length in seconds, as found by decoding.
        page: the page's file; a linked video is found from its folder. None embeds a video of any size.
        limit: most bytes of an embedded video.

    Raises:
        InputError: the file is no readable video, or far shorter than `duration_s`.
        OSError: the system refuses to read the file.
    """
    path = Path(path)
    info = probe(path)
    kind, why_not = playing(path, info)
    plays = why_not is None
    rate = "" if info.frame_rate is None else f", {number(info.frame_rate)} frames per second"
    size = path.stat().st_size
    linked = plays and page is not None and size > limit
    count, side = (_STRIP, _STRIP_SIDE) if plays else (_SHEET, _SHEET_SIDE)
    if info.frame_rate is not None:
        count = max(1, min(count, round(duration_s * info.frame_rate)))
    return Film(
        described=f"{info.width} × {info.height}, {info.codec}{rate}",
        type=kind,
        content=base64.b64encode(path.read_bytes()).decode("ascii") if plays and not linked else None,
        link=relative_link(path, Path(page)) if linked and page is not None else None,
        frames=_spread_frames(path, duration_s, count, side),
        why_not=why_not,
    )


def playing(path: Path, info: MediaInfo) -> tuple[str, str | None]:
    """The media type of a video file, and why not every browser plays it; None if every browser does.

    Raises:
        OSError: the system refuses to read the file.
    """
    with path.open("rb") as file:
        head = file.read(16)
    found = (one for one in _CONTAINERS if head[one[0] :].startswith(one[1]))
    _, _, container, kind = next(found, (0, b"", path.suffix or "another container", ""))
    known = _CODECS.get(kind, {})
    formats = known.get(info.codec, ())
    if info.codec in known and (formats is None or info.pixel_format in formats):
        return kind, None
    return kind, f"{info.codec}, {info.pixel_format}, in {container}"


def link_note(path: str | Path, page: str | Path) -> str:
    """Say that a page plays a video from its own file."""
    size, most = in_bytes(Path(path).stat().st_size), in_bytes(EMBEDDED_BYTES)
    return (
        f"{page} plays {path} from its own file, because a page holds at most {most} and the video takes {size}: keep"
        " both where they are, or move them together"
    )


def relative_link(path: Path, page: Path) -> str:
    """The URL of a file from a page's folder."""
    return quote(os.path.relpath(path.resolve(), page.resolve().parent).replace(os.sep, "/"))


def _spread_frames(path: Path, duration_s: float, count: int, side: int) -> Uint8:
    """Frames of the middle of each of `count` equal parts of a video, uint8 [n, H, W, 3]."""
    times = [(share + 0.5) * duration_s / count for share in range(count)]
    with open_video(path) as video:
        frames = [frame for _, frame in video.frames_at(times, max_side=side)]
        if not frames:
            raise InputError(f"duration_s: expected the length of {path}, {video.duration_s:g} s, got {duration_s:g}")
        return np.stack(frames)
