"""From a decoded frame to a network's input: resize, central crop, scale, normalise.

Pillow resizes, because the published image networks were trained on its filters: it widens a filter when it shrinks an
image (antialiasing), in 8 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmn_fast.arrays import Float32, Uint8
from mmn_fast.errors import InputError
from mmn_fast.features.contract import FILTERS

# Pillow's numbers of its filters.
FILTER_NUMBERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
assert set(FILTER_NUMBERS) == set(FILTERS)


def need_pillow() -> Any:
    """The module `PIL.Image`.

    Raises:
        InputError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise InputError("extractor: resizing frames needs Pillow (pip install mmn_fast[video])") from None
    return Image


@dataclass(frozen=True)
class FrameSteps:
    """What is done to every frame; the fields are those of `FeatureContract`.

    Attributes:
        resize: the sides after the resize, and the filter (bilinear if not said); None for no resize.
        crop: "height" and "width" of the central crop; None for no crop.
        scale: factor of a pixel's value; None for 1.
        mean: value per colour that is subtracted after scaling.
        std: value per colour that divides the difference.
        colour: "rgb" or "bgr"; `mean` and `std` are in this order.
    """

    resize: Mapping[str, Any] | None = None
    crop: Mapping[str, int] | None = None
    scale: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    colour: str = "rgb"

    def size(self) -> tuple[int, int] | None:
        """Height and width of the result; None if they depend on the video."""
        if self.crop is not None:
            return self.crop["height"], self.crop["width"]
        if self.resize is not None and "height" in self.resize:
            return self.resize["height"], self.resize["width"]
        return None

    def __call__(self, frame: Uint8) -> Float32:
        """Prepare a frame.

        Args:
            frame: uint8 [H, W, 3], RGB.

        Returns:
            float32 [3, h, w].

        Raises:
            InputError: the frame is smaller than the crop, or Pillow is not installed.
        """
        frame = self._cropped(self._resized(frame))
        if self.colour == "bgr":
            frame = frame[..., ::-1]
        values = frame.astype(np.float32)
        if self.scale is not None:
            values *= np.float32(self.scale)
        if self.mean is not None:
            values -= np.asarray(self.mean, np.float32)
        if self.std is not None:
            values /= np.asarray(self.std, np.float32)
        return np.ascontiguousarray(values.transpose(2, 0, 1))

    def _resized(self, frame: Uint8) -> Uint8:
        if self.resize is None:
            return frame
        sides = resized_sides(frame.shape[0], frame.shape[1], self.resize)
        if sides == frame.shape[:2]:
            return frame
        image = need_pillow().fromarray(np.ascontiguousarray(frame))
        number = FILTER_NUMBERS[self.resize.get("filter", "bilinear")]
        return np.asarray(image.resize((sides[1], sides[0]), number))

    def _cropped(self, frame: Uint8) -> Uint8:
        if self.crop is None:
            return frame
        height, width = self.crop["height"], self.crop["width"]
        if height > frame.shape[0] or width > frame.shape[1]:
            raise InputError(
                f"frames: expected at least {width} x {height} pixels to crop after the resize, got"
                f" {frame.shape[1]} x {frame.shape[0]}"
            )
        top, left = (frame.shape[0] - height) // 2, (frame.shape[1] - width) // 2
        return frame[top : top + height, left : left + width]


def resized_sides(height: int, width: int, resize: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width after a resize; the aspect is kept unless both sides are given.

    A side that follows from the other one is rounded down, as torchvision and transformers round it.
    """
    if "height" in resize:
        return resize["height"], resize["width"]
    short, long = min(height, width), max(height, width)
    if "shortest_edge" in resize:
        new_short = resize["shortest_edge"]
        new_long = int(new_short * long / short)
        if "longest_edge" in resize and new_long > resize["longest_edge"]:
            new_long = resize["longest_edge"]
            new_short = int(new_long * short / long)
    else:
        new_long = resize["longest_edge"] if "longest_edge" in resize else min(long, resize["max_side"])
        new_short = int(new_long * short / long)
    new_short = max(new_short, 1)
    return (new_short, new_long) if height <= width else (new_long, new_short)
