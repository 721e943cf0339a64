"""Boxes that hold every needed cell of a layer: dense convolutions are cropped to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmn_fast.arrays import Int32
from mmn_fast.geometry import ProposalPlan

# Fixed cost of one more convolution call on a GPU, in cell x tap products: at 600 TFLOP/s and 512 channels a product
# takes 0.9 ns, a launch with its tail about 5 us.
_TAPS_PER_CALL = 6400
# Fixed cost of one more Conv node of an exported graph, in cells: the node reads the layer's weights and k - 1 rows of
# input again. ActivityNet Captions in ONNX Runtime on a Zen 4 core takes 5.0 s with 16, 5.6 s with 64, 6.1 s with 256,
# and 7.8 s dense. On two threads 8 equals 16 there and takes 1 to 3 % less for Charades-STA; 2 and 4 save nothing more.
_CELLS_PER_NODE = 8


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


def crop_layer(cells: Int32, cells_per_box: int) -> list[Box]:
    """Cut a layer into bands of rows, each as wide as its needed cells, so that the total cost is least.

    Args:
        cells: int [R, 2], the needed cells, row-major, R >= 1.
        cells_per_box: fixed cost of one more box, in cells.

    Returns:
        Disjoint boxes from top to bottom that hold every needed cell; rows without needed cells are in no box.
    """
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for row, column in cells.tolist():
        first.setdefault(row, column)
        last[row] = column + 1
    start, stop = int(cells[0, 0]), int(cells[-1, 0]) + 1
    # best[r]: the least cost of all rows above r, and the boxes with this cost.
    best: dict[int, tuple[int, list[Box]]] = {start: (0, [])}
    for end in range(start + 1, stop + 1):
        if end - 1 not in first:
            best[end] = best[end - 1]
            continue
        left, right = first[end - 1], last[end - 1]
        options = []
        for top in range(end - 1, start - 1, -1):
            left, right = min(left, first.get(top, left)), max(right, last.get(top, right))
            box, (cost, boxes) = Box(top, end, left, right), best[top]
            options.append((cost + box.num_cells + cells_per_box, [*boxes, box]))
        best[end] = min(options, key=lambda option: option[0])
    return best[stop][1]


def crop_plan(plan: ProposalPlan) -> list[list[Box]]:
    """The boxes of every layer for a GPU, where each box is one convolution call; see `crop_layer`."""
    return [crop_layer(layer.cells, _TAPS_PER_CALL // plan.kernel**2) for layer in plan.layers]


def cropped_taps(plan: ProposalPlan) -> int:
    """Cell x tap products of the cropped convolutions, to compare with `ProposalPlan.dense_taps`."""
    return sum(box.num_cells for boxes in crop_plan(plan) for box in boxes) * plan.kernel**2


def padded_rows(plan: ProposalPlan, cells: Int32) -> Int32:
    """Rows of the 2D map's cells in the zero-bordered map [(N + 2 border)^2].

    Args:
        plan: gives N and the border.
        cells: int [R, 2] as (i, j).

    Returns:
        int32 [R].
    """
    border = plan.border
    rows = (cells[:, 0] + border) * (plan.num_clips + 2 * border) + cells[:, 1] + border
    return np.ascontiguousarray(rows, np.int32)


@dataclass(frozen=True)
class CroppedLayer:
    """One layer in rectangles, in the coordinates of its own dense map (`geometry.LayerPlan`).

    Attributes:
        bands: disjoint boxes from top to bottom; they hold every needed cell.
        frame: the part of this layer that the next layer's bands read, known zeros included; for the last layer, the
            part that its bands cover.
    """

    bands: tuple[Box, ...]
    frame: Box


@dataclass(frozen=True)
class Crops:
    """All layers in rectangles: each Conv node of an exported graph computes a band from a frame of the layer below.

    Attributes:
        input_frame: the part of the padded 2D map that the first layer's bands read.
        layers: one entry per convolution layer.
    """

    input_frame: Box
    layers: tuple[CroppedLayer, ...]

    def work(self, plan: ProposalPlan) -> float:
        """Computed cells as a share of the dense convolutions' cells."""
        return sum(band.num_cells for layer in self.layers for band in layer.bands) / sum(
            layer.side**2 for layer in plan.layers
        )


def framed_crops(plan: ProposalPlan) -> Crops:
    """Cut every layer of a plan into bands with their frames, from the last layer backwards; see `crop_layer`."""
    layers: list[CroppedLayer] = []
    frame: Box | None = None
    for layer in reversed(plan.layers):
        bands = tuple(crop_layer(layer.cells, _CELLS_PER_NODE))
        layers.insert(0, CroppedLayer(bands, frame or _hull(bands)))
        read = [
            Box(b.top, b.bottom + plan.kernel - 1, b.left, b.right + plan.kernel - 1) for b in bands
        ]  # an unpadded convolution reads k - 1 rows and columns beyond its output
        frame = _hull(tuple(read))
    assert frame is not None
    return Crops(frame, tuple(layers))


def _hull(boxes: tuple[Box, ...]) -> Box:
    return Box(
        min(b.top for b in boxes), max(b.bottom for b in boxes), min(b.left for b in boxes), max(b.right for b in boxes)
    )
