"""The boxes that hold every needed cell of a layer, for dense convolutions that are cropped to what is needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmn_fast.geometry import IntArray, ProposalPlan

# What one more convolution call costs beside its cells, in cells: at 600 TFLOP/s a cell of a 5 x 5 layer of 512
# channels takes 20 ns, a launch with its tail about 5 us.
_CELLS_PER_CALL = 256


@dataclass(frozen=True)
class Box:
    """Rows top to bottom - 1 and columns left to right - 1 of a layer's map (`geometry.LayerPlan`)."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def num_cells(self) -> int:
        """Cells in the box."""
        return (self.bottom - self.top) * (self.right - self.left)


def crop_layer(cells: IntArray, cells_per_call: int = _CELLS_PER_CALL) -> list[Box]:
    """Cut a layer into bands of rows, each as wide as its needed cells.

    Args:
        cells: int [R, 2], the needed cells, row-major.
        cells_per_call: what one more box costs, in cells.

    Returns:
        Disjoint boxes from top to bottom that hold every cell, of the band height that costs least in all.
    """
    top, bottom = int(cells[:, 0].min()), int(cells[:, 0].max()) + 1
    best: list[Box] = []
    for height in sorted({8, 16, 24, 32, 48, 64, bottom - top}):
        boxes = []
        for start in range(top, bottom, height):
            band = cells[(cells[:, 0] >= start) & (cells[:, 0] < start + height)]
            if len(band):
                columns = band[:, 1]
                rows = int(band[:, 0].min()), int(band[:, 0].max()) + 1
                boxes.append(Box(*rows, int(columns.min()), int(columns.max()) + 1))
        if not best or _cost(boxes, cells_per_call) < _cost(best, cells_per_call):
            best = boxes
    return best


def _cost(boxes: list[Box], cells_per_call: int) -> int:
    return sum(box.num_cells + cells_per_call for box in boxes)


def crop_plan(plan: ProposalPlan) -> list[list[Box]]:
    """The boxes of every layer, see `crop_layer`."""
    return [crop_layer(layer.cells) for layer in plan.layers]


def cropped_taps(plan: ProposalPlan) -> int:
    """Cell x tap products of the cropped convolutions, to compare with `ProposalPlan.dense_taps`."""
    return sum(box.num_cells for boxes in crop_plan(plan) for box in boxes) * plan.kernel**2


def border_of(plan: ProposalPlan) -> int:
    """Zeros on each side of the 2D map that the first layer reads."""
    return (plan.kernel - 1) * len(plan.layers) // 2


def padded_rows(plan: ProposalPlan, cells: IntArray) -> IntArray:
    """Rows of the zero-bordered map [(N + 2 border)^2] that cells of the 2D map stand in.

    Args:
        plan: gives N and the border.
        cells: int [R, 2] as (i, j).

    Returns:
        int32 [R].
    """
    border = border_of(plan)
    rows = (cells[:, 0] + border) * (plan.num_clips + 2 * border) + cells[:, 1] + border
    return np.ascontiguousarray(rows, np.int32)
