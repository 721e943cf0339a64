"""Search of many videos on a CUDA device, with the operators that ground pairs. No GPU has run or measured it yet.

Every window meets every sentence: `pair_scores` fuses both branches in float32, `pair_top_moments` takes each pair's
best proposal. The few results per window are merged on the host. With device "cpu" the operators' twins run, for tests.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mmn_fast.arrays import Float32, Int32, Int64
from mmn_fast.kernels.cpu.search import BestVideos, Stored, StoredRows
from mmn_fast.kernels.gpu.moment_ops import pair_scores, pair_top_moments

_SCORES_AT_ONCE = 2**24  # three float32 arrays of this many values, 192 MiB


def search_moments_on(
    device: torch.device,
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
) -> None:
    """Merge a shard into the best videos of every sentence, as `kernels.cpu.search.search_moments` does.

    Rows are decoded to float32 on the device, and every score is computed; codes are not used. Scores differ from the
    CPU's by the rounding of float32, so videos whose scores are that close may change places.

    Args:
        device: a CUDA device, or the CPU for the twins.
        rows: as for `search_moments`, and so are all others.
        starts: first row of each window.
        videos: each window's video.
        windows: each window's number.
        proposals: P.
        text_contrastive: float32 [S, J].
        text_iou: float32 [S, J].
        fusion: "power" or "product".
        power: exponent of the power fusion.
        best: the result so far; the call changes it.
    """
    S = len(text_iou)
    if not len(starts) or not S:
        return
    text = [torch.from_numpy(np.ascontiguousarray(branch)).to(device) for branch in (text_contrastive, text_iou)]
    at_once = max(_SCORES_AT_ONCE // (S * proposals), 1)
    for part in _parts(videos, at_once):
        branches = [_windows_of(branch, starts[part], proposals, device) for branch in (rows.contrastive, rows.iou)]
        B = len(branches[0])
        pairs = torch.arange(B * S, dtype=torch.int32, device=device)
        places = torch.div(pairs, S, rounding_mode="floor").to(torch.int32), pairs % S
        fused = pair_scores(*branches, *text, *places, power, fusion == "product")[2]
        none = torch.zeros((proposals, 2), dtype=torch.int32, device=device)  # suppression does not touch the best one
        cells, scores = pair_top_moments(fused, none, torch.ones_like(fused[:, 0]), 1, 1, 1.0)
        found = [tensor[:, 0].view(B, S).cpu().numpy() for tensor in (cells, scores)]
        _merge(best, videos[part], windows[part], found[0], found[1])


def _parts(videos: Int64, at_once: int) -> Iterator[slice]:
    """Cut the windows into parts of about `at_once`; a video stays in one part."""
    first = 0
    while first < len(videos):
        last = int(np.searchsorted(videos, videos[min(first + at_once, len(videos)) - 1], "right"))
        inner = int(np.searchsorted(videos, videos[last - 1], "left"))
        last = inner if inner > first and last - first > at_once else last
        yield slice(first, last)
        first = last


def _windows_of(branch: Stored, starts: Int64, proposals: int, device: torch.device) -> Tensor:
    """Some windows' rows on the device, float32 [B, P, J]."""
    if (np.diff(starts) == proposals).all():
        chosen = branch[starts[0] : starts[-1] + proposals]
    else:
        chosen = np.concatenate([branch[start : start + proposals] for start in starts.tolist()])
    copy = torch.from_numpy(chosen if chosen.flags.writeable else chosen.copy()).to(device)
    return copy.float().view(len(starts), proposals, -1)


def _merge(best: BestVideos, videos: Int64, windows: Int64, cells: Int32, scores: Float32) -> None:
    """Merge each window's best proposals, cells and scores [B, S], into the best videos."""
    S, k = best.scores.shape
    scores = np.where((cells < 0) | (scores < best.least), -np.inf, scores).astype(np.float32)
    first = np.flatnonzero(np.diff(videos, prepend=-1))
    top = np.maximum.reduceat(scores, first, axis=0)  # [V, S]
    is_top = scores == np.repeat(top, np.diff(np.append(first, len(videos))), axis=0)
    rank = np.where(is_top, np.arange(len(videos))[:, None], len(videos))
    chosen = np.minimum.reduceat(rank, first, axis=0)  # the first window with the video's best score
    numbers = np.where(np.isfinite(top), videos[first][:, None], -1)
    for s in range(S):
        all_scores = np.concatenate([best.scores[s], top[:, s]])
        all_videos = np.concatenate([best.videos[s], numbers[:, s]])
        all_windows = np.concatenate([best.windows[s], windows[chosen[:, s]]])
        all_cells = np.concatenate([best.cells[s], cells[chosen[:, s], s]])
        order = np.lexsort((all_videos, -all_scores))[:k]
        there = np.isfinite(all_scores[order])
        best.scores[s] = all_scores[order]
        for held, found in ((best.videos, all_videos), (best.windows, all_windows), (best.cells, all_cells)):
            held[s] = np.where(there, found[order], -1)
