"""The video branch's training pass on existing cells only; gradients and BatchNorm statistics are those of the dense
pass.

In training mode BatchNorm averages over every cell of a layer's dense map. A cell whose window holds no valid input
equals the convolution's bias for every video: such cells are counted, not computed. All other cells enter the
statistics, even if no proposal needs them, so all of them are computed. This takes 49 to 57 % of the dense products,
because rows of taps on known zeros are skipped as well.

A layer's cells are stored as rows [R B + 1, C]: row r B + b is cell r of video b. The last row is zero; taps without a
valid input read it. Symbols as in `mmn_fast.model`; R cells of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mmn_fast.arrays import Bool, Int64
from mmn_fast.geometry import border, diagonal_rows, layer_weights, pool_steps, proposal_cells, proposal_mask
from mmn_fast.model import MMN, MomentMap
from mmn_fast.presets import Preset

# Values of gathered inputs per block (16 MiB of float32). A block stays in the cache between gather and product, and
# malloc recycles blocks of this size instead of mapping them page by page again and again.
_GATHERED_VALUES = 2**22


@dataclass(frozen=True, eq=False)
class TapGroup:
    """Cells that need the same rows of the kernel's taps.

    Attributes:
        cells: int64 [n], numbers of the cells.
        first: the first of k*k taps for which any cell has an input, a multiple of k.
        last: one past the last such tap, a multiple of k.
        sources: int64 [n, last - first], numbers of the cells that are read; R_in if the input is a known zero.
    """

    cells: Tensor
    first: int
    last: int
    sources: Tensor


@dataclass(frozen=True, eq=False)
class TrainingLayer:
    """The work of one layer of the proposal convolution.

    Attributes:
        num_inputs: R_in.
        num_cells: R.
        map_cells: cells of the dense map, side^2.
        cell_weights: float32 [R].
        forward: groups of this layer's cells; `sources` are the inputs that a cell reads.
        backward: groups of the inputs; `sources` are the cells that read an input. Tap t is the forward pass's tap t.
    """

    num_inputs: int
    num_cells: int
    map_cells: int
    cell_weights: Tensor
    forward: tuple[TapGroup, ...]
    backward: tuple[TapGroup, ...]


@dataclass(frozen=True, eq=False)
class TrainingPlan:
    """The work of the training pass.

    Attributes:
        map_order: int64 [P], for each valid cell of the 2D map in row-major order its index in the diagonals' order.
        layers: one `TrainingLayer` per layer.
        proposals: int64 [P], the last layer's cells that are proposals, in row-major order.
    """

    map_order: Tensor
    layers: tuple[TrainingLayer, ...]
    proposals: Tensor

    @property
    def products(self) -> int:
        """Cell x tap products of a forward pass: one is 2 C_in C_out FLOP."""
        return sum(group.sources.numel() for layer in self.layers for group in layer.forward)


@lru_cache(maxsize=8)
def training_plan(preset: Preset, device: torch.device) -> TrainingPlan:
    """Work out the training pass; plans are shared between callers, so treat a plan as read-only.

    Args:
        preset: the geometry.
        device: device of the index tensors.
    """
    kernel, layers = preset.conv_kernel, preset.conv_layers
    mask = proposal_mask(preset.num_clips, preset.pooling_counts)
    weights = layer_weights(mask, kernel, layers)
    valid = [np.pad(mask, border(kernel, layers))] + [weight > 0 for weight in weights]
    plans = []
    for below, weight in zip(valid[:-1], weights, strict=True):
        neighbours = _neighbours(below, weight > 0, kernel)
        num_inputs = int(below.sum())
        readers = np.full((num_inputs, kernel**2), len(neighbours))
        rows, taps = np.nonzero(neighbours < num_inputs)
        readers[neighbours[rows, taps], taps] = rows
        plans.append(
            TrainingLayer(
                num_inputs,
                len(neighbours),
                weight.size,
                torch.from_numpy(weight[weight > 0]).to(device),
                tuple(_groups(neighbours, num_inputs, kernel, device)),
                tuple(_groups(readers, len(neighbours), kernel, device)),
            )
        )
    number = np.full(mask.shape, -1)
    number[weights[-1] > 0] = np.arange((weights[-1] > 0).sum())
    return TrainingPlan(
        torch.from_numpy(_diagonal_places(preset)).to(device), tuple(plans), torch.from_numpy(number[mask]).to(device)
    )


def _neighbours(below: Bool, valid: Bool, kernel: int) -> Int64:
    """Number of the valid input that each valid cell reads at each tap, int64 [R, k*k]; R_in if there is none."""
    number = np.full(below.shape, int(below.sum()))
    number[below] = np.arange(below.sum())
    cells = proposal_cells(valid)
    tap_y, tap_x = np.divmod(np.arange(kernel**2), kernel)
    return number[cells[:, :1] + tap_y, cells[:, 1:] + tap_x]


def _groups(sources: Int64, absent: int, kernel: int, device: torch.device) -> Iterator[TapGroup]:
    """Group cells by the first and last row of the kernel in which they have an input.

    Groups use whole rows, because the taps of consecutive rows are consecutive in memory: a group's weights are a view.
    """
    in_row: Bool = np.any((sources < absent).reshape(len(sources), kernel, kernel), axis=2)  # [R, k]
    first, last = in_row.argmax(1), kernel - in_row[:, ::-1].argmax(1)
    for low, high in sorted(set(zip(first.tolist(), last.tolist(), strict=True))):
        cells = np.flatnonzero((first == low) & (last == high))
        taps = np.ascontiguousarray(sources[cells, low * kernel : high * kernel])
        yield TapGroup(
            torch.from_numpy(cells).to(device), low * kernel, high * kernel, torch.from_numpy(taps).to(device)
        )


def _diagonal_places(preset: Preset) -> Int64:
    row_of = diagonal_rows(preset.num_clips, preset.pooling_counts)
    return row_of[row_of >= 0]


def encode_video(
    model: MMN, pre_clips: Tensor, sync: dist.ProcessGroup | None = None, moves_statistics: bool = True
) -> tuple[Tensor, Tensor]:
    """Run `MMN.encode_video` in training mode, without the normalisation: gradients flow, running statistics move.

    Args:
        model: the model.
        pre_clips: [B, T, D].
        sync: processes that share BatchNorm's statistics; None uses only this process's batch.
        moves_statistics: whether this batch updates BatchNorm's running statistics.

    Returns:
        contrastive [B, P, J] and iou [B, P, J], not normalised, proposals in row-major order.
    """
    plan = training_plan(model.preset, pre_clips.device)
    num_videos, net = len(pre_clips), model.proposal_conv
    cells = _moment_cells(model.feat2d, model.featpool(pre_clips))[:, :, plan.map_order]  # [B, C, P]
    x = F.pad(cells.permute(2, 0, 1).flatten(0, 1), (0, 0, 0, 1))  # [P B + 1, C]
    for layer, conv, norm in zip(plan.layers, net.convs, net.bn, strict=True):
        x = _layer(x, conv, norm, layer, num_videos, sync, moves_statistics)
    proposals = x[:-1].unflatten(0, (-1, num_videos))[plan.proposals].transpose(0, 1)  # [B, P, C]
    branches = (net.conv1x1_contrastive, net.conv1x1_iou)
    contrastive, iou = (F.linear(proposals, branch.weight[:, :, 0, 0], branch.bias) for branch in branches)
    return contrastive, iou


def _moment_cells(feat2d: MomentMap, clips: Tensor) -> Tensor:
    """The 2D map's valid cells, diagonal by diagonal: [B, C, N] -> [B, C, P]."""
    if hasattr(feat2d, "convs"):
        steps = list(feat2d.convs)
    else:
        steps = [nn.MaxPool1d(*step) for step in pool_steps(feat2d.pooling_counts)]
    diagonals = [clips]
    for step in steps:
        diagonals.append(step(diagonals[-1]))
    return torch.cat(diagonals, -1)


