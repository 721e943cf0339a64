"""Rectangles of each layer's map that a dense convolution must compute, from the proposal plan. NumPy only.

A standard Conv node computes rectangles: the bands of `geometry_crops`. Bands read from a frame of the layer below.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmn_fast.geometry import ProposalPlan
from mmn_fast.geometry_crops import Box, crop_layer

# Fixed cost of one more Conv node, in cells: the node reads the layer's weights and k - 1 rows of input again.
# ActivityNet Captions in ONNX Runtime on a Zen 4 core takes 5.0 s with 16, 5.6 s with 64, 6.1 s with 256, and 7.8 s
# dense. On two threads 8 equals 16 there and takes 1 to 3 % less for Charades-STA; 2 and 4 save nothing more.
_CELLS_PER_BAND = 8


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
    """All layers in rectangles.

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


def crop(plan: ProposalPlan) -> Crops:
    """Cut every layer of a plan into bands, from the last layer backwards."""
    layers: list[CroppedLayer] = []
    frame: Box | None = None
    for layer in reversed(plan.layers):
        bands = tuple(crop_layer(layer.cells, _CELLS_PER_BAND))
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
