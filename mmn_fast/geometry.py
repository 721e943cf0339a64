"""Geometry of the sparse 2D map: which cells exist, their weights, and the cells that they depend on.

Everything follows from the preset alone and is computed once, in NumPy. Kernels read the result (the *proposal plan*)
and never derive it again. Cell (i, j) of the map is the proposal that covers clips i to j, both included; cells are
listed in row-major order everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from mmn_fast.arrays import Bool, Float32, Float64, Int32, Int64
from mmn_fast.presets import Preset
from mmn_fast.process.once import kept_property


def proposal_diagonals(num_clips: int, pooling_counts: Sequence[int]) -> list[tuple[range, range]]:
    """The diagonals of valid cells besides the main one, in the order of pooling.

    Level l keeps `pooling_counts[l]` diagonals at stride 2^l (2D-TAN, section 3.2): offsets grow by the stride, and
    along a diagonal only every stride-th cell exists.

    Args:
        num_clips: N.
        pooling_counts: diagonals per level.

    Returns:
        Per diagonal the row indices i and the column indices j, equally long.
    """
    diagonals, offset = [], 0
    for level, count in enumerate(pooling_counts):
        stride = 2**level
        for _ in range(count):
            offset += stride
            diagonals.append((range(0, num_clips - offset, stride), range(offset, num_clips, stride)))
    return diagonals


def pool_steps(pooling_counts: Sequence[int]) -> list[tuple[int, int]]:
    """Kernel and stride of the pool or learned convolution that makes each diagonal from the previous one.

    The step into every level after the first is (3, 2), a step within a level is (2, 1) (2D-TAN, section 3.2).

    Args:
        pooling_counts: diagonals per level, see `proposal_diagonals`.
    """
    return [
        (3, 2) if level and not number else (2, 1)
        for level, count in enumerate(pooling_counts)
        for number in range(count)
    ]


def diagonal_rows(num_clips: int, pooling_counts: Sequence[int]) -> Int64:
    """The row of each valid cell in a layout of rows: first the clips, then the diagonals one after the other.

    Args:
        num_clips: N.
        pooling_counts: diagonals per level, see `proposal_diagonals`.

    Returns:
        int64 [N, N]; -1 means that no cell exists.
    """
    row_of, count = np.full((num_clips, num_clips), -1), 0
    for rows, columns in [(range(num_clips),) * 2, *proposal_diagonals(num_clips, pooling_counts)]:
        row_of[list(rows), list(columns)] = np.arange(count, count + len(rows))
        count += len(rows)
    return row_of


def border(kernel: int, num_layers: int) -> int:
    """Zeros on each side of the 2D map that the first layer reads, so that L unpadded layers end at N x N."""
    return (kernel - 1) * num_layers // 2


def proposal_mask(num_clips: int, pooling_counts: Sequence[int]) -> Bool:
    """The valid cells of the 2D map.

    Args:
        num_clips: N.
        pooling_counts: diagonals per level, see `proposal_diagonals`.

    Returns:
        bool [N, N], true on valid cells; no cell below the diagonal is valid.
    """
    return diagonal_rows(num_clips, pooling_counts) >= 0


def proposal_cells(mask: Bool) -> Int32:
    """The true cells of a mask, int32 [P, 2] as (i, j), in row-major order."""
    return np.ascontiguousarray(np.argwhere(mask), np.int32)


def cells_to_moments(cells: Int32, duration_s: float | Float32 | Float64, num_clips: int) -> Float32:
    """Start and end of each cell, with the official evaluation's float32 arithmetic.

    Args:
        cells: int [P, 2] as (i, j).
        duration_s: length of the video in seconds; of each cell's own video, [P, 1]; or of B videos, [B, 1, 1].
        num_clips: N.

    Returns:
        float32 [P, 2] or [B, P, 2], seconds: [i, j + 1] * duration_s / N, each step rounded to float32 (IoUs at exactly
        the threshold are common on a grid, so the rounding decides).
    """
    grid = cells.astype(np.float32)
    grid[:, 1] += 1
    return grid * np.asarray(duration_s, np.float32) / np.float32(num_clips)


def temporal_iou(moments: npt.NDArray[np.floating], moment: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """IoU of spans with one span, as in the official evaluation: the union is the hull of both.

    Args:
        moments: [..., 2] start and end, seconds.
        moment: [2] start and end, seconds.

    Returns:
        [...] in the dtype of `moments`; NaN where both spans are empty at the same point.
    """
    moment = np.asarray(moment, dtype=moments.dtype)
    overlap = np.minimum(moments[..., 1], moment[1]) - np.maximum(moments[..., 0], moment[0])
    hull = np.maximum(moments[..., 1], moment[1]) - np.minimum(moments[..., 0], moment[0])
    with np.errstate(invalid="ignore"):
        return np.maximum(overlap, 0) / hull


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """The cells that one layer of the proposal convolution computes, and their inputs.

    Layers are numbered 1 to L; layer 0 is the 2D map itself. Layer l's map has side N + (k-1)(L-l); its cell
    (y, x) lies over cell (y - margin, x - margin) of the final map.

    Attributes:
        side: side of this layer's dense map.
        margin: cells by which this map extends over the final map on each side.
        weights: float32 [side, side], 1 / number of valid input cells under the kernel, 0 if there is none.
        cells: int32 [R, 2], the cells that some valid proposal depends on, row-major, in this layer's coordinates.
        neighbours: int32 [R, k*k], for each needed cell and tap the row of the previous layer's `cells` that the tap
            multiplies; -1 if the input is known to be zero. Tap t is kernel position (t // k, t % k).
    """

    side: int
    margin: int
    weights: Float32
    cells: Int32
    neighbours: Int32

    @kept_property
    def cell_weights(self) -> Float32:
        """float32 [R], the weight of each needed cell."""
        return np.ascontiguousarray(self.weights[self.cells[:, 0], self.cells[:, 1]])

    @kept_property
    def taps(self) -> Bool:
        """bool [R, k*k], true if the tap reads an input that is not known to be zero."""
        return self.neighbours >= 0


@dataclass(frozen=True, eq=False)
class ProposalPlan:
    """The static work list of the video branch.

    Attributes:
        num_clips: N.
        kernel: k.
        mask: bool [N, N], valid proposals.
        cells: int32 [P, 2], valid proposals in row-major order: the order of packed embeddings.
        inputs: int32 [R_0, 2], the cells of the 2D map that the first layer reads, row-major (a subset of `cells`).
        layers: one `LayerPlan` per convolution layer.
    """

    num_clips: int
    kernel: int
    mask: Bool
    cells: Int32
    inputs: Int32
    layers: tuple[LayerPlan, ...]

    @property
    def num_proposals(self) -> int:
        """P."""
        return len(self.cells)

    @property
    def border(self) -> int:
        """Zeros on each side of the 2D map that the first layer reads."""
        return border(self.kernel, len(self.layers))

    @kept_property
    def dense_taps(self) -> int:
        """Cell x tap products of the dense convolutions, all layers; one product is 2 C_in C_out FLOP."""
        return sum(layer.side**2 for layer in self.layers) * self.kernel**2

    @kept_property
    def cell_taps(self) -> int:
        """Cell x tap products when only needed cells are computed."""
        return sum(len(layer.cells) for layer in self.layers) * self.kernel**2

    @kept_property
    def exact_taps(self) -> int:
        """Cell x tap products when taps on known zeros are skipped as well."""
        return sum(int(layer.taps.sum()) for layer in self.layers)


@dataclass(frozen=True, eq=False)
class TileCover:
    """Square tiles of outputs that hold every needed cell of a layer, and the inputs under the tiles.

    Attributes:
        outputs: int32 [tiles, m * m], per tile the rows of the layer's `cells` in row-major order; -1 means that the
            cell is not needed. Every needed cell is in exactly one tile.
        inputs: int32 [tiles, n * n], n = m + k - 1, rows of the previous layer's `cells`; -1 means a zero input.
    """

    outputs: Int32
    inputs: Int32


def input_cells(plan: ProposalPlan, layer: int) -> Int32:
    """The cells that one layer reads, in coordinates where tap (y, x) of the layer's cell c reads cell c + (y, x).

    Args:
        plan: the plan.
        layer: index into `plan.layers`.

    Returns:
        int32 [R, 2], in the order of the previous layer's `cells`, or of `plan.inputs`.
    """
    if layer:
        return plan.layers[layer - 1].cells
    return plan.inputs + np.int32(plan.border)


def cover_with_tiles(plan: ProposalPlan, layer: int, m: int) -> TileCover:
    """Cover one layer's needed cells with m x m tiles, in bands of m rows.

    Args:
        plan: the plan.
        layer: index into `plan.layers`.
        m: side of a tile's outputs.

    Returns:
        The cover with the fewest tiles over all starts of the first band. Within a band each tile starts at the first
        uncovered cell, which gives the fewest tiles for a band.
    """
    here, n = plan.layers[layer], m + plan.kernel - 1
    below, side = input_cells(plan, layer), here.side + plan.kernel - 1
    # The far side gets a border of n, because the last tiles reach over the map's edge.
    row_in, row_out = np.full((2, side + 2 * n, side + 2 * n), -1, np.int32)
    row_in[below[:, 0], below[:, 1]] = np.arange(len(below))
    row_out[here.cells[:, 0], here.cells[:, 1]] = np.arange(len(here.cells))

    best: list[tuple[int, int]] = []
    top = int(here.cells[:, 0].min())
    for start in range(max(top - m + 1, 0), top + 1):
        origins = []
        for y in range(start, here.side, m):
            band = here.cells[(here.cells[:, 0] >= y) & (here.cells[:, 0] < y + m), 1]
            end = -1
            for x in np.unique(band).tolist():
                if x > end:
                    origins.append((y, x))
                    end = x + m - 1
        if not best or len(origins) < len(best):
            best = origins

    def rows_under(row_of: Int32, size: int) -> Int32:
        span = np.arange(size)
        origin = np.asarray(best)
        rows = row_of[origin[:, :1, None] + span[:, None], origin[:, 1:, None] + span]
        return np.ascontiguousarray(rows.reshape(len(best), size * size))

    return TileCover(outputs=rows_under(row_out, m), inputs=rows_under(row_in, n))


def layer_weights(mask: Bool, kernel: int, num_layers: int) -> list[Float32]:
    """Cell weights of every layer, the factors on the convolution's output.

    The first layer is padded by (k-1)L/2, the other layers are not padded. A cell's weight is 1 / number of valid input
    cells under its kernel, 0 if there is none; cells of positive weight are the next layer's valid cells.

    Args:
        mask: bool [N, N].
        kernel: k.
        num_layers: L.

    Returns:
        L arrays, float32 [side, side] with side = N + (k-1)(L-l) for layer l = 1..L.
    """
    valid, weights = np.pad(mask, border(kernel, num_layers)), []
    for _ in range(num_layers):
        count = np.lib.stride_tricks.sliding_window_view(valid, (kernel, kernel)).sum((2, 3), dtype=np.float32)
        valid = count > 0
        weights.append(np.divide(1, count, out=np.zeros_like(count), where=valid))
    return weights


@lru_cache(maxsize=32)
def proposal_plan(num_clips: int, pooling_counts: tuple[int, ...], kernel: int, num_layers: int) -> ProposalPlan:
    """Find the cells and taps that each layer needs, from the valid proposals backwards.

    Args:
        num_clips: N.
        pooling_counts: diagonals per level, see `proposal_diagonals`.
        kernel: k.
        num_layers: L; (k-1) L is even.

    Returns:
        The plan. Plans are shared: treat them as read-only.
    """
    mask = proposal_mask(num_clips, pooling_counts)
    weights = layer_weights(mask, kernel, num_layers)
    # The 2D map with the zero border that the first layer's padding adds counts as layer 0.
    valid = [np.pad(mask, border(kernel, num_layers))] + [weight > 0 for weight in weights]

    needed = [mask & valid[-1]]
    for below in reversed(valid[:-1]):
        # An input is needed if it is not known to be zero and lies under the kernel of some needed output.
        under = np.zeros_like(below)
        rows, columns = np.nonzero(needed[0])
        for tap in range(kernel**2):
            under[rows + tap // kernel, columns + tap % kernel] = True
        needed.insert(0, under & below)

    layers = []
    tap_y, tap_x = np.divmod(np.arange(kernel**2), kernel)
    for number, weight in enumerate(weights, start=1):
        row_of = np.full(needed[number - 1].shape, -1, np.int32)
        row_of[needed[number - 1]] = np.arange(needed[number - 1].sum(), dtype=np.int32)
        cells = proposal_cells(needed[number])
        layers.append(
            LayerPlan(
                side=len(weight),
                margin=(len(weight) - num_clips) // 2,
                weights=weight,
                cells=cells,
                neighbours=row_of[cells[:, :1] + tap_y, cells[:, 1:] + tap_x],
            )
        )
    inputs = proposal_cells(needed[0]) - border(kernel, num_layers)
    return ProposalPlan(num_clips, kernel, mask, proposal_cells(mask), inputs.astype(np.int32), tuple(layers))


def plan_for(preset: Preset) -> ProposalPlan:
    """The proposal plan of a preset; presets of the same geometry share one object."""
    return proposal_plan(preset.num_clips, preset.pooling_counts, preset.conv_kernel, preset.conv_layers)
