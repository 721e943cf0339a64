"""Computes boxes around the shapes of a scene, frame by frame, and finds the track that a sentence is about.

Boxes are corners (x1, y1, x2, y2) in pixels of frames with `BOX_SIDE` pixels a side; both corners are inside.
"""

from __future__ import annotations

import colorsys

import numpy as np

from mmn_fast.arrays import Float64, Int64
from mmn_fast.demo.scenes import COLOURS, FPS, Fact, Scene, Track

BOX_SIDE = 256
"""Side in pixels of the frames that boxes refer to; `shapes.save_video` writes files of this size."""

_LEAST_SIDE = 6.0  # pixels; no detector would find a smaller part of a shape at the frame's edge

# Corners of each form in units of its radius, before it turns; x to the right, y downwards.
_TIPS = np.arange(5) * 2 * np.pi / 5
_CORNERS: dict[str, Float64] = {
    "square": 0.82 * np.array([(-1.0, -1), (1, -1), (1, 1), (-1, 1)]),
    "triangle": 0.57 * np.array([(-np.sqrt(3), 1), (np.sqrt(3), 1), (0, -2)]),
    "star": 1.15 * np.stack([np.sin(_TIPS), -np.cos(_TIPS)], axis=1),
    "cross": np.array([(x, y) for a, b in ((1, 0.34), (0.34, 1)) for x in (-a, a) for y in (-b, b)]),
}
_REACH = {"circle": 0.95, "ring": 1.0}  # round forms look alike at any angle


def frame_times(num_frames: int) -> Float64:
    """Time that each frame shows, float64 [num_frames], seconds."""
    return (np.arange(num_frames) + 0.5) / FPS


def track_boxes(track: Track, num_frames: int) -> tuple[Int64, Float64]:
    """Compute the boxes of a shape in the frames that show it.

    A blinking shape keeps its boxes while it is dark, so that the frame numbers have no gaps.

    Args:
        track: the shape's course.
        num_frames: length of the scene in frames.

    Returns:
        Numbers of the frames, int64 [n] ascending, and boxes clipped to the frame, float64 [n, 4].
    """
    numbers = track.at(frame_times(num_frames))
    centre, radius, angle = numbers[:, None, :2], np.exp(numbers[:, 2, None]), numbers[:, 3, None]
    if track.shape in _CORNERS:
        x, y = _CORNERS[track.shape].T
        cos, sin = np.cos(angle), np.sin(angle)
        corners = np.stack([x * cos - y * sin, x * sin + y * cos], axis=-1) * radius[..., None]
    else:
        corners = _REACH[track.shape] * radius[..., None] * np.array([(-1.0, -1.0), (1.0, 1.0)])
    pixels = (centre + corners) * BOX_SIDE
    low, high = pixels.min(axis=1), pixels.max(axis=1) - 1  # the last pixel is inside
    boxes = np.concatenate([low, high], axis=1).clip(0, BOX_SIDE - 1)
    shown = np.flatnonzero((boxes[:, 2:] - boxes[:, :2] + 1 >= _LEAST_SIDE).all(axis=1))
    return shown, boxes[shown]


def track_of(scene: Scene, fact: Fact) -> int:
    """Find the track of the shape in a fact about one shape; return its number.

    A form and colour together are unique in a scene, and a shade stays within 4 degrees of its colour's hue.
    """
    (thing,) = fact.things
    meant = COLOURS[thing.colour][0] / 360

    def strangeness(number: int) -> float:
        track = scene.tracks[number]
        hue = colorsys.rgb_to_hsv(*track.at(np.array([fact.start_s]))[0, 4:])[0]
        apart = abs(hue - meant) % 1.0
        return min(apart, 1 - apart) + (track.shape != thing.shape)

    return min(range(len(scene.tracks)), key=strangeness)


def true_tube(scene: Scene, fact: Fact) -> tuple[Int64, Float64]:
    """Compute frames and boxes of a fact's shape during the fact, in the form of `track_boxes`; may be empty."""
    frames, boxes = track_boxes(scene.tracks[track_of(scene, fact)], scene.num_frames)
    times = frame_times(scene.num_frames)[frames]
    during = (times >= fact.start_s) & (times < fact.end_s)
    return frames[during], boxes[during]
