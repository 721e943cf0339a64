"""Draws two pictures: a timeline of predicted and true spans, and the 2D map of scores behind the predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from mmn_fast.arrays import Float64, Int64, Uint8
from mmn_fast.errors import InputError
from mmn_fast.types import Moment
from mmn_fast.viz.images import colours, png_uri, scale_stops, shrink, spread
from mmn_fast.viz.svg import Svg, figure, number, span, text, ticks
from mmn_fast.viz.values import GroundedQuery, ScoreMap, check_duration, check_frames, windows

# A label beside a bar takes about a third of a timeline's width. If neither side has that room, the bar is long enough
# to hold the label.
_LABEL_ROOM = 0.36
_MAX_THUMBNAILS = 14


def timeline(
    predictions: GroundedQuery | Sequence[GroundedQuery] | Sequence[Moment],
    truth: Any = None,
    *,
    duration_s: float,
    thumbnails: Uint8 | None = None,
    sentence: str = "",
    max_moments: int = 5,
    width: int = 960,
) -> Svg:
    """Draw spans over time: per sentence the true spans, then the predicted spans by rank.

    Args:
        predictions: grounded queries, or the moments of one sentence, best first.
        truth: the true span (start, end) in seconds, or several; only if `predictions` are moments.
        duration_s: length of the video in seconds.
        thumbnails: RGB uint8 [n, H, W, 3], frames evenly spread over the video; some of them head the picture.
        sentence: the sentence; only if `predictions` are moments.
        max_moments: predicted spans shown per sentence.
        width: width in pixels of a picture that stands alone.

    Returns:
        The picture.

    Raises:
        InputError: an argument cannot be used.
    """
    queries = _queries(predictions, truth, sentence)
    return draw_timeline(queries, check_duration(duration_s), thumbnails, max_moments, width)


def _queries(predictions: Any, truth: Any, sentence: str) -> list[GroundedQuery]:
    items: list[Any] = [predictions] if isinstance(predictions, GroundedQuery) else list(predictions)
    if items and all(isinstance(item, GroundedQuery) for item in items):
        if truth is not None or sentence:
            raise InputError("truth, sentence: expected none beside GroundedQuery, which has its own")
        return items
    for position, item in enumerate(items):
        if not isinstance(item, Moment):
            raise InputError(f"predictions[{position}]: expected GroundedQuery or Moment, got {type(item).__name__}")
    return [GroundedQuery(sentence, items, truth)]


def draw_timeline(
    queries: Sequence[GroundedQuery],
    duration_s: float,
    thumbnails: Uint8 | None = None,
    max_moments: int = 5,
    width: int = 960,
    seekable: bool = False,
    headings: bool = True,
) -> Svg:
    """Draw the picture of `timeline`; on a page, spans can be `seekable` controls and `headings` can be left out."""
    below, above = [], []  # gridlines go below the lanes, but their height is known only after the lanes are drawn
    y = 0
    if thumbnails is not None:
        strip, y = _strip(check_frames(thumbnails, "thumbnails"), width)
        above.append(strip)
    for query in queries:
        y += 6
        if headings and query.sentence:
            above.append(f'<text class="mmn-sentence" x="2" y="{y + 14}">{text(query.sentence)}</text>')
            y += 22
        bars, y = _lanes(query, duration_s, y, max_moments, seekable)
        above.append(bars)
    times = ticks(duration_s, 12)
    for time in times:
        x = number(100 * time / duration_s, 3)
        below.append(f'<line class="mmn-grid" x1="{x}%" x2="{x}%" y1="0" y2="{y + 5}"/>')
        anchor = "start" if time == 0 else "end" if time > 0.97 * duration_s else "middle"
        unit = " s" if time == times[-1] else ""
        above.append(f'<text class="mmn-tick" x="{x}%" y="{y + 17}" text-anchor="{anchor}">{number(time)}{unit}</text>')
    shown = "; ".join(query.sentence for query in queries if query.sentence)
    label = f"Timeline of {number(duration_s)} seconds" + (f": {shown}" if shown else "")
    return Svg(width, y + 22, "".join(below + above), label, fluid=True)


def _strip(frames: Uint8, width: int) -> tuple[str, int]:
    """Draw some frames side by side; also return their height."""
    _, height, frame_width, _ = frames.shape
    # The number of frames that fit, undistorted, into a strip about 64 pixels high.
    chosen = spread(len(frames), max(1, min(_MAX_THUMBNAILS, round(width / (64 * frame_width / height)))))
    high = 64
    small = shrink(frames[chosen], 160)
    share = 100 / len(chosen)
    images = [
        f'<image x="{number(share * place, 3)}%" y="0" width="{number(share, 3)}%" height="{high}"'
        f' preserveAspectRatio="xMidYMid slice" href="{png_uri(frame)}"/>'
        for place, frame in enumerate(small)
    ]
    return "".join(images), high


def _lanes(query: GroundedQuery, duration_s: float, y: int, max_moments: int, seekable: bool) -> tuple[str, int]:
    """Draw the lanes of one sentence from y on; also return the y where they end."""
    parts = []
    truth = cast("tuple[tuple[float, float], ...]", query.truth_s)
    if truth:
        parts.append(f'<rect class="mmn-lane" x="0" y="{y}" width="100%" height="18" rx="3"/>')
        for start, end in truth:
            # Several true spans share the lane; only a single one has room for words beside it.
            label = f"true  {span(start, end)}" if len(truth) == 1 else ""
            words = f"True span, {span(start, end)}"
            parts.append(_bar("mmn-truth", start, end, duration_s, y, 18, label, words, seekable))
        y += 21
    if not query.moments:
        parts.append(f'<text class="mmn-label-soft" x="6" y="{y + 13}">no moment found</text>')
        y += 21
    for rank, (moment, iou) in enumerate(zip(query.moments[:max_moments], query.ious, strict=False), start=1):
        high = 18 if rank == 1 else 14
        parts.append(f'<rect class="mmn-lane" x="0" y="{y}" width="100%" height="{high}" rx="3"/>')
        where = span(moment.start_s, moment.end_s)
        judged = "" if iou is None else f"  IoU {figure(iou)}"
        label = f"{rank}  {where}  score {figure(moment.score)}{judged}"
        words = f"Predicted, rank {rank}, {where}, score {figure(moment.score)}" + judged.replace("  ", ", ")
        kind = "mmn-first" if rank == 1 else "mmn-later"
        parts.append(_bar(kind, moment.start_s, moment.end_s, duration_s, y, high, label, words, seekable))
        y += high + 3
    return "".join(parts), y


def _bar(
    kind: str, start_s: float, end_s: float, duration_s: float, y: int, high: int, label: str, words: str, seek: bool
) -> str:
    """Draw one span, with its label beside it if there is room, else inside."""
    start = min(max(start_s / duration_s, 0.0), 1.0)
    end = min(max(end_s / duration_s, start), 1.0)
    soft = kind == "mmn-later"
    beside = "mmn-label-soft" if soft else "mmn-label"
    if 1 - end >= _LABEL_ROOM:
        place = f'class="{beside}" x="{number(100 * end, 3)}%" dx="7"'
    elif start >= _LABEL_ROOM:
        place = f'class="{beside}" x="{number(100 * start, 3)}%" dx="-7" text-anchor="end"'
    else:
        place = f'class="mmn-inside" x="{number(100 * start, 3)}%" dx="7"'
    seeks = f' tabindex="0" role="button" data-seek="{number(start_s, 3)}" data-end="{number(end_s, 3)}"'
    control = seeks if seek else ""
    bar = (
        f'<rect class="mmn-bar" x="{number(100 * start, 3)}%" y="{y}" width="{number(100 * (end - start), 3)}%"'
        f' height="{high}" rx="3"/>'
    )
    caption = f'<text {place} y="{y + high // 2 + 4}" xml:space="preserve">{text(label)}</text>' if label else ""
    return f'<g class="{kind}"{control} aria-label="{text(words)}"><title>{text(words)}</title>{bar}{caption}</g>'


_LEFT, _TOP, _PLOT, _BOTTOM, _RIGHT = 52, 10, 360, 44, 66
_FAINT = 90  # alpha of 255
PLOT = {"left": _LEFT, "top": _TOP, "side": _PLOT}
"""Place of a map's cells in its picture, for scripts that find the cell under the pointer."""


