"""Extractors that run a network on clips of frames, a batch of clips at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator

import numpy as np

from mmn_fast.arrays import Float32, Uint8
from mmn_fast.features.extractors.base import Extractor, check_frame

DEFAULT_BATCH = 8
"""Clips that a network takes at once: 77 MB of 16 frames of 224 pixels a side."""


class ClipExtractor(Extractor):
    """Prepares every frame when it arrives, keeps prepared frames until their clips are whole, and runs batches.

    Attributes:
        batch_size: clips of one run of the network.
    """

    batch_size: int = DEFAULT_BATCH

    @abstractmethod
    def prepare(self, frame: Uint8) -> Float32:
        """The network's input for one frame, float32 [3, h, w]; `frame` is uint8 [H, W, 3]."""

    @abstractmethod
    def run(self, clips: Float32) -> Float32:
        """Rows float32 [k, D] of clips, float32 [k, clip_frames, 3, h, w], 1 <= k <= `batch_size`."""

    def stream(self, frames: Iterable[Uint8]) -> Iterator[Float32]:
        batch: list[Float32] = []
        for clip in self._clips(frames):
            batch.append(clip)
            if len(batch) == self.batch_size:
                yield self.run(np.stack(batch))
                batch = []
        if batch:
            yield self.run(np.stack(batch))

    def _clips(self, frames: Iterable[Uint8]) -> Iterator[Float32]:
        """Yield clips [clip_frames, 3, h, w]; where the video ends inside a clip, its last frame is repeated."""
        length, stride = self.contract.clip_frames, self.contract.stride
        kept: list[Float32] = []
        start = count = 0  # the frame at which the next clip starts, and the frames that have arrived
        first: Uint8 | None = None
        for frame in frames:
            first = check_frame(frame, first) if first is None else first
            if count >= start:  # other frames are between two clips
                kept.append(self.prepare(check_frame(frame, first)))
            count += 1
            if len(kept) == length:
                yield np.stack(kept)
                start += stride
                kept = kept[stride:]
        if kept and (start == 0 or start - stride + length < count):
            yield np.stack(kept + [kept[-1]] * (length - len(kept)))
