"""Search of many videos: the videos whose best proposal fits a sentence best, exactly. Without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmn_fast.arrays import Float32, Float64, Int32, Int64
from mmn_fast.kernels.host import _C, num_threads

Stored = npt.NDArray[np.float32] | npt.NDArray[np.float16]
_ROWS_AT_ONCE = 4096  # 8 MiB in float64 at J = 256


class Codes(NamedTuple):
    """A branch's rows rounded to 8 bits, see `quantise`.

    Attributes:
        codes: int8 [R, J], -127 to 127.
        steps: float32 [R, 2]: row r is near `steps[r, 0] * codes[r]`, at a Euclidean distance of at most `steps[r, 1]`.
    """

    codes: npt.NDArray[np.int8]
    steps: Float32


@dataclass(frozen=True, eq=False)
class StoredRows:
    """Proposals of a shard, R rows; memory-mapped arrays will do.

    Attributes:
        contrastive: float32 or float16 [R, J], C-contiguous, finite.
        iou: [R, J] of the same type.
        norm: at least the Euclidean length of every row of both branches (`longest`).
        contrastive_codes: codes of `contrastive`; both branches have codes, or neither has.
        iou_codes: codes of `iou`. Only these are read for most rows.
    """

    contrastive: Stored
    iou: Stored
    norm: float
    contrastive_codes: Codes | None = None
    iou_codes: Codes | None = None


@dataclass(eq=False)
class BestVideos:
    """The k best videos of every sentence so far, best first; `search_moments` updates the arrays.

    Attributes:
        least: float32 [S]; a lower score does not count.
        scores: float32 [S, k], -infinity where there are fewer videos.
        videos: int64 [S, k], numbers of videos, then -1.
        windows: int64 [S, k], the number of the window that holds the video's best proposal, then -1.
        cells: int32 [S, k], the best proposal's row in that window, then -1.
    """

    least: Float32
    scores: Float32 = field(repr=False)
    videos: Int64
    windows: Int64
    cells: Int32

    @classmethod
    def none(cls, sentences: int, k: int, min_score: float | None = None) -> BestVideos:
        """No video yet, and room for k of them; a score below `min_score` does not count."""
        shape, least = (sentences, k), -np.inf if min_score is None else min_score
        return cls(
            np.full(sentences, least, np.float32),
            np.full(shape, -np.inf, np.float32),
            np.full(shape, -1, np.int64),
            np.full(shape, -1, np.int64),
            np.full(shape, -1, np.int32),
        )


def search_moments(
    rows: StoredRows,
    starts: Int64,
    videos: Int64,
    windows: Int64,
    proposals: int,
    text_contrastive: Float32,
    text_iou: Float32,
    *,
    fusion: str,
    power: float,
    best: BestVideos,
    threads: int | None = None,
    isa: str | None = None,
) -> None:
    """Merge a shard into the best videos of every sentence.

    A video's score is its best proposal's: the float32 score that `ops.top_moments` gives for the rows decoded to
    float32, bit for bit, with the same instruction set. Videos are ranked by score, then by number. Calls for all
    shards of a library, in any order, give the library's best videos.

    The result is exact although most rows are only looked at: a score is at most F sigmoid(10 u), where F bounds the
    other factor by the vectors' lengths and u is the iou branch's cosine. A row is scored only if this bound, and then
    the fusion of both rough cosines, reaches the k-th best score so far and its video's best one; the cosines' rounding
    errors and the errors of codes are added first.

    Args:
        rows: the shard's proposals.
        starts: int64 [W]: window w takes rows starts[w] to starts[w] + proposals. Rows of no window do not take part.
        videos: int64 [W], the number of each window's video, >= 0, never falling. A video lies in one shard.
        windows: int64 [W], the number of each window, >= 0, rising.
        proposals: P, rows of a window.
        text_contrastive: float32 [S, J], finite.
        text_iou: float32 [S, J], finite.
        fusion: "power" or "product".
        power: exponent of the power fusion, finite.
        best: the result so far; the call changes it.
        threads: see `host.num_threads`. The result does not depend on it.
        isa: an instruction set; None takes the process's.

    Raises:
        TypeError: an argument is no array, or has another dtype.
        ValueError: a shape, layout or value differs from the above; or a score is NaN.
    """
    _C.search_moments(
        contrastive=rows.contrastive,
        iou=rows.iou,
        contrastive_codes=rows.contrastive_codes,
        iou_codes=rows.iou_codes,
        norm=rows.norm,
        starts=starts,
        window_videos=videos,
        window_numbers=windows,
        proposals=proposals,
        text_contrastive=text_contrastive,
        text_iou=text_iou,
        fusion=fusion,
        power=power,
        least=best.least,
        scores=best.scores,
        videos=best.videos,
        windows=best.windows,
        cells=best.cells,
        threads=num_threads(threads),
        isa=isa,
    )


def longest(rows: Stored) -> float:
    """The largest Euclidean length of a row of [R, J], rounded up; 0 without rows."""
    parts = (rows[at : at + _ROWS_AT_ONCE].astype(np.float64) for at in range(0, len(rows), _ROWS_AT_ONCE))
    return max((_up(np.sqrt((part * part).sum(axis=1))).max() for part in parts), default=0.0)


def quantise(rows: Stored) -> Codes:
    """Round rows to codes of 8 bits, each row by its largest value.

    Args:
        rows: float32 or float16 [R, J], finite.
    """
    codes = np.empty(rows.shape, np.int8)
    steps = np.empty((len(rows), 2), np.float32)
    for at in range(0, len(rows), _ROWS_AT_ONCE):
        span = slice(at, at + _ROWS_AT_ONCE)
        part = rows[span].astype(np.float64)
        steps[span, 0] = np.abs(part).max(axis=1, initial=0.0) / 127
        scale = steps[span, :1].astype(np.float64)
        codes[span] = np.clip(np.rint(np.divide(part, scale, out=np.zeros_like(part), where=scale > 0)), -127, 127)
        rest = part - scale * codes[span]
        steps[span, 1] = _up(np.sqrt((rest * rest).sum(axis=1)))
    return Codes(codes, steps)


def _up(lengths: Float64) -> Float32:
    """Lengths in float32, rounded up beyond the rounding of their sums."""
    return np.nextafter((lengths * (1 + 1e-9)).astype(np.float32), np.float32(np.inf))