def moment_map(
    score_map: npt.NDArray[np.floating],
    cells: npt.NDArray[np.integer],
    num_clips: int,
    duration_s: float,
    *,
    moments: Sequence[Moment] = (),
    truth: Any = None,
    limits: tuple[float, float] = (0.0, 1.0),
    max_moments: int = 5,
    label: str = "",
    start_s: float = 0.0,
) -> Svg:
    """Draw the 2D map of one sentence: a proposal's start from top to bottom, its end from left to right.

    Cells that are no proposals are hatched, with a faint shade of the nearest proposal. The plot is blank below the
    diagonal, where a moment would end before it starts. The centre of cell (i, j) stands for the moment of clips
    [i, j + 1]. Chosen moments are framed and numbered by rank; a true span is a diamond at its start and end.

    Args:
        score_map: float [P], the score of each proposal.
        cells: int [P, 2], the proposals (i, j).
        num_clips: N, side of the map.
        duration_s: seconds that the map covers: the video's length, or that of a tube.
        moments: chosen moments, best first.
        truth: the true span (start, end) in seconds, or several.
        limits: scores at the two ends of the colour scale; scores beyond take the end's colour. The default is the
            same for every map, so that a colour means one score; a map's own least and greatest score show more of its
            shape.
        max_moments: most moments to mark.
        label: description of the map for screen readers.
        start_s: time at which the map's first clip starts.

    Returns:
        The picture.

    Raises:
        InputError: an argument cannot be used.
    """
    map_ = ScoreMap(np.asarray(score_map), np.asarray(cells), num_clips)
    duration_s = check_duration(duration_s)
    scores = np.asarray(map_.scores, np.float64)
    low, high = _checked(limits)
    unit = _PLOT / num_clips  # side of a cell in pixels
    parts = [
        '<defs><pattern id="@ID@" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<line class="mmn-hatch" x1="0" x2="0" y1="0" y2="6"/></pattern></defs>',
        f'<polygon fill="url(#@ID@)" points="{_staircase(num_clips)}"/>',
        f'<image x="{_LEFT}" y="{_TOP}" width="{_PLOT}" height="{_PLOT}" href="{png_uri(_heat(map_, low, high))}"/>',
        f'<rect class="mmn-frame" x="{_LEFT}" y="{_TOP}" width="{_PLOT}" height="{_PLOT}"/>',
        _map_axes(num_clips, duration_s, start_s),
        _colour_bar(low, high, scores[np.isfinite(scores)]),
    ]

    def place(begin_s: float, end_s: float) -> tuple[float, float]:
        begin, end = ((time - start_s) / duration_s * num_clips for time in (begin_s, end_s))
        x = min(max(end - 0.5, 0), num_clips) * unit + _LEFT
        return x, min(max(begin + 0.5, 0), num_clips) * unit + _TOP

    spans = windows(truth)
    points = [place(start, end) for start, end in spans]
    parts += [f'<path class="mmn-cross" d="M{_LEFT} {number(y)}H{number(x)}V{_TOP + _PLOT}"/>' for x, y in points]
    ranked = list(enumerate(moments[:max_moments], start=1))
    for rank, moment in reversed(ranked):  # the best is drawn last, on top
        x, y = place(moment.start_s, moment.end_s)
        words = f"Rank {rank}: {span(moment.start_s, moment.end_s)}, score {figure(moment.score)}"
        parts.append(f"<g><title>{text(words)}</title>{_mark(rank, x, y, unit)}</g>")
    for (x, y), (start, end) in zip(points, spans, strict=True):
        shape = f"M{number(x)} {number(y - 6)}l6 6l-6 6l-6 -6z"
        parts.append(f'<g><title>True: {span(start, end)}</title><path class="mmn-diamond" d="{shape}"/></g>')
    words = f"Moment map, {num_clips} by {num_clips} clips" + (f": {label}" if label else "")
    return Svg(_LEFT + _PLOT + _RIGHT, _TOP + _PLOT + _BOTTOM, "".join(parts), words)


