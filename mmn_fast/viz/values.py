"""The checked values that pictures show: sentences with their moments, true spans and score maps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mmn_fast.arrays import Float32, Uint8, described
from mmn_fast.errors import InputError
from mmn_fast.geometry import temporal_iou
from mmn_fast.types import Moment, ScoreMaps

Window = tuple[float, float]


@dataclass(frozen=True, eq=False, repr=False)
class ScoreMap:
    """One sentence's score of every proposal of a video.

    Attributes:
        scores: float [P].
        cells: int [P, 2], the proposals (i, j): clips i to j, both included.
        num_clips: N, side of the map.
        start_s: time at which the first clip starts; a tube's map starts with the tube.
        duration_s: seconds that the N clips cover; None for the whole video.
    """

    scores: npt.NDArray[np.floating]
    cells: npt.NDArray[np.integer]
    num_clips: int
    start_s: float = 0.0
    duration_s: float | None = None

    def __repr__(self) -> str:
        return f"ScoreMap({described(self.scores)}, num_clips={self.num_clips})"

    def __post_init__(self) -> None:
        if isinstance(self.num_clips, bool) or not isinstance(self.num_clips, (int, np.integer)) or self.num_clips < 1:
            raise InputError(f"num_clips: expected an integer >= 1, got {self.num_clips!r}")
        scores, cells = np.asarray(self.scores), np.asarray(self.cells)
        if scores.ndim != 1:
            raise InputError(f"scores: expected one sentence's scores [P], got {list(scores.shape)}")
        if cells.shape != (len(scores), 2):
            raise InputError(f"cells: expected [P, 2] = {[len(scores), 2]}, got {list(cells.shape)}")
        within = (cells[:, 0] >= 0) & (cells[:, 0] <= cells[:, 1]) & (cells[:, 1] < self.num_clips)
        if not within.all():
            worst = cells[np.flatnonzero(~within)[0]].tolist()
            raise InputError(f"cells: expected 0 <= i <= j < {self.num_clips}, got {worst}")


@dataclass(frozen=True, eq=False)
class GroundedQuery:
    """A sentence, the moments found for it, and its true spans.

    Attributes:
        sentence: the sentence; any text, pages escape it.
        moments: moments found, best first; may be empty.
        truth_s: the true span (start, end) in seconds, or several; None if unknown.
        map: the scores behind the moments, or None.
    """

    sentence: str
    moments: Sequence[Moment] = ()
    truth_s: Any = None
    map: ScoreMap | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "moments", tuple(self.moments))
        object.__setattr__(self, "truth_s", windows(self.truth_s))

    @property
    def ious(self) -> list[float | None]:
        """IoU of each moment with the true span that it fits best; None if no true span is known."""
        return [span_iou(moment, self.truth_s) for moment in self.moments]

    @property
    def iou(self) -> float | None:
        """IoU of the best moment; 0 if no moment was found, None if no true span is known."""
        if not self.truth_s:
            return None
        return self.ious[0] if self.moments else 0.0


def grounded(
    sentences: Iterable[str],
    results: Iterable[Sequence[Moment]],
    *,
    truth_s: Iterable[Any] | None = None,
    maps: ScoreMaps | None = None,
    num_clips: int | None = None,
) -> list[GroundedQuery]:
    """Turn an engine's results for one video into the values that pictures take.

    Args:
        sentences: S sentences.
        results: per sentence its moments, as `engine.ground([query])[0]`.
        truth_s: per sentence its true span or spans, or None.
        maps: `engine.score_maps([query])[0]`; the fused scores are shown.
        num_clips: N, `engine.preset.num_clips`; needed with `maps`.

    Raises:
        InputError: the lists differ in length, or `maps` comes without `num_clips`.
    """
    sentences, results = list(sentences), list(results)
    truths = [None] * len(sentences) if truth_s is None else list(truth_s)
    if maps is not None and num_clips is None:
        raise InputError("num_clips: expected the side of the maps, got None")
    counts = {"results": len(results), "truth_s": len(truths), "maps": len(sentences if maps is None else maps.fused)}
    for name, count in counts.items():
        if count != len(sentences):
            raise InputError(f"{name}: expected one entry per sentence, {len(sentences)}, got {count}")
    return [
        GroundedQuery(
            sentence,
            moments,
            truth,
            None if maps is None or num_clips is None else ScoreMap(maps.fused[row], maps.cells, num_clips),
        )
        for row, (sentence, moments, truth) in enumerate(zip(sentences, results, truths, strict=True))
    ]


def windows(truth_s: Any) -> tuple[Window, ...]:
    """Convert None, one (start, end) or several to pairs of floats."""
    if truth_s is None or len(truth_s) == 0:
        return ()
    try:
        array = np.asarray(truth_s, np.float64)
    except (TypeError, ValueError):
        raise InputError(f"truth_s: expected seconds (start, end) or several, got {truth_s!r}") from None
    if array.shape == (2,):
        array = array[None]
    if array.ndim != 2 or array.shape[1] != 2 or not np.isfinite(array).all():
        raise InputError(f"truth_s: expected finite seconds [2] or [G, 2], got {truth_s!r}")
    return tuple((float(start), float(end)) for start, end in array)


def span_iou(moment: Moment, truth_s: Sequence[Window]) -> float | None:
    """IoU of a moment with the window that it fits best, as the evaluation counts it; None without windows."""
    if not truth_s:
        return None
    span = np.array([moment.start_s, moment.end_s], np.float32)
    windows_s: Float32 = np.asarray(truth_s, np.float32)
    return float(np.nan_to_num(np.fmax.reduce(temporal_iou(windows_s, span))))


def check_duration(duration_s: float) -> float:
    """Return a duration as a float; refuse one that is not finite and > 0."""
    try:
        duration = float(duration_s)
    except (TypeError, ValueError):
        duration = math.nan
    if not (math.isfinite(duration) and duration > 0):
        raise InputError(f"duration_s: expected a finite number > 0, got {duration_s!r}")
    return duration


def check_frames(frames: Any, name: str = "frames") -> Uint8:
    """Return RGB frames as an array; refuse anything but uint8 [n, H, W, 3] with n, H, W >= 1."""
    array = np.asarray(frames)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or 0 in array.shape:
        raise InputError(f"{name}: expected RGB uint8 [n, H, W, 3], got {array.dtype} {list(array.shape)}")
    return array
