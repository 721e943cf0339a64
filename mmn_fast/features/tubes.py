"""Tubes of videos in files: an HDF5 file with a group per video, or one .npz or .safetensors file per video.

A video's K tubes lie one after another in common arrays:

    lengths         int [K]         rows of each tube
    frames          int [R]         frame number of each row, R = sum of lengths
    boxes           float [R, 4]    x1, y1, x2, y2 in pixels
    stream0         float [R0, D0]  features of the first stream, stream1 of the second, and so on
    stream0_lengths int [K]         rows of each tube in it
    pre_clips       float [K, T, D] instead of streams: normalised and averaged already

A video has streams, pre_clips, or neither where only boxes matter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from mmn_fast.arrays import Int64, described
from mmn_fast.checks import Text, nearest, shown
from mmn_fast.errors import InputError
from mmn_fast.features.files import check_file, read_file
from mmn_fast.features.hdf5 import member, read_dataset
from mmn_fast.features.limits import Wanted
from mmn_fast.features.messages import close_to, first_line, is_video, listed, unreadable_hdf5
from mmn_fast.storage.files import check_name
from mmn_fast.storage.hdf5_file import new_hdf5
from mmn_fast.tubes import Tube, check_track

_ID = Text(most=255)
_SUFFIXES = (".npz", ".safetensors")
_HDF5 = (".h5", ".hdf5")
_NAMES = ("lengths", "frames", "boxes", "pre_clips", "stream0", "stream0_lengths")
_STREAM = re.compile(r"stream([0-9]{1,2})(_lengths)?")


def video_id_of(file_name: str) -> str:
    """The id of a video from the name of its file: without .mp4 and the like."""
    return file_name.rsplit(".", 1)[0] if is_video(Path(file_name)) else file_name


def read_tubes(path: str | Path, video_id: str | None = None) -> list[Tube]:
    """Read the tubes of one video.

    Args:
        path: an .npz or .safetensors file of one video; an HDF5 file; or a directory, as for `open_tubes`.
        video_id: the video; None where the file holds one.

    Returns:
        The video's tubes, in the file's order.

    Raises:
        InputError: the file is missing or damaged, lacks the video or an array, or an array is not as the layout says;
            the message names the file, the video and the tube.
    """
    check_name(path, "path")
    path = Path(path)
    if path.suffix.lower() in _SUFFIXES and not path.is_dir():
        if video_id not in (None, path.stem):
            raise InputError(f"video_id: {path} holds one video, {path.stem!r}, got {video_id!r}")
        return _tubes_of(_file_arrays(path, path.stem))
    with open_tubes(path) as store:
        if video_id is None:
            if len(store) != 1:
                raise InputError(
                    f"video_id: expected the name of a video in {path}, got none; {listed(store, 'video')}"
                )
            video_id = next(iter(store))
        return store[video_id]


class TubeStore(Mapping[str, list[Tube]]):
    """Tubes of many videos by id, read when they are asked for; `open_tubes` makes one. A context manager.

    The ids are listed once, when the store opens.

    Attributes:
        path: the file or directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None
        self._files: dict[str, Path] = {}
        if path.is_dir():
            self._list_files()
        else:
            self._open_hdf5()

    def _list_files(self) -> None:
        try:
            files = sorted(self.path.iterdir())
        except OSError as error:
            raise InputError(f"path: {self.path}: {error.strerror or error}") from None
        for file in files:
            if file.suffix.lower() in _SUFFIXES and not file.name.startswith("."):
                other = self._files.setdefault(file.stem, file)
                if other is not file:
                    raise InputError(f"path: expected one file per video, got {other.name} and {file.name}")
        if not self._files:
            raise InputError(
                f"path: {self.path}: expected a file {' or '.join(f'<video>{suffix}' for suffix in _SUFFIXES)} per"
                f" video, got none{_HINT if any(file.suffix == '.pkl' for file in files) else ''}"
            )
        self._ids = dict.fromkeys(self._files)

    def _open_hdf5(self) -> None:
        import h5py

        where = f"path: {self.path}"
        check_file(self.path, where)
        if self.path.suffix.lower() == ".pkl":
            raise InputError(f"{where}: expected an HDF5 file or a directory, got a pickle{_HINT}")
        try:
            self._file = h5py.File(self.path, "r")
            self._ids = dict.fromkeys(sorted(self._file))
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            reason = unreadable_hdf5(error)
            if reason is None:
                reason = (
                    f"expected an HDF5 file or a directory, got something else or a damaged file ({first_line(error)})"
                )
            raise InputError(f"{where}: {reason}") from error
        if not self._ids:
            raise InputError(f"{where}: expected tubes of at least one video, got none")

    def __contains__(self, video_id: object) -> bool:
        return isinstance(video_id, str) and video_id in self._ids

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def get(self, video_id: str, default: Any = None) -> Any:
        """A video's tubes, or `default` for a video that is not there."""
        if video_id not in self:
            return default
        return self[video_id]

    def __getitem__(self, video_id: str) -> list[Tube]:
        """Read a video's tubes.

        Raises:
            InputError: the video is not there, or its arrays are not as the layout says.
        """
        if video_id not in self:
            close = close_to(video_id, self._ids) if isinstance(video_id, str) else ""
            raise InputError(f"video {shown(video_id)}: not in {self.path}{close}; {listed(self._ids, 'video')}")
        if self._files:
            return _tubes_of(_file_arrays(self._files[video_id], video_id))
        if not self._file:
            raise InputError(f"video {video_id!r}: {self.path} has been closed")
        return _tubes_of(_group_arrays(self._file, video_id, f"video {video_id!r}: {self.path}"))

    def close(self) -> None:
        """Release the file; closing twice does no harm."""
        if self._file:
            self._file.close()

    def __enter__(self) -> TubeStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_HINT = "; `mmn-fast data hc-stvg` converts the published pickles"