def _layer(
    x: Tensor, conv: nn.Module, norm: nn.Module, plan: TrainingLayer, num_videos: int, sync: Any, moves_statistics: bool
) -> Tensor:
    """Convolution, BatchNorm, ReLU and cell weights: [R_in B + 1, C_in] -> [R B + 1, C_out]."""
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    out, mean, variance = _SparseLayer.apply(
        x, conv.weight, conv.bias, norm.weight, norm.bias, norm.eps, plan, num_videos, sync
    )
    if not moves_statistics:
        return out
    with torch.no_grad():
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        assert conv.bias is not None
        assert norm.momentum is not None
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_((mean + conv.bias).to(norm.running_mean.dtype), norm.momentum)
        norm.running_var.lerp_(variance.to(norm.running_var.dtype), norm.momentum)
    return out


class _SparseLayer(torch.autograd.Function):
    """One whole layer, so that the backward pass keeps only the input, the convolution's result and the output.

    BatchNorm removes the bias: outputs do not depend on the bias, its gradient is zero, and only the running mean
    includes it. Convolutions are computed without the bias, so a cell that is not computed has the value 0.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        gamma: Tensor,
        beta: Tensor,
        eps: float,
        plan: TrainingLayer,
        num_videos: int,
        sync: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        operand, matrix = x.to(dtype), _by_tap(weight).to(dtype)  # [C_out, k*k, C_in]
        u = _gather_products(operand, matrix.flatten(1).mT, plan.forward, plan.num_cells, num_videos)
        u = u.to(x.dtype)

        wide = torch.promote_types(u.dtype, torch.float32)
        count = plan.map_cells * num_videos
        sums = u.sum(0, dtype=wide)
        if sync is not None:
            totals = torch.cat([sums, sums.new_tensor([count])])
            dist.all_reduce(totals, group=sync)
            sums, count = totals[:-1], int(totals[-1])
        mean = sums / count
        # The variance is around the mean; cells that are not computed lie at 0.
        centred = u - mean
        squares = centred.square().sum(0) + (plan.map_cells * num_videos - len(u)) * mean.square()
        if sync is not None:
            dist.all_reduce(squares, group=sync)
        variance = squares / count
        inverse = (variance + eps).rsqrt()
        centred *= inverse  # `centred` is normalised from here on
        y = x.new_empty(len(u) + 1, u.shape[1])
        y[-1] = 0
        body = y[:-1]
        torch.addcmul(beta, centred, gamma, out=body)
        body.relu_()
        body.unflatten(0, (-1, num_videos)).mul_(plan.cell_weights.to(y.dtype)[:, None, None])
        ctx.save_for_backward(operand, matrix, centred, y, gamma, inverse)
        ctx.plan, ctx.num_videos, ctx.sync, ctx.count = plan, num_videos, sync, count
        ctx.needs = (x.dtype, weight.dtype)
        unbiased = variance * (count / max(count - 1, 1))
        ctx.mark_non_differentiable(mean, unbiased)
        return y, mean, unbiased

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        operand, matrix, normalised, y, gamma, inverse = ctx.saved_tensors
        plan, num_videos, count = ctx.plan, ctx.num_videos, ctx.count
        g = grad[:-1].unflatten(0, (-1, num_videos)) * plan.cell_weights.to(grad.dtype)[:, None, None]
        g = g.flatten(0, 1)
        g *= y[:-1] > 0
        d_beta = g.sum(0)
        d_gamma = (g * normalised).sum(0)
        sums = torch.stack([d_beta, d_gamma])
        if ctx.sync is not None:
            sums = sums.clone()
            dist.all_reduce(sums, group=ctx.sync)
        # d u = gamma / sigma (g - mean(g) - normalised mean(g normalised)), means over the whole map.
        g -= sums[0] / count
        g.addcmul_(normalised, -sums[1] / count)
        g *= gamma * inverse
        du = F.pad(g, (0, 0, 0, 1)).to(operand.dtype)

        width_in = matrix.shape[2]
        d_matrix = torch.zeros(matrix.shape, dtype=matrix.dtype, device=matrix.device)
        flat = d_matrix.flatten(1)
        for group in plan.forward:
            columns = slice(group.first * width_in, group.last * width_in)
            for cells, block in _gathered(operand, group, num_videos):
                flat[:, columns].addmm_(du[_rows(cells, num_videos)].mT, block)
        dx = None
        if ctx.needs_input_grad[0]:
            by_reader = matrix.transpose(0, 1).flatten(0, 1)  # [k*k C_out, C_in], for the transposed convolution
            dx = operand.new_zeros(len(operand), width_in)
            _gather_products(du, by_reader, plan.backward, plan.num_inputs, num_videos, out=dx)
            dx = dx.to(ctx.needs[0])
        k = round(matrix.shape[1] ** 0.5)
        d_weight = d_matrix.unflatten(1, (k, k)).permute(0, 3, 1, 2).to(ctx.needs[1])
        return dx, d_weight, torch.zeros_like(d_beta), d_gamma, d_beta, None, None, None, None


def _by_tap(weight: Tensor) -> Tensor:
    """View [C_out, C_in, k, k] as [C_out, k*k, C_in]; no copy for a channels-last weight."""
    return weight.permute(0, 2, 3, 1).contiguous().flatten(1, 2)


def _rows(cells: Tensor, num_videos: int) -> Tensor:
    """The rows of some cells: [n] -> [n B]."""
    return (cells[:, None] * num_videos + torch.arange(num_videos, device=cells.device)).flatten()


def _gathered(x: Tensor, group: TapGroup, num_videos: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield blocks of a group's cells, [n], with the inputs that they read, [n B, taps C]."""
    taps, width = group.last - group.first, x.shape[1]
    step = max(1, _GATHERED_VALUES // (taps * width * num_videos))
    videos = torch.arange(num_videos, device=x.device)[:, None]
    zero = len(x) - 1
    for start in range(0, len(group.cells), step):
        sources = group.sources[start : start + step]
        # clamp_: a source R_in (a known zero) becomes the last row, after the rows of all videos.
        rows = (sources[:, None] * num_videos + videos).clamp_(max=zero)  # [n, B, taps]
        yield group.cells[start : start + step], x.index_select(0, rows.flatten()).view(-1, taps * width)


def _gather_products(
    x: Tensor,
    matrix: Tensor,
    groups: tuple[TapGroup, ...],
    num_cells: int,
    num_videos: int,
    out: Tensor | None = None,
) -> Tensor:
    """Multiply each cell's inputs by the taps' weights.

    Args:
        x: [R_in B + 1, C_in], the last row is 0.
        matrix: [k*k C_in, C_out].
        groups: the inputs that each cell reads.
        num_cells: R.
        num_videos: B.
        out: [>= R B, C_out], memory for the result.

    Returns:
        [R B, C_out], or `out`.
    """
    width = x.shape[1]
    out = x.new_empty(num_cells * num_videos, matrix.shape[1]) if out is None else out
    for group in groups:
        taps = matrix[group.first * width : group.last * width]
        for cells, block in _gathered(x, group, num_videos):
            out[_rows(cells, num_videos)] = block @ taps
    return out
