"""The data set of coloured shapes: videos by split, seed and number, and the files that everything else reads.

A video is a scene (`scenes`), its frames, and one sentence per fact (`sentences`). Combinations of colour, form and
action that `held_out` names happen only in the split `test_unseen`; every pair of the three happens in training.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from mmn_fast.demo.scenes import ACTION_NAMES, COLOURS, FPS, FRAME_SIZE, SHAPES, Frames, Scene, action_name, draw_scene
from mmn_fast.demo.scenes import render as render_scene
from mmn_fast.demo.sentences import Sentence, say, vocabulary
from mmn_fast.pixel_features import PixelFeatures
from mmn_fast.types import FloatArray, InputError
from mmn_fast.version import __version__

SPLITS = ("train", "val", "test", "test_unseen")
DEFAULT_COUNTS = {"train": 2000, "val": 100, "test": 200, "test_unseen": 100}
_VIDEO_SUFFIX = ".mp4"


@dataclass(frozen=True, eq=False)
class ShapesVideo:
    """A video of the data set.

    Attributes:
        video_id: "<split>-<seed>-<number>".
        scene: what happens.
        sentences: one per fact, in order of start; in `test_unseen` only those about held-out combinations.
    """

    video_id: str
    scene: Scene
    sentences: tuple[Sentence, ...]

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.scene.duration_s

    def frames(self, size: int = FRAME_SIZE) -> Frames:
        """The frames, uint8 [F, size, size, 3], RGB, at `scenes.FPS`; drawn anew by each call."""
        return render_scene(self.scene, size)

    @cached_property
    def features(self) -> FloatArray:
        """Clip features, float32 [n_clips, PixelFeatures.width]."""
        return PixelFeatures(FPS)(self.frames())

    def annotation(self) -> dict[str, Any]:
        """The video's entry in the official JSON layout."""
        return {
            "duration": self.duration_s,
            "timestamps": [[sentence.fact.start_s, sentence.fact.end_s] for sentence in self.sentences],
            "sentences": [sentence.text for sentence in self.sentences],
        }


def held_out(colour: str, shape: str, action: str) -> bool:
    """Whether a combination is kept for `test_unseen`: one in eight, spread so that every pair of the three is seen.

    Args:
        colour: one of `scenes.COLOURS`.
        shape: one of `scenes.SHAPES`.
        action: one of `scenes.ACTION_NAMES`.
    """
    numbers = list(COLOURS).index(colour), SHAPES.index(shape), ACTION_NAMES.index(action)
    return (numbers[0] + 2 * numbers[1] + 3 * numbers[2]) % 8 == 0


def make_video(split: str, seed: int, number: int) -> ShapesVideo:
    """Make one video; the same one for the same arguments, whatever else is made.

    Args:
        split: one of `SPLITS`; each has a stream of random numbers of its own.
        seed: seed of the data set, >= 0.
        number: the video's number in its split, >= 0.
    """
    if split not in SPLITS:
        raise InputError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    for name, value in (("seed", seed), ("number", number)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
            raise InputError(f"{name}: expected an integer >= 0, got {value!r}")
    rng = np.random.default_rng([seed, SPLITS.index(split), number])
    unseen = split == "test_unseen"
    while True:
        scene = draw_scene(rng, lambda *combination: unseen or not held_out(*combination))
        facts = [fact for fact in scene.facts if not fact.implied]
        if unseen:
            facts = [f for f in facts if all(held_out(t.colour, t.shape, action_name(f)) for t in f.things)]
        if facts:
            break
    return ShapesVideo(f"{split}-{seed}-{number:05}", scene, tuple(say(fact, scene, rng) for fact in facts))
