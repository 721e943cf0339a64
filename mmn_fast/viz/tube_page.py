"""The page of one video with tubes: the chosen tube's boxes in the video, beside the true ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmn_fast.arrays import Int64, Uint8
from mmn_fast.errors import InputError
from mmn_fast.tubes import Boxes, Tube, TubeMoment, check_track, row_span, tube_iou
from mmn_fast.types import Moment
from mmn_fast.viz.html import Page, build_page, facts_line
from mmn_fast.viz.pictures import PLOT
from mmn_fast.viz.svg import figure, number, text
from mmn_fast.viz.values import GroundedQuery, ScoreMap, check_frames
from mmn_fast.viz.video_page import maps_panel, player, query_data, seek_button, timelines_panel, video_data

_Track = tuple[Int64, Boxes]


@dataclass(frozen=True, eq=False)
class GroundedTubes:
    """A sentence, the moments (rows of tubes) found for it, and its true tube.

    Attributes:
        sentence: the sentence; any text, pages escape it.
        moments: rows of tubes, best first; may be empty.
        truth: the true tube: frames int [m] and boxes float [m, 4]; None if unknown.
        map: scores of the best moment's tube, or None.
    """

    sentence: str
    moments: Sequence[TubeMoment] = ()
    truth: tuple[Any, Any] | None = None
    map: ScoreMap | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "moments", tuple(self.moments))
        if self.truth is not None:
            object.__setattr__(self, "truth", check_track(*self.truth, "truth"))

    @property
    def ious(self) -> tuple[float, float] | None:
        """vIoU and tIoU of the best moment with the true tube; 0 if no moment was found, None without a true tube."""
        if self.truth is None:
            return None
        if not self.moments:
            return 0.0, 0.0
        best = self.moments[0]
        return tube_iou(*self.truth, np.arange(best.start_frame, best.end_frame + 1), best.boxes)


def tube_report(
    queries: Sequence[GroundedTubes],
    tubes: Sequence[Tube],
    frames: Uint8,
    fps: float,
    *,
    first_frame: int = 0,
    box_size: tuple[int, int] | None = None,
    title: str = "Grounded tubes",
    video_id: str = "",
    notes: Sequence[str] = (),
    max_moments: int = 5,
) -> Page:
    """Make the page of one video with tubes.

    Args:
        queries: sentences with their moments, see `GroundedTubes`.
        tubes: the video's tubes, which the moments number.
        frames: RGB uint8 [n, H, W, 3], the video; thinned out and shrunk as `report` says.
        fps: frames per second, of the video and of the tubes' frame numbers.
        first_frame: frame number of the video's first frame.
        box_size: width and height in pixels of the frames that boxes refer to; None for those of `frames`.
        title: heading of the page.
        video_id: name of the video.
        notes: further short facts for the line under the title.
        max_moments: predicted spans shown per sentence.

    Returns:
        The page; `page.save(path)` writes it.

    Raises:
        InputError: an argument cannot be used, or a moment names a tube that is not there.
    """
    frames = check_frames(frames)
    video = video_data(frames, fps)
    tracks = [check_track(tube.frames, tube.boxes, f"tubes[{place}]") for place, tube in enumerate(tubes)]
    for place, query in enumerate(queries):
        if not isinstance(query, GroundedTubes):
            raise InputError(f"queries[{place}]: expected GroundedTubes, got {type(query).__name__}")
        for moment in query.moments:
            if not 0 <= moment.tube < len(tracks):
                raise InputError(f"queries[{place}]: expected a tube of 0 to {len(tracks) - 1}, got {moment.tube}")
    duration_s, count = len(frames) / fps, len(queries)
    timed = [_timed(query, fps, first_frame) for query in queries]
    mapped = [_mapped(query, times, tracks, fps, first_frame) for query, times in zip(queries, timed, strict=True)]
    facts = [
        video_id,
        f"{number(duration_s)} s",
        f"{count} {'sentence' if count == 1 else 'sentences'}",
        f"{len(tracks)} {'tube' if len(tracks) == 1 else 'tubes'}",
        f"{len(frames)} frames at {number(fps)} per second",
    ]
    maps = any(query.map is not None for query in queries)
    body = [
        f"<header><h1>{text(title)}</h1>{facts_line([*facts, *notes])}</header>",
        f'<div class="stage{" both" if maps else ""}">{player(duration_s, _key())}'
        f"{maps_panel(mapped, duration_s, max_moments) if maps else ''}</div>",
        _table(queries, timed),
        timelines_panel(timed, duration_s, frames, True, max_moments, " IoU is that of times."),
    ]
    data = {
        "duration_s": duration_s,
        "video": {**video, "numbers": [first_frame + round(time * fps) for time in video["times_s"]]},
        "plot": PLOT,
        "box_size": list(box_size or (frames.shape[2], frames.shape[1])),
        "tubes": [_packed(track) for track in tracks],
        "queries": [
            {**query_data(shown, duration_s, max_moments), **_answer(query)}
            for query, shown in zip(queries, mapped, strict=True)
        ],
    }
    return build_page(title, "\n".join(body), data, "boxes.js", "video.js")


def _seconds(first: int, last: int, fps: float, first_frame: int) -> tuple[float, float]:
    """The span in seconds from the beginning of one frame to the end of another."""
    return (first - first_frame) / fps, (last + 1 - first_frame) / fps


def _timed(query: GroundedTubes, fps: float, first_frame: int) -> GroundedQuery:
    """Convert a sentence's moments and truth to spans in seconds."""
    moments = [Moment(*_seconds(m.start_frame, m.end_frame, fps, first_frame), m.score) for m in query.moments]
    truth = None
    if query.truth is not None:
        truth = _seconds(int(query.truth[0][0]), int(query.truth[0][-1]), fps, first_frame)
    return GroundedQuery(query.sentence, moments, truth)


