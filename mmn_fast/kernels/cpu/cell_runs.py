"""Runs of needed cells for the direct loop on AMX tiles, which multiplies one run at a time.

See csrc/cpu/kernels/products/run_products.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from mmn_fast.arrays import Bool, Int32
from mmn_fast.geometry import ProposalPlan, input_cells

RUN_CELLS = 16
_DIRECTIONS = ((0, 1), (1, 1))  # along a row, along a diagonal; runs along a column mirror runs along a row
# A tile product's cost by its number of cells, as a share of a full tile's. The measured cost stays the same below 7
# cells (benchmarks/NOTES.md).
_TILE_COST = tuple(0.6 + 0.4 * cells / RUN_CELLS for cells in range(RUN_CELLS + 1))


@dataclass(frozen=True, eq=False)
class CellRuns:
    """One layer's needed cells in tiles of up to 16 consecutive cells of a run; tiles come in pairs.

    Attributes:
        slots: int32 [slots], the grid of the inputs: rows of the previous layer's `cells`, -1 for a zero.
        outputs: int32 [tiles, 16], rows of the layer's `cells`, -1 after a tile's last cell. Tiles 2 p and 2 p + 1 are
            a pair with similar taps; the last tile may be empty.
        starts: int32 [tiles], the slot that a tile's first cell reads under tap 0.
        tile_taps: bool [tiles, taps], true if some input of the tile is not known to be zero.
        tap_offsets: int32 [taps], distance of each tap from tap 0, in slots.
        stride: slots from a cell of a run to the next cell.
    """

    slots: Int32
    outputs: Int32
    starts: Int32
    tile_taps: Bool
    tap_offsets: Int32
    stride: int

    @property
    def products(self) -> int:
        """Executed cell x tap products."""
        return int(((self.outputs >= 0).sum(1) * self.tile_taps.sum(1)).sum())

    @property
    def cost(self) -> float:
        """The time, as a number of products in full tiles."""
        cells = (self.outputs >= 0).sum(1)
        return float((np.take(_TILE_COST, cells) * self.tile_taps.sum(1)).sum()) * RUN_CELLS


@lru_cache(maxsize=128)
def cell_runs(plan: ProposalPlan, number: int) -> CellRuns:
    """Cut one layer's needed cells into runs, in the cheaper direction.

    Args:
        plan: the plan.
        number: index into `plan.layers`.

    Returns:
        The runs, shared: treat them as read-only.
    """
    return min((_along(plan, number, direction) for direction in _DIRECTIONS), key=lambda runs: runs.cost)


def _along(plan: ProposalPlan, number: int, direction: tuple[int, int]) -> CellRuns:
    layer, k = plan.layers[number], plan.kernel
    tiles = _tiles(layer.cells, layer.taps, direction)
    tiles = [tiles[n] for n in _pairs(np.stack([layer.taps[tile].any(0) for tile in tiles]))]

    origin = layer.cells.min(0)
    height, width = layer.cells.max(0) - origin + k
    width |= 1  # odd: rows of a power of two would share the same sets of a cache
    row_of = np.full((height, width), -1, np.int32)
    inputs = input_cells(plan, number) - origin
    inside = ((inputs >= 0) & (inputs < (height, width))).all(1)
    row_of[tuple(inputs[inside].T)] = np.flatnonzero(inside)

    tap_y, tap_x = np.divmod(np.arange(k**2, dtype=np.int32), k)
    outputs = np.full((len(tiles) + len(tiles) % 2, RUN_CELLS), -1, np.int32)
    starts = np.zeros(len(outputs), np.int32)
    tile_taps = np.zeros((len(outputs), k**2), np.bool_)
    for n, tile in enumerate(tiles):
        outputs[n, : len(tile)] = tile
        starts[n] = (layer.cells[tile[0]] - origin) @ (width, 1)
        tile_taps[n] = layer.taps[tile].any(0)
    stride = direction[0] * width + direction[1]
    return CellRuns(row_of.ravel(), outputs, starts, tile_taps, (tap_y * width + tap_x).astype(np.int32), int(stride))


def _tiles(cells: Int32, taps: Bool, direction: tuple[int, int]) -> list[npt.NDArray[np.intp]]:
    """Cut all cells into tiles of at most 16 consecutive cells, at the least cost."""
    line = cells[:, 0] * direction[1] - cells[:, 1] * direction[0]
    order = np.lexsort((cells[:, 1], line))
    joined = np.zeros(len(cells), np.bool_)  # whether a cell continues the previous cell's run
    joined[1:] = (np.diff(cells[order], axis=0) == direction).all(1)

    union, alive = taps[order], np.ones(len(cells), np.bool_)
    costs = np.full((RUN_CELLS + 1, len(cells)), np.inf)  # [size, cell]: cost of the tile of this size that ends here
    for size in range(1, RUN_CELLS + 1):
        if size > 1:
            alive = alive & np.roll(joined, size - 2)
            alive[: size - 1] = False
            union = union | np.roll(taps[order], size - 1, axis=0)
        costs[size, alive] = union[alive].sum(1) * _TILE_COST[size]

    best, sizes = np.zeros(len(cells) + 1), np.zeros(len(cells) + 1, np.intp)
    for end in range(1, len(cells) + 1):
        longest = min(RUN_CELLS, end)
        totals = costs[1 : longest + 1, end - 1] + best[end - longest : end][::-1]
        sizes[end] = totals.argmin() + 1
        best[end] = totals[sizes[end] - 1]
    found, end = [], len(cells)
    while end:
        found.append(order[end - sizes[end] : end])
        end -= sizes[end]
    return found[::-1]


def _pairs(tile_taps: Bool) -> list[int]:
    """Order tiles so that each pair shares many taps: every first tile is followed by its best match."""
    common = tile_taps.astype(np.int32) @ tile_taps.T.astype(np.int32)
    np.fill_diagonal(common, -1)
    order: list[int] = []
    for tile in np.argsort(-tile_taps.sum(1), kind="stable").tolist():
        if common[tile, tile] == -2:
            continue
        common[:, tile] = common[tile, tile] = -2
        order.append(tile)
        partner = int(common[tile].argmax())
        if common[tile, partner] >= 0:
            common[:, partner] = common[partner, partner] = -2
            order.append(partner)
    return order