def open_tubes(path: str | Path) -> TubeStore:
    """Open the tubes of many videos.

    Args:
        path: an HDF5 file with a group per video, or a directory with one `<video>.npz` or `<video>.safetensors` per
            video, in the layout that this module describes.

    Returns:
        A mapping from a video's id to its tubes; use it in a `with` statement or close it.

    Raises:
        InputError: the path does not exist, is no such file or directory, is damaged, or holds no video.
    """
    check_name(path, "path")
    return TubeStore(Path(path))


class TubesWriter:
    """Writes tubes of many videos to an HDF5 file in the layout of this module. A context manager.

    Args:
        path: file to create. The caller sees to it that a half-written one goes (`storage.files.new_directory`).
    """

    def __init__(self, path: str | Path) -> None:
        self._open = ExitStack()
        file = Path(path).open("x+b")  # noqa: SIM115 - `_open` closes it
        new = new_hdf5(self._open.enter_context(file))
        self._file, self._check = self._open.enter_context(new)

    def write(self, video_id: str, tubes: Sequence[Tube]) -> None:
        """Add a video.

        Args:
            video_id: its name.
            tubes: at least one; all have features of equally many streams, all have pre_clips, or all have neither.

        Raises:
            InputError: the name cannot be a group's, or a tube is refused.
            OSError: the system refuses to write.
        """
        group = _group(video_id)
        for name, array in _arrays_of(tubes, f"video {video_id!r}").items():
            self._file[f"{group}/{name}"] = array
            self._check()

    def repeat(self, video_id: str, written: str) -> None:
        """Give tubes that were written a second name; they are stored once.

        Args:
            video_id: the other name.
            written: the name under which they were written.

        Raises:
            InputError: the name cannot be a group's.
        """
        self._file[_group(video_id)] = self._file[written]

    def __enter__(self) -> TubesWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)


def _group(video_id: str) -> str:
    """A video's name, which can be a group's."""
    if _ID(video_id, "video_id") in (".", "..") or "/" in video_id or "\0" in video_id:
        raise InputError(f"video_id: expected a name without '/', got {shown(video_id)}")
    return video_id


