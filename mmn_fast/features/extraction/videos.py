"""Finds the videos that a user names: files, folders, lists of files, and patterns."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmn_fast.checks import is_unicode
from mmn_fast.errors import InputError
from mmn_fast.features.messages import is_video
from mmn_fast.storage.documents import read_text
from mmn_fast.storage.files import check_name

LISTS = (".txt", ".lst")
"""Suffixes of lists: text files with one video per line."""


@dataclass(frozen=True)
class VideoFile:
    """A video to extract features from.

    Attributes:
        video_id: the file's name without its suffix.
        path: the file.
    """

    video_id: str
    path: Path


def find_videos(named: Sequence[str | Path]) -> list[VideoFile]:
    """Find the videos that are named.

    Args:
        named: each a video file; a folder, whose videos are taken but not those of folders inside; a text file (.txt or
            .lst) with one path per line, relative to the text file's folder; or a pattern with `*`, `?`, `[...]` or
            `**`.

    Returns:
        The videos in the order of naming, in folders and patterns by name; a file that is named twice stands once.

    Raises:
        InputError: nothing is named, something is not there, a folder, list or pattern has no video, or two videos
            have one id.
    """
    if isinstance(named, (str, Path)):
        named = [named]
    found: dict[str, VideoFile] = {}
    for name in named:
        check_name(name, "videos")
        for path in _files_of(str(name)):
            video = VideoFile(_video_id(path), path)
            other = found.setdefault(video.video_id, video)
            if os.path.abspath(other.path) != os.path.abspath(path):
                raise InputError(
                    f"videos: expected one video per id, got {other.path} and {path}, both with the id"
                    f" {video.video_id!r}; rename one of them"
                )
    if not found:
        raise InputError("videos: expected at least one video, got none")
    return list(found.values())


def _files_of(name: str) -> Iterator[Path]:
    """The files that one name stands for; all of them exist."""
    path = Path(name)
    if path.is_dir():
        yield from _some(_videos_in(path), f"the folder {name}")
    elif path.is_file():
        if path.suffix.lower() in LISTS:
            yield from _some(_listed(path), f"the list {name}")
        else:
            yield path
    elif glob.has_magic(name) and not path.exists():
        matches = [Path(match) for match in sorted(glob.glob(name, recursive=True))]
        yield from _some([match for match in matches if match.is_file() and is_video(match)], f"the pattern {name}")
    elif path.exists():
        raise InputError(f"videos: {name}: expected a file or a folder, got something else")
    else:
        raise InputError(f"videos: {name}: no such file or folder")


def _some(files: list[Path], where: str) -> list[Path]:
    if not files:
        raise InputError(f"videos: {where} names no video")
    return files


def _videos_in(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"videos: {folder}: {error.strerror or error}") from None
    return [entry for entry in entries if is_video(entry) and not entry.name.startswith(".") and entry.is_file()]


def _listed(path: Path) -> list[Path]:
    lines = (line.strip() for line in read_text(path, f"videos: {path}").splitlines())
    files = [path.parent / line for line in lines if line]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise InputError(f"videos: {path}: {len(missing)} of its {len(files)} files do not exist, such as {missing[0]}")
    return files


def _video_id(path: Path) -> str:
    video_id = path.stem
    if not is_unicode(video_id) or video_id in (".", "..", ""):
        raise InputError(f"videos: {str(path)!r}: its name cannot be an id (it is not UTF-8); rename it")
    return video_id
