"""A preset's map of moments as text: a row per start, a column per end."""

from __future__ import annotations

import numpy as np

from mmn_fast.arrays import Bool

_BRAILLE = 0x2800
_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])  # of a character's 4 x 2 dots


def draw_map(mask: Bool, width: int, ascii_only: bool = False) -> list[str]:
    """Draw the valid cells of a map.

    A cell takes two characters if they fit; else a cell is a dot of a braille pattern (2 x 4 dots per character). If
    there are more cells than dots, a dot stands for a block of cells and shows if one of them is valid.

    Args:
        mask: bool [N, N], `ProposalPlan.mask`.
        width: most characters per line, >= 1.
        ascii_only: draw with "#" and "." alone.

    Returns:
        Lines without trailing blanks. Cells that end before they start are blank.
    """
    side = len(mask)
    if 2 * side <= width:
        valid, absent = ("##", " .") if ascii_only else ("██", " ·")
        rows = ("".join(valid if mask[i, j] else absent if j >= i else "  " for j in range(side)) for i in range(side))
        return [row.rstrip() for row in rows]
    if ascii_only:
        blocks = _in_blocks(mask, -(-side // width))
        return ["".join("#" if one else " " for one in row).rstrip() for row in blocks]
    blocks = _in_blocks(mask, -(-side // (2 * width)))
    dots = np.pad(blocks, ((0, -len(blocks) % 4), (0, -len(blocks) % 2)))
    tiles = dots.reshape(len(dots) // 4, 4, dots.shape[1] // 2, 2)
    codes = _BRAILLE + (tiles * _DOTS[:, None, :]).sum((1, 3))
    return ["".join(map(chr, row)).replace(chr(_BRAILLE), " ").rstrip() for row in codes.tolist()]


def _in_blocks(mask: Bool, size: int) -> Bool:
    """Whether any cell is valid, per block of size x size cells."""
    padded = np.pad(mask, (0, -len(mask) % size))
    count = len(padded) // size
    blocks = padded.reshape(count, size, count, size).any((1, 3))
    return np.asarray(blocks)
