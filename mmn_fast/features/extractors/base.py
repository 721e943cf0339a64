"""What every extractor is: frames in, rows of features out, one video at a time and in bounded memory.

Symbols: H, W a frame's sides, D the width of a row, k rows of one step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmn_fast.arrays import Float32, Uint8
from mmn_fast.checks import in_bytes
from mmn_fast.errors import InputError
from mmn_fast.features.contract import FeatureContract
from mmn_fast.features.limits import MAX_BYTES

if TYPE_CHECKING:
    from mmn_fast.media import VideoReader


@dataclass(frozen=True, eq=False)
class ExtractedFeatures:
    """A video's features.

    Attributes:
        rows: float32 [n, D], n >= 1, in temporal order.
        duration_s: length of the video in seconds, found by decoding.
        lost: None, or a sentence that says which part was unreadable.
    """

    rows: Float32
    duration_s: float
    lost: str | None = None


class Extractor(ABC):
    """Makes features from a video's frames; `make_extractor` makes one.

    Attributes:
        contract: how the features are made.
        max_side: most pixels of a frame's longer side; the decoder shrinks larger frames. None for frames as they are.
        threads: threads of the decoder; 0 lets it choose.
    """

    contract: FeatureContract
    max_side: int | None = None
    threads: int = 0

    @property
    def width(self) -> int:
        """D, the length of a row."""
        return self.contract.width

    @abstractmethod
    def stream(self, frames: Iterable[Uint8]) -> Iterator[Float32]:
        """Make features of frames that arrive one by one.

        Args:
            frames: uint8 [H, W, 3], RGB, sampled at `contract.fps`, all of one size. At most a few clips are kept.

        Yields:
            float32 [k, D], k >= 1, in temporal order. All rows together are those that the contract describes. A last
            clip that the video's end cuts off is made of the frames that exist.

        Raises:
            InputError: a frame is something else, or has another size than the first one.
        """

    def read(
        self,
        path: str | Path,
        *,
        max_duration_s: float | None = None,
        progress: Callable[[float], object] | None = None,
    ) -> ExtractedFeatures:
        """Make the features of a video file.

        Args:
            path: a local video file.
            max_duration_s: refuse a longer video.
            progress: called with the seconds of video that are done, now and then.

        Raises:
            InputError: the file cannot be read or is no video, or its features take more than 2 GiB; the message names
                the file.
        """
        from mmn_fast.media import open_video

        with open_video(path, threads=self.threads, max_duration_s=max_duration_s) as video:
            parts: list[Float32] = []
            size = 0
            for rows in self.stream(self._sampled(video)):
                parts.append(rows)
                size += rows.nbytes
                if size > MAX_BYTES:
                    raise InputError(
                        f"{path}: expected at most {in_bytes(MAX_BYTES)} of one video's features, got more"
                    )
                if progress is not None:
                    progress(size / (4 * self.width) * self.contract.row_s)
            if not parts:
                raise InputError(f"{path}: expected a video with at least one frame, got none")
            assert video.duration_s is not None, "the frames were read to their end"
            return ExtractedFeatures(np.concatenate(parts), video.duration_s, video.lost)

    def _sampled(self, video: VideoReader) -> Iterator[Uint8]:
        """The sampled frames; of a video that ends before the first sampled time, its first frame."""
        none = True
        for _, frame in video.frames(self.contract.fps, max_side=self.max_side):
            none = False
            yield frame
        if none:
            yield from (frame for _, frame in video.frames_at([0.0], max_side=self.max_side))


def check_frame(frame: Uint8, first: Uint8 | None = None) -> Uint8:
    """Refuse a frame that is not uint8 [H, W, 3], or has another size than the first one."""
    frame = np.asarray(frame)
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3 or 0 in frame.shape:
        raise InputError(f"frames: expected uint8 [H, W, 3] with H, W >= 1, got {frame.dtype} {list(frame.shape)}")
    if first is not None and frame.shape != first.shape:
        raise InputError(f"frames: expected frames of one size, got {list(first.shape)} and {list(frame.shape)}")
    return frame
