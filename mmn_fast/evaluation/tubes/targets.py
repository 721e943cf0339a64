"""Computes the training targets of tubes: how well each span of each tube of a video fits the true tube."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmn_fast.arrays import Float32, Int64
from mmn_fast.checks import Integer
from mmn_fast.kernels.cpu import ops
from mmn_fast.tubes import Tube, check_track, row_span

_MAX_CLIPS = Integer(1, 4096)  # the largest map has 64 MiB


def target_iou(
    tubes: Sequence[Tube],
    truth: tuple[Any, Any],
    num_clips: int,
    half_open: bool = False,
    threads: int | None = None,
) -> Float32:
    """Compute the vIoU of every span of every tube with the true tube.

    This function runs in C++; `kernels.reference.target_iou` is its definition, in loops.

    Args:
        tubes: K tubes of one video; their features are ignored.
        truth: frames int [m] and boxes float [m, 4] of the true tube, as in `Tube`.
        num_clips: N, clips of a tube; `tubes.row_span` gives the rows of a cell (i, j).
        half_open: as for `tubes.tube_iou`.
        threads: CPU threads; None as for the engine. The result does not depend on it.

    Returns:
        float32 [K, N, N], 0 where a span is empty (below the diagonal, and elsewhere if a tube has fewer than N rows).

    Raises:
        InputError: `tubes.check_track` refuses a tube or the truth; the message says which.
    """
    N = _MAX_CLIPS(num_clips, "num_clips")
    tracks = [check_track(tube.frames, tube.boxes, f"tube {number}") for number, tube in enumerate(tubes)]
    frames, boxes = check_track(*truth, "truth")
    counts = [len(numbers) for numbers, _ in tracks]
    return ops.target_iou(
        boxes=np.concatenate([np.empty((0, 4)), *(corners for _, corners in tracks)]).astype(np.float64),
        starts=np.cumsum([0, *counts], dtype=np.int64),
        first_frames=np.array([numbers[0] for numbers, _ in tracks], np.int64),
        bounds=_bounds(counts, N),
        truth=np.ascontiguousarray(boxes, np.float64),
        truth_first_frame=int(frames[0]),
        half_open=half_open,
        threads=threads,
    )


def _bounds(counts: Sequence[int], num_clips: int) -> Int64:
    """First row of each clip and end of the last clip, int64 [K, N + 1], for tubes of `counts` rows."""
    clips = np.repeat(np.arange(num_clips, dtype=np.int32)[:, None], 2, axis=1)
    bounds = np.empty((len(counts), num_clips + 1), np.int64)
    for tube, count in enumerate(counts):
        spans = row_span(count, num_clips, clips)
        bounds[tube, :-1], bounds[tube, -1] = spans[:, 0], spans[-1, 1]
    return bounds