def _arrays_of(tubes: Sequence[Tube], where: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays that hold a video's tubes."""
    if not tubes:
        raise InputError(f"{where}: expected at least one tube, got none")
    tracks = [check_track(tube.frames, tube.boxes, f"{where}: tube {number}") for number, tube in enumerate(tubes)]
    arrays: dict[str, npt.NDArray[Any]] = {
        "lengths": np.array([len(frames) for frames, _ in tracks], np.int64),
        "frames": np.concatenate([frames for frames, _ in tracks]),
        "boxes": np.concatenate([boxes for _, boxes in tracks]),
    }
    kinds = {_kind(tube) for tube in tubes}
    if len(kinds) > 1:
        raise InputError(f"{where}: expected the same kind of features in all tubes, got {' and '.join(sorted(kinds))}")
    if tubes[0].pre_clips is not None:
        arrays["pre_clips"] = _joined([tube.pre_clips for tube in tubes], np.stack, f"{where}: pre_clips")
    for stream in range(len(tubes[0].features or ())):
        own = [np.asarray(tube.features[stream]) for tube in tubes if tube.features is not None]
        arrays[f"stream{stream}"] = _joined(own, np.concatenate, f"{where}: stream {stream}")
        arrays[f"stream{stream}_lengths"] = np.array([len(rows) for rows in own], np.int64)
    return arrays


def _kind(tube: Tube) -> str:
    if tube.pre_clips is not None:
        return "pre_clips"
    return "neither" if tube.features is None else f"features of {len(tube.features)} streams"


def _joined(parts: Sequence[Any], join: Callable[..., npt.NDArray[Any]], where: str) -> npt.NDArray[Any]:
    try:
        return join([np.asarray(part) for part in parts])
    except ValueError:
        shapes = ", ".join(sorted({described(np.asarray(part)) for part in parts})[:4])
        raise InputError(f"{where}: expected arrays of equal width, got {shapes}") from None


@dataclass(frozen=True)
class _Arrays:
    """A video's arrays: their names, and how to read one."""

    where: str
    names: tuple[str, ...]
    read: Callable[[str], npt.NDArray[Any]]


def _file_arrays(path: Path, video_id: str) -> _Arrays:
    where = f"video {video_id!r}: {path}"
    check_file(path, where)
    try:
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as file:
                names = tuple(file.files)
        else:
            from safetensors import safe_open

            with safe_open(str(path), framework="numpy") as file:
                names = tuple(file.keys())
    except Exception as error:  # on damaged bytes a decoder may raise anything
        raise InputError(f"{where}: truncated, damaged or no {path.suffix} file ({first_line(error)})") from error
    return _Arrays(where, names, lambda name: read_file(path, Wanted(f"{where}: {name}", name)))


def _group_arrays(file: Any, video_id: str, where: str) -> _Arrays:
    import h5py

    try:
        group = member(file, video_id, where)
        if not isinstance(group, h5py.Group):
            raise InputError(f"{where}: expected a group with {', '.join(_NAMES[:3])} and more, got a dataset")
        names = tuple(group)
    except InputError:
        raise
    except Exception as error:  # as above
        raise InputError(f"{where}: truncated or damaged ({first_line(error)})") from error

    def read(name: str) -> npt.NDArray[Any]:
        try:
            return read_dataset(member(group, name, where), Wanted(where))
        except InputError:
            raise
        except Exception as error:  # as above
            raise InputError(f"{where}: {name}: truncated or damaged ({first_line(error)})") from error

    return _Arrays(where, names, read)


def _tubes_of(arrays: _Arrays) -> list[Tube]:
    """Cut a video's arrays into tubes."""
    where, names = arrays.where, arrays.names
    unknown = [name for name in names if name not in _NAMES and not _STREAM.fullmatch(name)]
    if unknown:
        raise InputError(f"{where}: unknown array {shown(unknown[0])}; {nearest(unknown[0], _NAMES)}")
    missing = [name for name in _NAMES[:3] if name not in names]
    if missing:
        raise InputError(f"{where}: missing {', '.join(missing)}; it has {', '.join(sorted(names)) or 'nothing'}")
    streams = _num_streams(names, where)
    if streams and "pre_clips" in names:
        raise InputError(f"{where}: expected streams or pre_clips, got both")
    lengths = _lengths(arrays, "lengths")
    frames, boxes = (_cut(arrays, name, lengths, "lengths") for name in ("frames", "boxes"))
    features = []
    for stream in range(streams):
        own = _lengths(arrays, f"stream{stream}_lengths", len(lengths))
        features.append(_cut(arrays, f"stream{stream}", own, f"stream{stream}_lengths"))
    clips: list[Any] = [None] * len(lengths)
    if "pre_clips" in names:
        clips = list(arrays.read("pre_clips"))
        if len(clips) != len(lengths) or any(np.ndim(one) != 2 for one in clips):
            raise InputError(
                f"{where}: pre_clips: expected float [{len(lengths)}, T, D], got others ({len(clips)} tubes)"
            )
    tubes = []
    for number in range(len(lengths)):
        track = check_track(frames[number], boxes[number], f"{where}: tube {number}")
        own_features = [stream[number] for stream in features] if features else None
        tubes.append(Tube(*track, features=own_features, pre_clips=clips[number]))
    return tubes


def _num_streams(names: Sequence[str], where: str) -> int:
    found = {int(match[1]) for name in names if (match := _STREAM.fullmatch(name))}
    for stream in range(max(found, default=-1) + 1):
        for name in (f"stream{stream}", f"stream{stream}_lengths"):
            if name not in names:
                raise InputError(f"{where}: missing {name}; it has {', '.join(sorted(names))}")
    return len(found)


def _lengths(arrays: _Arrays, name: str, tubes: int | None = None) -> Int64:
    """Rows per tube."""
    values = arrays.read(name)
    expected = "int [K]" if tubes is None else f"int [{tubes}], a number for each tube"
    if values.ndim != 1 or values.dtype.kind not in "iu" or (tubes is not None and len(values) != tubes):
        raise InputError(f"{arrays.where}: {name}: expected {expected}, got {described(values)}")
    if (values < 1).any() or (values > 2**31).any():
        tube = int(np.flatnonzero((values < 1) | (values > 2**31))[0])
        raise InputError(
            f"{arrays.where}: {name}: expected at least one row per tube, got {values[tube]} for tube {tube}"
        )
    return values.astype(np.int64)


def _cut(arrays: _Arrays, name: str, lengths: Int64, by: str) -> list[npt.NDArray[Any]]:
    values = arrays.read(name)
    if values.ndim < 1 or len(values) != lengths.sum():
        raise InputError(
            f"{arrays.where}: {name}: expected {lengths.sum()} rows, the sum of {by}, got {described(values)}"
        )
    return np.split(values, np.cumsum(lengths)[:-1])