def _mapped(
    query: GroundedTubes, times: GroundedQuery, tracks: list[_Track], fps: float, first_frame: int
) -> GroundedQuery:
    """Prepare a sentence for its map, which covers the best tube's time; cells without rows are left out.

    The map shows neither moments of other tubes nor a true tube elsewhere in the frame.
    """
    if query.map is None or not query.moments:
        return GroundedQuery(query.sentence)
    track = tracks[query.moments[0].tube]
    spans = row_span(len(track[0]), query.map.num_clips, np.asarray(query.map.cells, np.int32))
    kept = spans[:, 0] < spans[:, 1]
    start, end = _seconds(int(track[0][0]), int(track[0][-1]), fps, first_frame)
    map_ = dataclasses.replace(
        query.map,
        scores=np.asarray(query.map.scores)[kept],
        cells=np.asarray(query.map.cells)[kept],
        start_s=start,
        duration_s=end - start,
    )
    true = times.truth_s if query.truth is not None and tube_iou(*query.truth, *track)[0] > 0 else None
    return GroundedQuery(query.sentence, times.moments[:1], true, map_)


def _packed(track: _Track) -> dict[str, Any]:
    """Pack a tube for boxes.js: its first frame, and the corners of its boxes one after another."""
    frames, boxes = track
    return {"first": int(frames[0]), "boxes": boxes.round(1).ravel().tolist()}


def _answer(query: GroundedTubes) -> dict[str, Any]:
    best = query.moments[0] if query.moments else None
    return {
        "answer": None if best is None else [best.tube, best.start_frame, best.end_frame],
        "truth": None if query.truth is None else _packed(query.truth),
    }


def _key() -> str:
    """Make the legend of the lines in the video, with a checkbox that shows the other tubes."""
    return """<p class="key boxes-key"><span><i class="k-box k-box-pred"></i>predicted</span>\
<span><i class="k-box k-box-true"></i>true</span>\
<span><i class="k-box k-box-thin"></i>the predicted tube at other times</span>\
<label><input id="others" type="checkbox">other tubes</label></p>
<p id="boxes" class="readout" aria-live="off"></p>
"""


def _table(queries: Sequence[GroundedTubes], timed: Sequence[GroundedQuery]) -> str:
    if not queries:
        return '<section class="panel"><p class="empty">No sentences were given.</p></section>'
    rows, judged = [], []
    for place, (query, times) in enumerate(zip(queries, timed, strict=True)):
        best = times.moments[0] if times.moments else None
        predicted = "–" if best is None else seek_button(best.start_s, best.end_s, True, "pred")
        true = " ".join(seek_button(start, end, True, "true") for start, end in times.truth_s) or "–"
        ious = query.ious
        judged += [] if ious is None else [ious[0]]
        viou, tiou = (None, None) if ious is None else ious
        meter = "" if viou is None else f'<i class="meter" style="--v:{number(viou, 3)}"></i>'
        name = f'<button type="button" class="pick" data-pick="{place}">{text(query.sentence)}</button>'
        rows.append(
            f'<tr data-query="{place}"><td class="num">{place + 1}</td><th scope="row">{name}</th>'
            f'<td class="num">{query.moments[0].tube if query.moments else "–"}</td>'
            f'<td>{predicted}</td><td>{true}</td><td class="num">{figure(viou)}{meter}</td>'
            f'<td class="num">{figure(tiou)}</td><td class="num">{figure(best.score if best else None)}</td></tr>'
        )
    mean = f"<p class='sum'>mean vIoU {figure(sum(judged) / len(judged))}</p>" if judged else ""
    names = ("#", "Query", "Tube", "Predicted", "True", "vIoU", "tIoU", "Score")
    numeric = ("#", "Tube", "vIoU", "tIoU", "Score")
    head = "".join(f'<th scope="col"{" class=num" if name in numeric else ""}>{name}</th>' for name in names)
    return f"""<section class="panel">
<div class="bar"><h2>Sentences</h2>{mean}</div>
<div class="scroll"><table>
<thead><tr>{head}</tr></thead>
<tbody>{"".join(rows)}</tbody>
</table></div>
</section>"""