def _checked(limits: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = (float(limit) for limit in limits)
    except (TypeError, ValueError):
        low = high = np.nan
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise InputError(f"limits: expected two finite scores, the lower one first, got {limits!r}")
    return low, high


def _heat(map_: ScoreMap, low: float, high: float) -> Uint8:
    """The map as pixels, faint in cells without a proposal; a cell has whole pixels, so edges stay sharp."""
    side = map_.num_clips
    scores = np.asarray(map_.scores, np.float64)
    scale = (scores - low) / (high - low)
    nearest = _nearest(map_)
    near = nearest >= 0
    image = np.zeros((side, side, 4), np.uint8)
    image[near, :3] = colours(np.nan_to_num(scale))[nearest[near]]
    image[near, 3] = _FAINT
    rows, columns = np.asarray(map_.cells).T
    image[rows, columns, 3] = np.where(np.isfinite(scores), 255, 0)
    factor = max(1, -(-2 * _PLOT // side))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def _nearest(map_: ScoreMap) -> Int64:
    """Row of the nearest proposal for each cell on and above the diagonal, int [N, N]; -1 elsewhere."""
    side = map_.num_clips
    rows, columns = np.asarray(map_.cells).T
    grown = np.full((side, side), -1, np.int64)
    grown[rows, columns] = np.arange(len(rows))
    upper = np.triu(np.ones((side, side), bool))
    while len(rows) and (upper & (grown < 0)).any():
        padded = np.pad(grown, 1, constant_values=-1)
        for shifted in (padded[1:-1, 2:], padded[1:-1, :-2], padded[2:, 1:-1], padded[:-2, 1:-1]):
            grown = np.where(upper & (grown < 0), shifted, grown)
    return grown


def _staircase(side: int) -> str:
    """Outline of the cells on and above the diagonal, as polygon points."""
    unit = _PLOT / side
    corners: list[tuple[float, float]] = [(_LEFT, _TOP), (_LEFT + _PLOT, _TOP), (_LEFT + _PLOT, _TOP + _PLOT)]
    for clip in range(side - 1, -1, -1):
        corners += [(_LEFT + clip * unit, _TOP + (clip + 1) * unit), (_LEFT + clip * unit, _TOP + clip * unit)]
    return " ".join(f"{number(x)},{number(y)}" for x, y in corners)


def _map_axes(side: int, duration_s: float, start_s: float) -> str:
    unit, parts = _PLOT / side, []
    bottom = _TOP + _PLOT
    for time in ticks(duration_s, 7, start_s):
        clip = (time - start_s) / duration_s * side
        if clip - 0.5 >= 0:
            x = number(_LEFT + (clip - 0.5) * unit)
            parts.append(f'<line class="mmn-grid" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 5}"/>')
            parts.append(f'<text class="mmn-tick" x="{x}" y="{bottom + 17}" text-anchor="middle">{number(time)}</text>')
        if clip + 0.5 <= side:
            y = _TOP + (clip + 0.5) * unit
            parts.append(f'<line class="mmn-grid" x1="{_LEFT - 5}" x2="{_LEFT}" y1="{number(y)}" y2="{number(y)}"/>')
            parts.append(
                f'<text class="mmn-tick" x="{_LEFT - 8}" y="{number(y + 4)}" text-anchor="end">{number(time)}</text>'
            )
    middle = _PLOT / 2
    parts.append(f'<text class="mmn-axis" x="{_LEFT + middle:g}" y="{bottom + 36}" text-anchor="middle">end (s)</text>')
    parts.append(
        f'<text class="mmn-axis" transform="translate(14 {_TOP + middle:g}) rotate(-90)" text-anchor="middle">start (s)'
        "</text>"
    )
    return "".join(parts)


def _colour_bar(low: float, high: float, scores: Float64) -> str:
    """Draw the scale from low to high, and mark the range of the map's scores on it."""
    stops = scale_stops()
    gradient = "".join(
        f'<stop offset="{number(place / (len(stops) - 1), 3)}" stop-color="{colour}"/>'
        for place, colour in enumerate(stops)
    )
    x = _LEFT + _PLOT + 16
    marks = "".join(
        f'<text class="mmn-tick" x="{x + 17}" y="{number(_TOP + 9 + (1 - part) * (_PLOT - 9))}">'
        f"{figure(low + part * (high - low))}</text>"
        for part in (0, 0.25, 0.5, 0.75, 1)
    )
    used = ""
    if len(scores):
        top, bottom = (
            _TOP + (1 - min(max((score - low) / (high - low), 0), 1)) * _PLOT for score in (scores.max(), scores.min())
        )
        words = f"Scores of this map: {figure(scores.min())} to {figure(scores.max())}"
        used = (
            f'<g><title>{words}</title><rect class="mmn-used" x="{x - 6}" y="{number(top)}" width="3"'
            f' height="{number(max(bottom - top, 1))}"/></g>'
        )
    return (
        f'<defs><linearGradient id="@ID@-scale" x1="0" y1="1" x2="0" y2="0">{gradient}</linearGradient></defs>'
        f'<rect x="{x}" y="{_TOP}" width="12" height="{_PLOT}" rx="2" fill="url(#@ID@-scale)"/>'
        f'{marks}{used}<text class="mmn-tick" x="{x}" y="{_TOP + _PLOT + 17}">score</text>'
    )


def _mark(rank: int, x: float, y: float, unit: float) -> str:
    """Draw a frame around the cell at (x, y), with the rank at the lower left: a true span may be at the centre."""
    side = max(unit, 7)
    box = f'x="{number(x - side / 2)}" y="{number(y - side / 2)}" width="{number(side)}" height="{number(side)}" rx="2"'
    frame = f'<rect class="mmn-ring-dark" {box}/><rect class="mmn-ring" {box}/>'
    away = side / 2 + (4 if unit < 16 else 0)
    x, y = x - away, y + away
    first = "-first" if rank == 1 else ""
    return (
        f'{frame}<circle class="mmn-badge{first}" cx="{number(x)}" cy="{number(y)}" r="7.5"/>'
        f'<text class="mmn-rank{first}" x="{number(x)}" y="{number(y + 4)}" text-anchor="middle">{rank}</text>'
    )
