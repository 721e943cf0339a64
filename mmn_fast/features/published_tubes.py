"""The published files of HC-STVG's official solution: tubes, prepared videos and features of their tubes, as pickles.

`storage.pickles` reads them, so nothing in them runs. Tubes come in two forms: `<video>_tubes.pkl` as the detector
wrote them, and prepared files `<video>.pkl`, which hold the sentence and the true tube too. Features come in two forms
as well: one file per stream with the rows of every tube, and one folder per stream with averaged pre-clips per video.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmn_fast.arrays import Bool, described
from mmn_fast.checks import Integer, Text, in_bytes, shown
from mmn_fast.errors import InputError
from mmn_fast.features.files import check_file
from mmn_fast.features.limits import MAX_BYTES
from mmn_fast.features.messages import close_to, listed
from mmn_fast.features.tubes import video_id_of
from mmn_fast.storage.pickles import MAX_FILE, read_pickle
from mmn_fast.tubes import Tube, check_track

MAX_VIDEO = 2 * 2**30
"""Most bytes of one video's file; the published ones have a megabyte."""
_NOWHERE = -1e9
_SENTENCE = Text(most=100_000)
_TUBES = "_tubes.pkl"


@dataclass(frozen=True, eq=False)
class PublishedVideo:
    """One video's tubes as published.

    Attributes:
        video_id: the video's id, without an extension.
        file_name: its name with the extension; .mp4, as all of the data set's, where the files do not tell.
        tubes: its tubes, without features.
        sentence: the sentence, in prepared files.
        truth: frames int64 [F] and boxes float [F, 4] of the true tube, in prepared files that are not of the test.
        inverted: boxes of the true tube that `moved_away` moved.
    """

    video_id: str
    file_name: str
    tubes: list[Tube]
    sentence: str | None = None
    truth: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None
    inverted: int = 0


def moved_away(boxes: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], int]:
    """Move true boxes with x2 < x1 or y2 < y1 to where they overlap nothing, as in the official evaluation.

    Some annotations have negative widths or heights. The official code computes an intersection of 0 with them.

    Args:
        boxes: float [n, 4], x1, y1, x2, y2.

    Returns:
        The boxes, one pixel far outside the picture in the place of each such box, and how many these are.
    """
    inverted: Bool = np.asarray((boxes[:, 2:] < boxes[:, :2]).any(axis=1))
    return np.where(inverted[:, None], np.asarray(_NOWHERE, boxes.dtype), boxes), int(inverted.sum())


def published_files(folder: Path, argument: str) -> dict[str, Path]:
    """Files of a folder by video: `<video>_tubes.pkl` or `<video>.pkl`, where <video> may keep its extension.

    Raises:
        InputError: no such folder, no such file in it, or two files of one video.
    """
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix == ".pkl" and not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"{argument}: {folder}: {error.strerror or error}") from None
    if not files:
        raise InputError(f"{argument}: {folder}: expected files <video>{_TUBES} or <video>.pkl, got none")
    found: dict[str, Path] = {}
    for path in files:
        video_id = video_id_of(path.name.removesuffix(_TUBES if path.name.endswith(_TUBES) else ".pkl"))
        other = found.setdefault(video_id, path)
        if other is not path:
            raise InputError(f"{argument}: {folder}: expected one file per video, got {other.name} and {path.name}")
    return found


def read_video(path: Path, video_id: str) -> PublishedVideo:
    """Read one video's tubes, in either form.

    Raises:
        InputError: the file cannot be read without running code, is in neither form, is of another video, or a tube is
            refused (its number is named).
    """
    where = f"video {video_id!r}: {path}"
    content = _content(path, where, MAX_VIDEO)
    if isinstance(content, dict) and "tubes" in content:
        return _prepared(content, video_id, where)
    if not isinstance(content, dict) or 0 not in content:
        raise InputError(
            f"{where}: expected a dict with 'tubes', or with a list of tubes under 0, got {_kind(content)}"
        )
    found = content[0]
    if not isinstance(found, (list, tuple)):
        raise InputError(f"{where}: expected a list of pairs (array, score) under 0, got {_kind(found)}")
    rows = []
    for number, pair in enumerate(found):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise InputError(f"{where}: tube {number}: expected a pair (array, score), got {_kind(pair)}")
        rows.append(pair[0])
    return PublishedVideo(video_id, f"{video_id}.mp4", _tubes(rows, where))


def _tubes(rows: Sequence[Any], where: str) -> list[Tube]:
    if sum(array.nbytes for array in rows if isinstance(array, np.ndarray)) > MAX_BYTES:
        raise InputError(f"{where}: expected at most {in_bytes(MAX_BYTES)} of tubes, got more")
    return [Tube(*_track(array, f"{where}: tube {number}")) for number, array in enumerate(rows)]


def _prepared(content: Mapping[Any, Any], video_id: str, where: str) -> PublishedVideo:
    named = content.get("vid", video_id)
    if not isinstance(named, str) or video_id_of(named) != video_id:
        raise InputError(f"{where}: vid: expected {video_id!r} as in the file's name, got {shown(named)}")
    rows = content["tubes"]
    if not isinstance(rows, (list, tuple)):
        raise InputError(f"{where}: tubes: expected a list of arrays, got {_kind(rows)}")
    count = content.get("tubenum", len(rows))
    if isinstance(count, np.ndarray) and count.size == 1:
        count = count.item()
    if Integer(0)(count, f"{where}: tubenum") != len(rows):
        raise InputError(f"{where}: tubenum: expected {len(rows)}, the number of tubes, got {count}")
    sentence, truth, inverted = content.get("sentence"), content.get("gttube"), 0
    if truth is not None:
        columns = _columns(truth, f"{where}: gttube")
        boxes, inverted = moved_away(columns[:, 1:5])
        truth = check_track(columns[:, 0], boxes, f"{where}: gttube")
    return PublishedVideo(
        video_id,
        f"{video_id}.mp4" if named == video_id else named,
        _tubes(rows, where),
        None if sentence is None else _SENTENCE(sentence, f"{where}: sentence"),
        truth,
        inverted,
    )


