"""The page of one video: player, table, timelines and moment maps, linked by clicks."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmn_fast.arrays import Uint8
from mmn_fast.errors import InputError
from mmn_fast.viz.film import Film
from mmn_fast.viz.html import Page, build_page, facts_line
from mmn_fast.viz.images import png_uri, sheet, shrink, spread
from mmn_fast.viz.pictures import PLOT, draw_timeline, moment_map
from mmn_fast.viz.svg import figure, number, span, text
from mmn_fast.viz.values import GroundedQuery, check_duration, check_frames

# Most frames and greatest width of the inline video: more frames are thinned out, wider ones are shrunk.
_MAX_FRAMES, _MAX_WIDTH = 240, 256


def report(
    queries: Sequence[GroundedQuery],
    duration_s: float,
    *,
    title: str = "Grounded moments",
    video_id: str = "",
    frames: Uint8 | None = None,
    fps: float | None = None,
    film: Film | None = None,
    notes: Sequence[str] = (),
    max_moments: int = 5,
) -> Page:
    """Make the page of one video.

    Args:
        queries: sentences with their moments, see `GroundedQuery`; true spans and maps are shown if known.
        duration_s: length of the video in seconds.
        title: heading of the page.
        video_id: name of the video.
        frames: RGB uint8 [n, H, W, 3], the video. The page holds at most 240 frames, evenly spread, and frames at most
            256 pixels wide; wider ones are shrunk.
        fps: frames per second; needed with `frames`.
        film: the video's file (`film_of`), which the page plays. Its own frames then stand above the timelines if no
            `frames` are given; they are also shown in place of a file that not every browser plays.
        notes: further short facts for the line under the title (the model, the seed).
        max_moments: predicted spans shown per sentence.

    Returns:
        The page; `page.save(path)` writes it.

    Raises:
        InputError: an argument cannot be used.
    """
    duration_s = check_duration(duration_s)
    for position, query in enumerate(queries):
        if not isinstance(query, GroundedQuery):
            raise InputError(f"queries[{position}]: expected GroundedQuery, got {type(query).__name__}")
    plays = film is not None and film.why_not is None
    if film is not None and frames is None:
        frames, fps = film.frames, len(film.frames) / duration_s
    video = None if frames is None or plays else video_data(check_frames(frames), fps)
    maps = [number for number, query in enumerate(queries) if query.map is not None]
    count = len(queries)
    facts = [video_id, f"{number(duration_s)} s", f"{count} {'sentence' if count == 1 else 'sentences'}"]
    if film is not None:
        facts.append(film.described)
    elif frames is not None and fps is not None:
        facts.append(f"{len(frames)} frames at {number(fps)} per second")
    body = [f"<header><h1>{text(title)}</h1>{facts_line([*facts, *notes])}</header>"]
    seekable = video is not None or plays
    if seekable or maps:
        both = " both" if seekable and maps else ""
        screen = film.player() if film is not None and plays else ""
        if video is not None:
            screen = player(duration_s, "" if film is None else film.trouble())
        pictures = maps_panel(queries, duration_s, max_moments) if maps else ""
        body.append(f'<div class="stage{both}">{screen}{pictures}</div>')
    body.append(_table(queries, seekable))
    body.append(timelines_panel(queries, duration_s, frames, seekable, max_moments))
    data = {
        "duration_s": duration_s,
        "video": video,
        "plot": PLOT,
        "queries": [query_data(query, duration_s, max_moments) for query in queries],
    }
    if film is None or not plays:
        return build_page(title, "\n".join(body), data, "video.js")
    data["film"] = film.data()
    return build_page(title, "\n".join(body), data, "film.js", "video.js", media=film.source, footer=film.footer)


def video_data(frames: Uint8, fps: float | None) -> dict[str, Any]:
    """Put the frames on one sheet, for the player."""
    if fps is None or isinstance(fps, bool) or not (math.isfinite(fps) and fps > 0):
        raise InputError(f"fps: expected a finite number > 0 with frames, got {fps!r}")
    chosen = list(range(len(frames))) if len(frames) <= _MAX_FRAMES else spread(len(frames), _MAX_FRAMES)
    kept = shrink(frames[chosen], _MAX_WIDTH)
    image, columns = sheet(kept)
    _, height, width, _ = kept.shape
    return {
        "sheet": png_uri(image),
        "columns": columns,
        "width": width,
        "height": height,
        "times_s": [round(frame / fps, 4) for frame in chosen],
    }


def player(duration_s: float, below: str = "") -> str:
    """The player's panel: screen and controls, and `below` them more HTML."""
    end = number(duration_s, 3)
    return f"""<section class="panel player" aria-label="Video">
<canvas id="screen" role="img" aria-label="The frame at the chosen time"></canvas>
<p id="now" class="now"></p>
<div class="controls">
<button id="play" type="button" aria-label="Play"><svg viewBox="0 0 16 16" width="16" height="16" aria-hidden="true">\
<path class="icon-play" d="M3 1.5v13l11-6.5z"/><path class="icon-pause" d="M3 2h4v12H3zM9 2h4v12H9z"/></svg></button>
<input id="scrub" type="range" min="0" max="{end}" step="any" value="0" aria-label="Time in seconds">
<output id="clock" for="scrub">0.0 s</output>
</div>
{below}</section>"""


