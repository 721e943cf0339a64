"""The work list of the gathering convolution: the taps that each tile of rows multiplies, and the order of the tiles.

A row is one needed cell of one video; rows are cell-major and video-minor, like activations. A tile of rows multiplies
the union of its rows' taps; under a tap that a row does not need, the row reads a cell that is known to be zero. Cells
are therefore ordered so that neighbours in the list need the same taps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from mmn_fast.arrays import Bool, Float32, Int32
from mmn_fast.geometry import LayerPlan, ProposalPlan
from mmn_fast.process.once import kept_property

# The kernel finds a word's lowest bit through the exponent of a float32, so words must stay positive. 81 taps fill
# three words.
WORD_BITS = 27
MAX_TAPS = 3 * WORD_BITS
ITEM_FIRST, ITEM_SPLIT, ITEM_TAPS, ITEM_WORDS = range(4)
"""Columns of `LayerSchedule.items`: first row, number of the share, number of taps, first word of the taps' bits."""


@dataclass(frozen=True, eq=False)
class LayerSchedule:
    """The tables that one layer's kernel reads.

    Attributes:
        side_in: side of the layer's dense input map; tap t of a cell lies (t // k) * side_in + t % k cells further.
        cells_in: int32 [R], first input cell under the kernel, in the order of the work list.
        cells_out: int32 [R], place of the result: a cell of the layer's dense map, or in the last layer a row of the
            plan's cells.
        cell_weights: float32 [R].
        items: int32 [tiles * splits, 3 + words], most taps first.
        rows: R * B.
        block_rows: rows of a tile.
        splits: consecutive shares of each tile's taps, as equal as possible; a share may be empty.
    """

    side_in: int
    cells_in: Int32
    cells_out: Int32
    cell_weights: Float32
    items: Int32
    rows: int
    block_rows: int
    splits: int

    @property
    def words(self) -> int:
        """Mask words of an item."""
        return self.items.shape[1] - ITEM_WORDS

    @kept_property
    def executed_taps(self) -> int:
        """Executed row x tap products, filler rows included; compare with `ProposalPlan.dense_taps` * B."""
        return int(self.items[:, ITEM_TAPS].sum()) * self.block_rows


def side_of_input(plan: ProposalPlan, number: int) -> int:
    """Side of the dense map that a layer reads; the first layer reads the 2D map with its zero border."""
    return plan.layers[number].side + plan.kernel - 1


def _orders(layer: LayerPlan) -> Iterator[npt.NDArray[np.signedinteger]]:
    """Yield orders of cells worth trying: by taps, by taps as a Gray code, along rows and along diagonals.

    Sorting by taps is best when a tile holds few cells of many videos; small maps of one video gain from near cells.
    """
    taps = layer.taps
    yield np.lexsort(taps.T[::-1])
    yield np.lexsort((np.cumsum(taps, axis=1) % 2).T[::-1])
    yield np.lexsort((np.cumsum(taps[:, ::-1], axis=1) % 2).T[::-1])
    yield np.arange(len(taps))
    yield np.lexsort((layer.cells[:, 0], layer.cells[:, 1] - layer.cells[:, 0]))


def _tile_taps(taps: Bool, videos: int, block_rows: int) -> Bool:
    """The taps that some row of each tile needs, bool [tiles, k*k], for cells in the given order."""
    first = np.arange(0, len(taps) * videos, block_rows)
    last = np.minimum(first + block_rows, len(taps) * videos) - 1
    sums = np.concatenate([np.zeros((1, taps.shape[1]), np.int32), np.cumsum(taps, axis=0, dtype=np.int32)])
    return sums[last // videos + 1] > sums[first // videos]


def _pack_words(taps: Bool) -> Int32:
    """Bits of taps, int32 [rows, words]: tap t is bit t % WORD_BITS of word t // WORD_BITS."""
    words = -(-taps.shape[1] // WORD_BITS)
    bits = np.zeros((len(taps), words * WORD_BITS), np.int32)
    bits[:, : taps.shape[1]] = taps
    weights = np.left_shift(1, np.arange(WORD_BITS, dtype=np.int32))
    return (bits.reshape(len(taps), words, WORD_BITS) * weights).sum(2, dtype=np.int32)


@lru_cache(maxsize=256)
def schedule_layer(plan: ProposalPlan, number: int, videos: int, block_rows: int, splits: int = 1) -> LayerSchedule:
    """Compute one layer's work list.

    Args:
        plan: the plan.
        number: index into `plan.layers`.
        videos: B.
        block_rows: rows of a tile.
        splits: shares of each tile's taps.

    Returns:
        The schedule with the order of cells that needs the fewest products; shared: treat it as read-only.

    Raises:
        ValueError: the kernel has more than `MAX_TAPS` taps, or a count is below 1.
    """
    if plan.kernel**2 > MAX_TAPS:
        raise ValueError(f"plan: expected a kernel of at most {MAX_TAPS} taps, got {plan.kernel**2}")
    for name, value in (("videos", videos), ("block_rows", block_rows), ("splits", splits)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    layer, last = plan.layers[number], number + 1 == len(plan.layers)
    options = [(order, _tile_taps(layer.taps[order], videos, block_rows)) for order in _orders(layer)]
    order, tile_taps = min(options, key=lambda option: int(option[1].sum()))

    counts = tile_taps.sum(1)
    rank = np.cumsum(tile_taps, axis=1) - 1
    items = []
    for split in range(splits):
        start, end = counts * split // splits, counts * (split + 1) // splits
        share = tile_taps & (rank >= start[:, None]) & (rank < end[:, None])
        first = np.arange(len(tile_taps)) * block_rows
        items.append(np.column_stack([first, np.full_like(first, split), share.sum(1), _pack_words(share)]))
    every = np.concatenate(items).astype(np.int32)
    every = every[np.argsort(-every[:, ITEM_TAPS], kind="stable")]

    cells, side_in = layer.cells[order], side_of_input(plan, number)
    places = order if last else cells[:, 0] * layer.side + cells[:, 1]
    return LayerSchedule(
        side_in=side_in,
        cells_in=np.ascontiguousarray(cells[:, 0] * side_in + cells[:, 1], np.int32),
        cells_out=np.ascontiguousarray(places, np.int32),
        cell_weights=np.ascontiguousarray(layer.cell_weights[order]),
        items=np.ascontiguousarray(every),
        rows=len(cells) * videos,
        block_rows=block_rows,
        splits=splits,
    )


def work_fraction(plan: ProposalPlan, videos: int, block_rows: int) -> float:
    """Products that the schedules of all layers execute, as a share of the dense convolutions' products."""
    layers = range(len(plan.layers))
    executed = sum(schedule_layer(plan, number, videos, block_rows).executed_taps for number in layers)
    return executed / (plan.dense_taps * videos)
