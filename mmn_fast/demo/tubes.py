"""Simulates a detector and a tracker in the world of shapes: tubes, and sentences about one shape each.

Every shape gives a tube with slightly inexact boxes. Some tubes break, because the tracker loses the shape for a few
frames. Short tubes follow a shape loosely for a moment, or no shape at all. Only tubes of the shape that a sentence
names can be right; all others are distractors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmn_fast.arrays import Float32, Float64, Int64
from mmn_fast.demo.rendering import Frames
from mmn_fast.demo.scenes import FPS, Scene
from mmn_fast.demo.sentences import Sentence
from mmn_fast.demo.shapes import SPLITS, ShapesVideo, make_video
from mmn_fast.demo.tracks import BOX_SIDE, track_boxes, true_tube
from mmn_fast.features.extractors.pixels import PixelFeatures
from mmn_fast.tubes import Tube

_STREAM = 1  # tubes have their own stream of random numbers, so that the scene is the same with and without tubes
_BREAKS = 0.25  # share of tubes that break once
_LOST = (2, 5)  # frames that a broken tube misses, the second number excluded
_LATE = 4  # a tube begins up to this many frames late, and ends as many early
_SHORT = (3, 13)  # frames of a short tube: fewer than the 16 clips of a map
_JITTER, _LOOSE = 0.02, 0.1  # standard deviation of a corner, in sides of its box
_LEAST_TRUE = 4  # least frames of a true tube; fewer cannot be told from a detector's noise
_MARGIN = 4.0  # pixels around a box that features see too, so that jitter does not cut off a shape's outline
NOTHING = -1
"""Owner of a tube that follows no shape."""


@dataclass(frozen=True, eq=False)
class TubesVideo:
    """A video of shapes with its tubes, and the sentences that one tube can answer.

    Attributes:
        video: the video; `video.frames(BOX_SIDE)` has the boxes' pixels.
        tubes: K tubes in no order; each has one stream of features, float32 [ceil(n / 2), PixelFeatures.width].
        owners: per tube the number of its track in `video.scene.tracks`, or `NOTHING`.
        sentences: S sentences about one shape each, by start.
        truths: per sentence frames int64 [m] and boxes float64 [m, 4] of the named shape, during the sentence's fact.
    """

    video: ShapesVideo
    tubes: tuple[Tube, ...]
    owners: tuple[int, ...]
    sentences: tuple[Sentence, ...]
    truths: tuple[tuple[Int64, Float64], ...]


def make_tubes(split: str, seed: int, number: int) -> TubesVideo:
    """Make one video with tubes; it depends on the arguments alone.

    Args:
        split: one of `shapes.SPLITS`.
        seed: seed of the data set, >= 0.
        number: the video's number in its split, >= 0.

    Returns:
        The video of `make_video` for the same arguments, with its tubes.
    """
    video = make_video(split, seed, number)
    rng = np.random.default_rng([seed, SPLITS.index(split), number, _STREAM])
    found = _find(video.scene, rng)
    frames = video.frames()
    tubes = [Tube(numbers, boxes, [tube_features(frames, numbers, boxes)]) for _, numbers, boxes in found]
    told = [
        (sentence, truth)
        for sentence in video.sentences
        if len(sentence.fact.things) == 1 and len((truth := true_tube(video.scene, sentence.fact))[0]) >= _LEAST_TRUE
    ]
    return TubesVideo(
        video,
        tuple(tubes),
        tuple(owner for owner, _, _ in found),
        tuple(sentence for sentence, _ in told),
        tuple(truth for _, truth in told),
    )


def tube_features(frames: Frames, numbers: Int64, boxes: Float32) -> Float32:
    """Compute clip features of a tube: all pixels outside its boxes are painted in the video's median colour.

    The shape stays where it is in the frame, so that the features tell how it moves.

    Args:
        frames: the whole video, uint8 [F, H, W, 3].
        numbers: the tube's frames, int [n], within 0 to F - 1.
        boxes: float [n, 4], in pixels of frames of `BOX_SIDE` a side.

    Returns:
        float32 [ceil(n / 2), PixelFeatures.width].
    """
    height, width = frames.shape[1:3]
    scale = np.array([width, height, width, height]) / BOX_SIDE
    edges = (boxes + np.array([-_MARGIN, -_MARGIN, _MARGIN + 1, _MARGIN + 1])) * scale
    low, high = np.floor(edges[:, :2]).astype(int).clip(0), np.ceil(edges[:, 2:]).astype(int)
    shown = np.empty((len(numbers), height, width, 3), np.uint8)
    shown[:] = np.median(frames[0].reshape(-1, 3), axis=0)
    for row, (number, (left, top), (right, bottom)) in enumerate(zip(numbers, low, high, strict=True)):
        shown[row, top:bottom, left:right] = frames[number, top:bottom, left:right]
    return PixelFeatures(FPS)(shown)


_Found = tuple[int, Int64, Float32]


def _find(scene: Scene, rng: np.random.Generator) -> list[_Found]:
    """Simulate the detector: owner, frames and boxes of every tube, in no order."""
    found: list[_Found] = []
    for owner, track in enumerate(scene.tracks):
        frames, boxes = track_boxes(track, scene.num_frames)
        if len(frames) < _SHORT[0]:  # the shape never enters the frame
            continue
        for rows in _pieces(len(frames), rng):
            found.append((owner, frames[rows], _shaken(boxes[rows], _JITTER, rng)))
        if rng.random() < 0.25:
            rows = _some(len(frames), rng)
            found.append((owner, frames[rows], _shaken(boxes[rows], _LOOSE, rng)))
    if rng.random() < 0.5:
        frames = np.arange(scene.num_frames)[_some(scene.num_frames, rng)]
        side, left, top = rng.uniform(0.1, 0.25), *rng.uniform(0, 0.75, 2)
        box = np.array([left, top, left + side, top + side]) * BOX_SIDE
        found.append((NOTHING, frames, _shaken(np.repeat(box[None], len(frames), axis=0), _LOOSE, rng)))
    return [found[place] for place in rng.permutation(len(found))]


def _pieces(count: int, rng: np.random.Generator) -> list[slice]:
    """Draw the rows of a track's tube, or of the two pieces into which it breaks."""
    start, end = rng.integers(0, _LATE, 2)
    if count < 4 * _SHORT[1]:  # too short to lose anything
        return [slice(0, count)]
    end = count - end
    if rng.random() >= _BREAKS:
        return [slice(start, end)]
    middle = int(rng.integers(start + _SHORT[1], end - _SHORT[1]))
    return [slice(start, middle), slice(min(middle + int(rng.integers(*_LOST)), end - 1), end)]


def _some(count: int, rng: np.random.Generator) -> slice:
    """Draw a few consecutive rows out of `count`."""
    length = min(int(rng.integers(*_SHORT)), count)
    start = int(rng.integers(0, count - length + 1))
    return slice(start, start + length)


def _shaken(boxes: Float64, by: float, rng: np.random.Generator) -> Float32:
    """Add a detector's noise to every corner; boxes stay within the frame and at least a pixel wide and high."""
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    noisy = boxes + rng.normal(0, by, boxes.shape) * np.tile(sides, 2)
    low = noisy[:, :2].clip(0, BOX_SIDE - 2)
    high = np.maximum(noisy[:, 2:].clip(0, BOX_SIDE - 1), low + 1)
    return np.concatenate([low, high], axis=1).astype(np.float32)
