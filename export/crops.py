"""Which rectangles of each layer's map a dense convolution has to compute, from the proposal plan. NumPy only.

A standard Conv node computes rectangles, so each layer is cut into bands of rows, and of each band only the columns
between its first and last needed cell are computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmn_fast.geometry import BoolArray, ProposalPlan

# What one more Conv node costs beside its cells, in cells: it reads the layer's weights and k - 1 rows of input again.
# ActivityNet Captions in ONNX Runtime on a Zen 4 core: 5.0 s with 16, 5.6 s with 64, 6.1 s with 256, dense 7.8 s.
_CELLS_PER_BAND = 16


@dataclass(frozen=True)
class Box:
    """Rows top..bottom and columns left..right of a layer's map, the ends not included."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def cells(self) -> int:
        """Cells in the box."""
        return (self.bottom - self.top) * (self.right - self.left)


@dataclass(frozen=True)
class CroppedLayer:
    """One layer in rectangles, in the coordinates of its own dense map (`geometry.LayerPlan`).

    Attributes:
        bands: from top to bottom, disjoint; they hold every needed cell.
        frame: what the next layer's bands read of this layer, known zeros included; of the last layer what its bands
            cover.
    """

    bands: tuple[Box, ...]
    frame: Box


@dataclass(frozen=True)
class Crops:
    """All layers in rectangles.

    Attributes:
        input_frame: what the first layer's bands read of the padded 2D map.
        layers: one per convolution layer.
    """

    input_frame: Box
    layers: tuple[CroppedLayer, ...]

    def work(self, plan: ProposalPlan) -> float:
        """Cells computed, as a share of the dense convolutions'."""
        return sum(band.cells for layer in self.layers for band in layer.bands) / sum(
            layer.side**2 for layer in plan.layers
        )


def crop(plan: ProposalPlan) -> Crops:
    """Cut every layer of a plan into bands, from the last layer backwards."""
    layers: list[CroppedLayer] = []
    frame: Box | None = None
    for layer in reversed(plan.layers):
        needed = np.zeros((layer.side, layer.side), dtype=bool)
        needed[layer.cells[:, 0], layer.cells[:, 1]] = True
        bands = _bands(needed)
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


def _bands(needed: BoolArray) -> tuple[Box, ...]:
    """The cheapest cut of a map's needed cells into bands of rows; rows without needed cells are in none."""
    rows = np.flatnonzero(needed.any(1))
    first = {int(r): int(needed[r].argmax()) for r in rows}
    last = {int(r): int(needed.shape[1] - needed[r, ::-1].argmax()) for r in rows}
    # best[r]: the least cost of all rows above r, and the bands that have it.
    best: dict[int, tuple[int, tuple[Box, ...]]] = {}
    start, stop = int(rows[0]), int(rows[-1]) + 1
    best[start] = (0, ())
    for end in range(start + 1, stop + 1):
        left, right = needed.shape[1], 0
        if end - 1 not in first:
            best[end] = best[end - 1]
            continue
        options = []
        for top in range(end - 1, start - 1, -1):
            left, right = min(left, first.get(top, left)), max(right, last.get(top, right))
            box = Box(top, end, left, right)
            cost, bands = best[top]
            options.append((cost + box.cells + _CELLS_PER_BAND, (*bands, box)))
        best[end] = min(options, key=lambda option: option[0])
    return best[stop][1]
