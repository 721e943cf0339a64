"""Images: PNG files by zlib alone, data URIs, sheets of video frames, and the colour scale of the maps."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
import numpy.typing as npt

from mmn_fast.arrays import Uint8

# viridis at nine equal steps: its lightness is even, so it reads without colour vision and in grey.
_SCALE = np.array(
    [
        (68, 1, 84),
        (71, 44, 122),
        (59, 81, 139),
        (44, 113, 142),
        (33, 144, 141),
        (39, 173, 129),
        (92, 200, 99),
        (170, 220, 50),
        (253, 231, 37),
    ],
    np.float64,
)

_FILTERS = (0, 2)  # PNG's filter numbers: 0 for none, 2 for the difference to the row above
_PROBE_ROWS = 64


def colours(values: npt.NDArray[np.floating]) -> Uint8:
    """The scale's colour of each value from 0 to 1 (other values are clipped), uint8 [..., 3]."""
    steps = np.linspace(0, 1, len(_SCALE))
    return np.stack([np.interp(values, steps, channel) for channel in _SCALE.T], axis=-1).round().astype(np.uint8)


def scale_stops() -> list[str]:
    """The scale's colours from 0 to 1 in equal steps, as CSS."""
    return [f"rgb({r:.0f},{g:.0f},{b:.0f})" for r, g, b in _SCALE]


def encode_png(pixels: Uint8) -> bytes:
    """Encode an image.

    Args:
        pixels: uint8 [H, W, 3] RGB or [H, W, 4] RGBA.

    Returns:
        The PNG file; the same pixels give the same bytes.
    """
    height, width, channels = pixels.shape
    rows = np.ascontiguousarray(pixels).reshape(height, width * channels)
    # Flat drawings pack best unfiltered, camera pictures as differences to the row above. A sample of rows decides.
    probe = rows[height // 2 : height // 2 + _PROBE_ROWS]
    number = min(_FILTERS, key=lambda one: len(zlib.compress(_filtered(probe, one).data, 6)))
    packed = zlib.compress(_filtered(rows, number).data, 6)
    colour_type = {3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    return b"".join([b"\x89PNG\r\n\x1a\n", _chunk(b"IHDR", header), _chunk(b"IDAT", packed), _chunk(b"IEND", b"")])


def _filtered(rows: Uint8, number: int) -> Uint8:
    """Rows [H, W] as PNG packs them: filter number, then the row (0: as it is, 2: minus the row above)."""
    lines = np.empty((len(rows), rows.shape[1] + 1), np.uint8)
    lines[:, 0], lines[:, 1:] = number, rows
    if number == 2:
        lines[1:, 1:] -= rows[:-1]
    return lines


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_uri(pixels: Uint8) -> str:
    """An image as a data: URI."""
    return "data:image/png;base64," + base64.b64encode(encode_png(pixels)).decode("ascii")


def shrink(frames: Uint8, max_width: int) -> Uint8:
    """Shrink frames to at most `max_width`, by means over whole blocks of pixels; uint8 [n, h, w, 3]."""
    count, height, width, _ = frames.shape
    factor = min(-(-width // max_width), height)
    if factor <= 1:
        return frames
    height, width = height // factor, width // factor
    blocks = frames[:, : height * factor, : width * factor].reshape(count, height, factor, width, factor, 3)
    return blocks.mean(axis=(2, 4)).round().astype(np.uint8)


def spread(count: int, at_most: int) -> list[int]:
    """Choose at most `at_most` of `count` frames, evenly spread: the middle frame of each equal share."""
    shown = min(count, at_most)
    return [(2 * share + 1) * count // (2 * shown) for share in range(shown)]


def sheet(frames: Uint8) -> tuple[Uint8, int]:
    """Put all frames on one image, row by row; also return the number of columns."""
    count, height, width, _ = frames.shape
    columns = int(np.ceil(np.sqrt(count * height / width)))
    columns = min(max(columns, 1), count)
    rows = -(-count // columns)
    page = np.zeros((rows * columns, height, width, 3), np.uint8)
    page[:count] = frames
    image = page.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    return image.reshape(rows * height, columns * width, 3), columns
