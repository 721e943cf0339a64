"""A library to try the service with: videos of the demo's world, drawn when the service starts."""

from __future__ import annotations

from pathlib import Path

from mmn_fast.demo.shapes import make_video, save_video
from mmn_fast.features.extractors.base import Extractor
from mmn_fast.index import MomentIndex
from mmn_fast.types import Video

_VIDEOS = 12
_SIDE, _SCALE = 128, 2  # frames are drawn small and enlarged: drawing takes longer than coding


def fill(index: MomentIndex, folder: Path, extractor: Extractor | None) -> dict[str, Path]:
    """Draw videos, write their files, and add them to an index.

    Args:
        index: an empty index of the demo's model.
        folder: folder to make for the files.
        extractor: the model's; None adds the features of the drawn frames and writes no file.

    Returns:
        id -> file.
    """
    files: dict[str, Path] = {}
    videos: list[Video] = []
    for number in range(_VIDEOS):
        drawn = make_video("test", 0, number)
        if extractor is None:
            videos.append(Video(drawn.features, drawn.duration_s, drawn.video_id))
            continue
        folder.mkdir(exist_ok=True)
        path = files[drawn.video_id] = folder / f"{drawn.video_id}.mp4"
        save_video(drawn.frames(_SIDE), path, _SCALE)
        videos.append(Video.open(path, extractor, video_id=drawn.video_id))
    index.add(videos)
    return files