def _track(rows: Any, where: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Frames and boxes of a tube's rows."""
    columns = _columns(rows, where)
    return check_track(columns[:, 0], columns[:, 1:5], where)


def _columns(rows: Any, where: str) -> npt.NDArray[Any]:
    """Rows (frame, x1, y1, x2, y2, ...); a sixth column, the detector's score, is not used."""
    array: npt.NDArray[Any] = rows if isinstance(rows, np.ndarray) else np.empty(0, object)
    if array.ndim != 2 or array.shape[1] not in (5, 6) or array.dtype.kind not in "iuf":
        raise InputError(f"{where}: expected float [n, 5] or [n, 6] (frame, x1, y1, x2, y2), got {described(rows)}")
    return array


class PublishedStream:
    """The features of one stream: a folder of prepared files, or one file with all rows.

    Args:
        path: the folder or the file.

    Attributes:
        is_prepared: whether it holds averaged pre-clips.

    Raises:
        InputError: the path does not exist or holds no features.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.is_prepared = path, path.is_dir()
        self._files: dict[str, Path] = {}
        self._rows: dict[str, Any] = {}
        if self.is_prepared:
            self._files = published_files(path, "features")
            return
        where = f"features: {path}"
        content = _content(path, where)
        if not isinstance(content, dict) or not content:
            raise InputError(f"{where}: expected a dict of videos, got {_kind(content)}")
        for name, tubes in content.items():
            if not isinstance(name, str) or not isinstance(tubes, (dict, list, tuple)):
                raise InputError(
                    f"{where}: expected videos by name, each with its tubes, got {shown(name)}: {_kind(tubes)}"
                )
            self._rows[video_id_of(name)] = tubes

    def __contains__(self, video_id: str) -> bool:
        return video_id in self._files or video_id in self._rows

    def read(self, video_id: str, tubes: int) -> list[npt.NDArray[Any]]:
        """The features of a video's tubes.

        Args:
            video_id: the video.
            tubes: how many tubes it has.

        Returns:
            Per tube its averaged pre-clips [T, D], or its rows [n, D] without the first value of each, which is no
            feature.

        Raises:
            InputError: the video is not there, has another number of tubes, or a tube's features are not as above.
        """
        where = f"video {video_id!r}: {self.path}"
        if video_id not in self:
            names = self._files or self._rows
            raise InputError(
                f"video {video_id!r}: not in {self.path}{close_to(video_id, names)}; {listed(names, 'video')}"
            )
        if self.is_prepared:
            clips = _content(self._files[video_id], where, MAX_VIDEO)
            if not isinstance(clips, np.ndarray) or clips.ndim != 3 or clips.dtype.kind != "f":
                raise InputError(f"{where}: expected a float tensor [K, T, D], got {_kind(clips)}")
            self._check_count(len(clips), tubes, where)
            return list(clips)
        found = self._rows[video_id]
        self._check_count(len(found), tubes, where)
        ordered = [found[number] for number in range(tubes)] if _numbered(found) else None
        if ordered is None:
            raise InputError(f"{where}: expected tubes 0 to {tubes - 1}, got {listed(list(map(str, found)), 'tube')}")
        if sum(map(_num_bytes, ordered)) > MAX_BYTES:  # a small file may name one large row many times
            raise InputError(f"{where}: expected at most {in_bytes(MAX_BYTES)} of one video's features, got more")
        return [_feature_rows(rows, f"{where}: tube {number}") for number, rows in enumerate(ordered)]

    def _check_count(self, found: int, tubes: int, where: str) -> None:
        if found != tubes:
            raise InputError(f"{where}: expected features of {tubes} tubes, as many as the video has, got {found}")


def _content(path: Path, where: str, most: int = MAX_FILE) -> Any:
    check_file(path, where)
    return read_pickle(path, where, most)


def _numbered(tubes: Any) -> bool:
    return not isinstance(tubes, dict) or all(number in tubes for number in range(len(tubes)))


def _num_bytes(rows: Any) -> int:
    parts = rows if isinstance(rows, (list, tuple)) else [rows]
    return sum(part.nbytes for part in parts if isinstance(part, np.ndarray))


def _feature_rows(rows: Any, where: str) -> npt.NDArray[Any]:
    """Rows [n, D] of tensors [1 + D]; their first value is dropped."""
    if isinstance(rows, np.ndarray):
        array = rows
    elif isinstance(rows, Sequence) and rows and all(isinstance(row, np.ndarray) for row in rows):
        shapes = {row.shape for row in rows}
        if len(shapes) > 1:
            raise InputError(f"{where}: expected rows of equal width, got {', '.join(map(str, sorted(shapes)[:3]))}")
        array = np.stack(rows)
    else:
        raise InputError(f"{where}: expected a list of tensors [1 + D], got {_kind(rows)}")
    if array.ndim != 2 or array.shape[1] < 2 or array.dtype.kind != "f":
        raise InputError(f"{where}: expected a list of float tensors [1 + D], got {described(array)}")
    return np.ascontiguousarray(array[:, 1:])


def _kind(value: object) -> str:
    """A value in a few words."""
    if isinstance(value, dict):
        return f"a dict of {listed(list(map(str, value)), 'key')}"
    return described(value) if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