def maps_panel(queries: Sequence[GroundedQuery], duration_s: float, max_moments: int) -> str:
    """Make the panel with a moment map per sentence; one map is visible at a time."""
    options, pictures = [], []
    key = "<span><i class='k-rank'>1</i>chosen, by rank</span>"
    if any(query.truth_s for query in queries):
        key += "<span><i class='k-truth'></i>true</span>"
    if any(len(map_.cells) < map_.num_clips * (map_.num_clips + 1) // 2 for map_ in (q.map for q in queries) if map_):
        key += "<span><i class='k-hatch'></i>not a proposal</span>"
    for place, query in enumerate(queries):
        options.append(f'<option value="{place}">{place + 1}. {text(query.sentence)}</option>')
        if query.map is None:
            picture = '<p class="empty">No score map for this sentence.</p>'
        else:
            map_ = query.map
            picture = moment_map(
                map_.scores,
                map_.cells,
                map_.num_clips,
                map_.duration_s or duration_s,
                moments=query.moments,
                truth=query.truth_s,
                max_moments=max_moments,
                label=query.sentence,
                start_s=map_.start_s,
            ).markup()
        hidden = " hidden" if place else ""
        pictures.append(f'<div class="map" data-map="{place}"{hidden}>{picture}</div>')
    return f"""<section class="panel maps">
<div class="bar"><h2>Moment map</h2><select id="choose" aria-label="Sentence">{"".join(options)}</select></div>
{"".join(pictures)}
<p id="cell" class="readout">A square is a moment: its start reads down, its end to the right.</p>
<p class="key">{key}</p>
</section>"""


def seek_button(start_s: float, end_s: float, seekable: bool, kind: str) -> str:
    """A span of time in words, of kind "pred" or "true"; `seekable`, it plays the span."""
    where = span(start_s, end_s)
    if not seekable:
        return f'<span class="span {kind}">{where}</span>'
    return (
        f'<button type="button" class="span {kind}" data-seek="{number(start_s, 3)}" data-end="{number(end_s, 3)}"'
        f' aria-label="Go to {where}">{where}</button>'
    )


def _table(queries: Sequence[GroundedQuery], seekable: bool) -> str:
    if not queries:
        return '<section class="panel"><p class="empty">No sentences were given.</p></section>'
    rows = []
    for place, query in enumerate(queries):
        best = query.moments[0] if query.moments else None
        predicted = "–" if best is None else seek_button(best.start_s, best.end_s, seekable, "pred")
        true = " ".join(seek_button(start, end, seekable, "true") for start, end in query.truth_s) or "–"
        iou = query.iou
        meter = "" if iou is None else f'<i class="meter" style="--v:{number(iou, 3)}"></i>'
        name = f'<button type="button" class="pick" data-pick="{place}">{text(query.sentence)}</button>'
        rows.append(
            f'<tr data-query="{place}"><td class="num">{place + 1}</td><th scope="row">{name}</th>'
            f'<td>{predicted}</td><td>{true}</td><td class="num">{figure(iou)}{meter}</td>'
            f'<td class="num">{figure(best.score if best else None)}</td></tr>'
        )
    judged = [query.iou for query in queries if query.iou is not None]
    mean = f"<p class='sum'>mean IoU {figure(sum(judged) / len(judged))}</p>" if judged else ""
    return f"""<section class="panel">
<div class="bar"><h2>Sentences</h2>{mean}</div>
<div class="scroll"><table>
<thead><tr><th scope="col" class="num">#</th><th scope="col">Query</th><th scope="col">Predicted</th>\
<th scope="col">True</th><th scope="col" class="num">IoU</th><th scope="col" class="num">Score</th></tr></thead>
<tbody>{"".join(rows)}</tbody>
</table></div>
</section>"""


def timelines_panel(
    queries: Sequence[GroundedQuery],
    duration_s: float,
    frames: Uint8 | None,
    seekable: bool,
    max_moments: int,
    note: str = "",
) -> str:
    """The panel with a timeline per sentence, below a strip of frames; `note` stands in its key."""
    if not queries and frames is None:
        return ""
    strip = "" if frames is None else draw_timeline([], duration_s, frames).markup()
    blocks = []
    for place, query in enumerate(queries):
        picture = draw_timeline([query], duration_s, None, max_moments, seekable=seekable, headings=False).markup()
        blocks.append(
            f'<div class="track" data-query="{place}"><h3>{place + 1}. {text(query.sentence)}</h3>{picture}</div>'
        )
    true = "<span><i class='k-true'></i>true</span>" if any(query.truth_s for query in queries) else ""
    hint = " Click a span to see it." if seekable else ""
    head = '<div id="head" class="playhead" aria-hidden="true"></div>' if seekable else ""
    return f"""<section class="panel">
<div class="bar"><h2>Timelines</h2><p class="key"><span><i class="k-pred"></i>predicted, best first</span>\
{true}<span>time in seconds.{note}{hint}</span></p></div>
<div class="scroll"><div class="tracks">{head}<div class="strip">{strip}</div>{"".join(blocks)}</div></div>
</section>"""


def query_data(query: GroundedQuery, duration_s: float, max_moments: int) -> dict[str, Any]:
    """Make a sentence's data for video.js."""
    best = query.moments[0] if query.moments else None
    data: dict[str, Any] = {
        "sentence": query.sentence,
        "best": None if best is None else [round(best.start_s, 3), round(best.end_s, 3)],
        "ranks": [[round(moment.start_s, 3), round(moment.end_s, 3)] for moment in query.moments[:max_moments]],
    }
    if query.map is not None:
        # Scores take 65,534 steps between their limits, and 65,535 means no score: enough for the readout under the
        # map.
        scores = np.asarray(query.map.scores, np.float64)
        finite = np.isfinite(scores)
        low, high = (float(scores[finite].min()), float(scores[finite].max())) if finite.any() else (0.0, 1.0)
        steps = np.where(finite, np.nan_to_num((scores - low) / ((high - low) or 1.0)) * 65534, 65535)
        dense = np.full((query.map.num_clips,) * 2, 65535, "<u2")
        rows, columns = np.asarray(query.map.cells).T
        dense[rows, columns] = steps.round()
        upper = dense[np.triu_indices(query.map.num_clips)]
        data["map"] = {
            "num_clips": int(query.map.num_clips),
            "start_s": round(query.map.start_s, 3),
            "duration_s": query.map.duration_s or duration_s,
            "low": low,
            "high": high,
            "scores": base64.b64encode(upper.tobytes()).decode("ascii"),
        }
    return data
