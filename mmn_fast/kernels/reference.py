"""The specification: every op in plain PyTorch, written to be read.

Fast kernels take the same arguments and are compared with these functions in float64. Symbols:
B videos, T pre-clips, N clips, D input width, C hidden width, J joint width, P proposals, S sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmn_fast.arrays import Float64, Int64
from mmn_fast.geometry import ProposalPlan, pool_steps, proposal_diagonals


def clip_pool(pre_clips: Tensor, weight: Tensor, bias: Tensor, kernel: int, stride: int) -> Tensor:
    """Project pre-clips to the hidden width and average them into clips.

    Equivalent to:
        F.avg_pool1d(F.conv1d(pre_clips.mT, weight, bias).relu(), kernel, stride)

    Args:
        pre_clips: [B, T, D].
        weight: [C, D, 1].
        bias: [C].
        kernel: pre-clips averaged per clip.
        stride: pre-clips between clips, T // N.

    Returns:
        [B, C, N].
    """
    return F.avg_pool1d(F.conv1d(pre_clips.mT, weight, bias).relu(), kernel, stride)


def sparse_max_pool(clips: Tensor, pooling_counts: Sequence[int]) -> Tensor:
    """Build the sparse 2D map by chained max pools (2D-TAN, section 3.2).

    Args:
        clips: [B, C, N].
        pooling_counts: diagonals per stride level; the first pool of every level after the first is (3, 2).

    Returns:
        [B, C, N, N]: at a valid cell (i, j) the maximum over clips i..j, elsewhere 0.
    """
    steps = [partial(F.max_pool1d, kernel_size=kernel, stride=stride) for kernel, stride in pool_steps(pooling_counts)]
    return scatter_diagonals(clips, steps, pooling_counts)


def scatter_diagonals(
    clips: Tensor, steps: Sequence[Callable[[Tensor], Tensor]], pooling_counts: Sequence[int]
) -> Tensor:
    """Lay clips on the main diagonal and each step's result on the next valid diagonal.

    Args:
        clips: [B, C, N].
        steps: one callable [B, C, n] -> [B, C, m] per diagonal: a max pool or a learned Conv1d.
        pooling_counts: diagonals per stride level.

    Returns:
        [B, C, N, N], 0 outside the valid cells.
    """
    num_videos, width, num_clips = clips.shape
    map2d = clips.new_zeros(num_videos, width, num_clips, num_clips)
    every = torch.arange(num_clips, device=clips.device)
    map2d[:, :, every, every] = clips
    for step, (rows, columns) in zip(steps, proposal_diagonals(num_clips, pooling_counts), strict=True):
        clips = step(clips)
        map2d[:, :, list(rows), list(columns)] = clips
    return map2d


def proposal_conv_layer(x: Tensor, weight: Tensor, bias: Tensor, cell_weights: Tensor, padding: int) -> Tensor:
    """One layer of the proposal convolution over the whole map, BatchNorm folded into weight and bias.

    Equivalent to:
        F.conv2d(x, weight, bias, padding=padding).relu() * cell_weights

    Args:
        x: [B, C_in, M, M].
        weight: [C_out, C_in, k, k].
        bias: [C_out].
        cell_weights: [M', M'], 1 / number of valid inputs under the kernel, 0 where there is none.
        padding: zeros added on each side: (k-1)L/2 in the first layer, 0 in the others.

    Returns:
        [B, C_out, M', M'].
    """
    return F.conv2d(x, weight, bias, padding=padding).relu() * cell_weights


def proposal_conv_packed(
    inputs: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], plan: ProposalPlan
) -> Tensor:
    """The whole proposal convolution on the plan's cells and taps only, BatchNorm folded.

    Args:
        inputs: [B, R_0, C_0], the 2D map at `plan.inputs`.
        weights: per layer [C_out, C_in, k, k].
        biases: per layer [C_out].
        plan: what to compute; see `geometry.ProposalPlan`.

    Returns:
        [B, P, C]: the last layer's output at `plan.cells`, equal to the dense layers' output there.
    """
    x = inputs
    for layer, weight, bias in zip(plan.layers, weights, biases, strict=True):
        total = bias.expand(x.shape[0], len(layer.cells), -1).clone()
        for tap, matrix in enumerate(weight.flatten(2).unbind(2)):
            rows = torch.from_numpy(layer.taps[:, tap]).nonzero()[:, 0].to(x.device)
            sources = torch.from_numpy(layer.neighbours[:, tap]).to(x.device)[rows].long()
            total[:, rows] += x.index_select(1, sources) @ matrix.mT
        x = total.relu() * torch.from_numpy(layer.cell_weights).to(x)[:, None]
    return x


def match_scores(
    video_contrastive: Tensor, video_iou: Tensor, text_contrastive: Tensor, text_iou: Tensor
) -> tuple[Tensor, Tensor]:
    """Match every sentence with every proposal of one video (paper, section 3.2).

    Sentences are scored one at a time and each score is a sum over J alone, so a score does not depend on the other
    sentences in the call.

    Args:
        video_contrastive: [P, J], unit norm over J.
        video_iou: [P, J], unit norm over J.
        text_contrastive: [S, J], unit norm over J.
        text_iou: [S, J], unit norm over J.

    Returns:
        contrastive [S, P], the cosine; iou [S, P], sigmoid(10 cosine).
    """
    contrastive = [(video_contrastive * sentence).sum(-1) for sentence in text_contrastive]
    iou = [(10 * (video_iou * sentence).sum(-1)).sigmoid() for sentence in text_iou]
    empty = video_contrastive.new_empty(0, len(video_contrastive))
    return (torch.stack(contrastive), torch.stack(iou)) if contrastive else (empty, empty.clone())


def temporal_nms(scores: Tensor, moments: Tensor, iou_threshold: float, top_k: int) -> Tensor:
    """The best moments of each sentence after greedy non-maximum suppression, as in the official evaluation.

    Scores of exactly 0 are no candidates. Candidates are visited by descending score, equal scores by ascending
    index. A candidate is dropped if its IoU with a kept candidate is strictly greater than the threshold. IoU divides
    the overlap by the hull of both spans, in the dtype of `moments`.

    Args:
        scores: [S, P].
        moments: [P, 2], start and end in seconds.
        iou_threshold: IoU above which the worse of two moments is dropped.
        top_k: moments to return per sentence.

    Returns:
        int64 [S, top_k]: indices into P, best first, then -1.
    """
    kept = torch.full((len(scores), top_k), -1, dtype=torch.int64)
    for row, score in enumerate(scores):
        order = score.argsort(descending=True, stable=True)
        candidates = order[score[order] != 0].tolist()
        count = 0
        while candidates and count < top_k:
            best = candidates[0]
            kept[row, count] = best
            count += 1
            rest = torch.tensor(candidates[1:], dtype=torch.int64)
            start, end = moments[rest].unbind(-1)
            overlap = torch.minimum(end, moments[best, 1]) - torch.maximum(start, moments[best, 0])
            hull = torch.maximum(end, moments[best, 1]) - torch.minimum(start, moments[best, 0])
            candidates = rest[~(overlap.clamp(min=0) / hull > iou_threshold)].tolist()
    return kept


def target_iou(
    tubes: Sequence[tuple[Int64, Float64]], truth: tuple[Int64, Float64], num_clips: int, half_open: bool = False
) -> Float64:
    """Compute the vIoU of every span of every tube with the true tube, frame by frame, in NumPy.

    Args:
        tubes: K pairs of consecutive frames [n] and boxes [n, 4], x1, y1, x2, y2.
        truth: such a pair.
        num_clips: N.
        half_open: the width of a box is x2 - x1; otherwise x2 - x1 + 1. Its height likewise.

    Returns:
        [K, N, N]; 0 where a cell stands for no row.
    """
    extent, target = 0.0 if half_open else 1.0, np.zeros((len(tubes), num_clips, num_clips))
    true_boxes = dict(zip(truth[0].tolist(), truth[1], strict=True))
    for t, (frames, boxes) in enumerate(tubes):
        for i in range(num_clips):
            for j in range(i, num_clips):
                ends = np.array([i, j + 1], np.float32) / np.float32(num_clips) * np.float32(len(frames))
                start, end = np.rint(ends).astype(int)
                rows = zip(frames[start:end].tolist(), boxes[start:end], strict=True)
                ious = [_box_iou(box, true_boxes[frame], extent) for frame, box in rows if frame in true_boxes]
                if ious:
                    hull = max(frames[end - 1], truth[0][-1]) - min(frames[start], truth[0][0]) + 1
                    target[t, i, j] = len(ious) / hull * np.mean(ious)
    return target


def _box_iou(a: Float64, b: Float64, extent: float) -> float:
    sides = np.maximum(np.minimum(a[2:], b[2:]) + extent - np.maximum(a[:2], b[:2]), 0)
    overlap = float(sides.prod())
    union = float((a[2:] - a[:2] + extent).prod() + (b[2:] - b[:2] + extent).prod()) - overlap
    return overlap / union if union > 0 else 0.0
