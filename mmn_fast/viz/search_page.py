"""The page of a search: per sentence its hits in the library as a grid; a click plays a hit from its video's file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmn_fast.arrays import Uint8
from mmn_fast.errors import InputError
from mmn_fast.media import open_video
from mmn_fast.viz.film import playing, relative_link
from mmn_fast.viz.html import Page, build_page, facts_line
from mmn_fast.viz.images import png_uri, shrink
from mmn_fast.viz.svg import figure, number, span, text

_SHOTS, _SHOT_SIDE = 4, 128  # frames of a hit, and their longer side in pixels
_LINKS = "This page plays the videos from their own files: keep page and videos where they are, or move them together."
_ALONE = "This page is complete in itself and loads nothing."

Span = tuple[float, float]


class Hit(Protocol):
    """A found moment, such as `mmn_fast.Match`."""

    @property
    def video_id(self) -> str:
        """The video."""

    @property
    def start_s(self) -> float:
        """Start, seconds."""

    @property
    def end_s(self) -> float:
        """End, seconds."""

    @property
    def score(self) -> float:
        """Score, higher is better."""


@dataclass(frozen=True, eq=False)
class LibraryVideo:
    """A video file of the library, for the page; `library_videos` makes them.

    Attributes:
        link: the file's place relative to the page, as a URL; None if not every browser plays the file.
        why_not: codec, pixels and container that not every browser plays.
        shots: start and end of a hit -> frames of it, RGB uint8 [n, H, W, 3].
    """

    link: str | None
    why_not: str | None = None
    shots: Mapping[Span, Uint8] = field(default_factory=dict)


def library_videos(
    files: Mapping[str, Path], results: Iterable[Sequence[Hit]], page: str | Path
) -> tuple[dict[str, LibraryVideo], list[str]]:
    """Open the files of all videos with hits, and take frames of the hits.

    Args:
        files: id -> file, of the videos that are at hand.
        results: per sentence its hits.
        page: the page's file; links lead from its folder.

    Returns:
        Id -> the video of the page, and one sentence per file that cannot be read.
    """
    spans: dict[str, set[Span]] = {}
    for hit in (hit for hits in results for hit in hits):
        if hit.video_id in files:
            spans.setdefault(hit.video_id, set()).add((hit.start_s, hit.end_s))
    videos, troubles = {}, []
    for video_id, of_video in spans.items():
        try:
            videos[video_id] = _opened(files[video_id], of_video, Path(page))
        except (InputError, OSError) as error:
            troubles.append(f"{video_id}: {getattr(error, 'strerror', None) or error}")
    return videos, troubles


def _opened(path: Path, spans: set[Span], page: Path) -> LibraryVideo:
    times = {one: [one[0] + (n + 0.5) / _SHOTS * (one[1] - one[0]) for n in range(_SHOTS)] for one in spans}
    wanted = sorted({time for of_span in times.values() for time in of_span})
    with open_video(path) as video:
        frame_at = dict(video.frames_at(wanted, max_side=_SHOT_SIDE))
        why_not = playing(path, video.info)[1]
    shots = {one: [frame_at[time] for time in of_span if time in frame_at] for one, of_span in times.items()}
    stacked = {one: np.stack(frames) for one, frames in shots.items() if frames}
    return LibraryVideo(None if why_not else relative_link(path, page), why_not, stacked)


def search_report(
    sentences: Sequence[str],
    results: Sequence[Sequence[Hit]],
    durations_s: Mapping[str, float],
    *,
    title: str = "Search",
    videos: Mapping[str, LibraryVideo] | None = None,
    notes: Sequence[str] = (),
) -> Page:
    """Make the page of a search.

    Args:
        sentences: S sentences.
        results: per sentence its hits, best first, as `MomentIndex.search` gives them.
        durations_s: length in seconds of every video that has a hit.
        title: heading of the page.
        videos: the videos that are at hand, from `library_videos`: their hits have frames, and a click plays them.
        notes: further short facts for the line under the title.

    Returns:
        The page; `page.save(path)` writes it.

    Raises:
        InputError: there are more or fewer results than sentences, or a length is missing.
    """
    if len(results) != len(sentences):
        raise InputError(f"results: expected one list per sentence, {len(sentences)}, got {len(results)}")
    missing = sorted({hit.video_id for hits in results for hit in hits} - set(durations_s))
    if missing:
        raise InputError(f"durations_s: expected the length of {missing[0]!r}, got none")
    known = videos or {}
    films = [video_id for video_id, video in known.items() if video.link is not None]
    count = sum(map(len, results))
    facts = [f"{len(sentences)} {'sentence' if len(sentences) == 1 else 'sentences'}", f"{count} moments", *notes]
    body = [f"<header><h1>{text(title)}</h1>{facts_line(facts)}</header>", _player() if films else ""]
    for sentence, hits in zip(sentences, results, strict=True):
        cards = [
            _card(rank, hit, durations_s[hit.video_id], known.get(hit.video_id), films)
            for rank, hit in enumerate(hits, start=1)
        ]
        found = f'<div class="hits">{"".join(cards)}</div>' if cards else '<p class="empty">No moment was found.</p>'
        body.append(f'<section class="panel"><div class="bar"><h2>{text(sentence)}</h2></div>{found}</section>')
    data: dict[str, Any] = {"films": [{"link": known[one].link, "name": one} for one in films]}
    media, footer = ("'self' file:", _LINKS) if films else ("", _ALONE)
    return build_page(title, "\n".join(body), data, "search.js", media=media, footer=footer)


def _player() -> str:
    """The panel that plays hits; it appears with the first click."""
    return """<section id="stage" class="panel player search-stage" aria-label="Video" hidden>
<video id="film" controls playsinline preload="none" aria-label="The video of the chosen moment"></video>
<p id="trouble" class="trouble" role="alert" hidden></p>
<p id="now" class="now"></p>
</section>"""


def _card(rank: int, hit: Hit, duration_s: float, video: LibraryVideo | None, films: list[str]) -> str:
    where = span(hit.start_s, hit.end_s)
    start = min(max(hit.start_s / duration_s, 0.0), 1.0)
    end = min(max(hit.end_s / duration_s, start), 1.0)
    shots, trouble, control = "", "", f'<span class="span pred">{where}</span>'
    if video is not None:
        frames = video.shots.get((hit.start_s, hit.end_s))
        if frames is not None:
            images = "".join(f'<img src="{png_uri(frame)}" alt="">' for frame in shrink(frames, _SHOT_SIDE))
            shots = f'<div class="shots">{images}</div>'
        if video.link is not None:
            words = text(f"Play {hit.video_id}, {where}")
            control = (
                f'<button type="button" class="span pred" data-film="{films.index(hit.video_id)}"'
                f' data-seek="{number(hit.start_s, 3)}" data-end="{number(hit.end_s, 3)}"'
                f' aria-label="{words}">{where}</button>'
            )
        else:
            trouble = f'<p class="trouble">{text(f"Not every browser plays this file ({video.why_not}).")}</p>'
    place = f"left:{number(100 * start, 3)}%;width:{number(100 * (end - start), 3)}%"
    label = text(f"{where} of {number(duration_s)} s")
    return (
        f'<article class="hit">{shots}<h3>{rank}. {text(hit.video_id)}</h3>'
        f'<div class="reel" role="img" aria-label="{label}" title="{label}"><i style="{place}"></i></div>'
        f'<p class="said">{control}<span>score {figure(hit.score)}</span></p>{trouble}</article>'
    )
