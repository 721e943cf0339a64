"""Renders a scene's tracks into RGB frames, with NumPy alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mmn_fast.arrays import Float32, Float64, Int64, Uint8
from mmn_fast.demo.scenes import FPS, Scene

Frames = Uint8

FRAME_SIZE = 64
_FRAMES_AT_ONCE = 8  # windows of 85 pixels a side (the page's size) stay in the second-level cache


def _box(x: Float64, y: Float64, half_x: Float64, half_y: Float64) -> Float64:
    return np.maximum(np.abs(x) - half_x, np.abs(y) - half_y)


def _star(x: Float64, y: Float64, r: Float64) -> Float64:
    sector = np.pi / 5
    angle = np.abs((np.arctan2(x, -y) + sector) % (2 * sector) - sector)
    length = np.hypot(x, y)
    # The edge from a tip (1.15, 0) to the notch at one sector's angle; its normal points outwards.
    notch = 0.5 * np.array([np.cos(sector), np.sin(sector)])
    edge = notch - np.array([1.15, 0.0])
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    return (length * np.cos(angle) - 1.15 * r) * normal[0] + length * np.sin(angle) * normal[1]


# Signed distance from each form's outline, negative inside; x, y and r are in pixels.
_DISTANCE: dict[str, Callable[[Float64, Float64, Float64], Float64]] = {
    "square": lambda x, y, r: _box(x, y, 0.82 * r, 0.82 * r),
    "circle": lambda x, y, r: np.hypot(x, y) - 0.95 * r,
    "triangle": lambda x, y, r: np.maximum(np.abs(x) * np.sqrt(0.75) - y * 0.5, y) - 0.57 * r,
    "star": _star,
    "ring": lambda x, y, r: np.abs(np.hypot(x, y) - 0.78 * r) - 0.22 * r,
    "cross": lambda x, y, r: np.minimum(_box(x, y, r, 0.34 * r), _box(x, y, 0.34 * r, r)),
}


def render(scene: Scene, size: int = FRAME_SIZE) -> Frames:
    """Render a scene.

    Args:
        scene: the scene.
        size: width and height of the frames in pixels.

    Returns:
        uint8 [num_frames, size, size, 3], RGB; frame f shows the time (f + 0.5) / `FPS`.
    """
    times = (np.arange(scene.num_frames) + 0.5) / FPS
    canvas = np.empty((scene.num_frames, size, size, 3), np.float32)
    canvas[:] = scene.background
    for track in scene.tracks:
        shown = np.flatnonzero(track.visible(times))
        numbers = track.at(times)[shown]
        for first in range(0, len(shown), _FRAMES_AT_ONCE):
            some = slice(first, first + _FRAMES_AT_ONCE)
            _draw(canvas, track.shape, shown[some], numbers[some])
    return np.rint(canvas * 255).astype(np.uint8)


def _draw(canvas: Float32, shape: str, frames: Int64, numbers: Float64) -> None:
    """Draw a shape on some frames of the canvas [num_frames, size, size, 3]; `Track.at` gave its numbers."""
    size = canvas.shape[1]
    x, y, r = numbers[:, 0] * size, numbers[:, 1] * size, np.exp(numbers[:, 2]) * size
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    reach = int(np.ceil(1.2 * r.max(initial=0))) + 1  # the tips of a star are 1.15 r from its middle
    offsets = np.arange(-reach, reach + 1)
    # Pixel centres of a window around the shape, relative to it and turned with it.
    dx = (column[:, None] + offsets + 0.5 - x[:, None])[:, None, :]
    dy = (row[:, None] + offsets + 0.5 - y[:, None])[:, :, None]
    cos, sin = np.cos(numbers[:, 3])[:, None, None], np.sin(numbers[:, 3])[:, None, None]
    distance = _DISTANCE[shape](dx * cos + dy * sin, dy * cos - dx * sin, r[:, None, None])
    alpha = np.clip(0.5 - distance, 0, 1).astype(np.float32)[..., None]  # [F, window, window, 1]
    rgb = numbers[:, 4:].astype(np.float32)
    for number, frame in enumerate(frames):
        top, left = row[number] - reach, column[number] - reach
        # The part of the window that is inside the frame; empty if the shape is outside.
        rows = slice(max(-top, 0), max(size - top, 0))
        columns = slice(max(-left, 0), max(size - left, 0))
        window = canvas[frame, max(top, 0) :, max(left, 0) :][
            : len(offsets) - rows.start, : len(offsets) - columns.start
        ]
        cover = alpha[number, rows, columns]
        if cover.size:
            window += cover * (rgb[number] - window)
