"""Features of many videos by id: an HDF5 file, or a directory with one file per video."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy.typing as npt

from mmn_fast.checks import Number
from mmn_fast.errors import InputError
from mmn_fast.features.contract import FeatureContract
from mmn_fast.features.files import check_file, read_file
from mmn_fast.features.hdf5 import member, read_attribute, read_dataset
from mmn_fast.features.limits import Wanted
from mmn_fast.features.messages import close_to, first_line, is_video, listed, needs_extraction, unreadable_hdf5
from mmn_fast.storage.files import check_name


class FeatureStore(ABC):
    """Features of many videos by id; `open_features` makes a store. A store is a context manager.

    The ids are listed once, when the store opens. An id is only looked up in that list and never becomes part of a
    path.

    A store pickles as its absolute path, `feature_key` and `width`; unpickling opens it again.

    Attributes:
        path: the file or directory.
        feature_key: the array to take if a video has several.
        width: D, if known; an array that is not [n_src, D] is refused before it is read.
        contract: how the features were made, if the file says so (`mmn-fast features` writes it); else None.
    """

    contract: FeatureContract | None = None

    def __init__(self, path: Path, feature_key: str | None, width: int | None, ids: Collection[str]) -> None:
        self.path = path
        self._absolute = path.absolute()
        self.feature_key = feature_key
        self.width = width
        self._ids = dict.fromkeys(ids)
        self._closed = False
        if not ids:
            self.close()
            raise InputError(f"path: {path}: expected features of at least one video, got none")

    def __reduce__(self) -> tuple[Any, ...]:
        if self._closed:
            raise InputError(f"path: {self.path} has been closed, and a closed store cannot be pickled")
        return open_features, (self._absolute, self.feature_key, self.width)

    def __contains__(self, vid: object) -> bool:
        return isinstance(vid, str) and vid in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self) -> list[str]:
        """The videos' ids, sorted."""
        return list(self._ids)

    def __getitem__(self, vid: str) -> npt.NDArray[Any]:
        """A video's features, as stored: float [n_src, D] in the published files.

        Raises:
            InputError: the video does not exist, its features are damaged or not one array, or the store is closed.
        """
        self._check(vid)
        return self._read(vid)

    def duration_s(self, vid: str) -> float | None:
        """A video's length in seconds, if the file says it (`mmn-fast features` writes it); else None.

        Raises:
            InputError: the video does not exist, the length is no positive number, or the store is closed.
        """
        self._check(vid)
        return None

    def _check(self, vid: str) -> None:
        if self._closed:
            raise InputError(f"video {vid!r}: {self.path} has been closed")
        if vid not in self:
            close = close_to(vid, self._ids) if isinstance(vid, str) else ""
            raise InputError(f"video {vid!r}: not in {self.path}{close}; {listed(self._ids, 'video')}")

    @abstractmethod
    def _read(self, vid: str) -> npt.NDArray[Any]:
        """Read the features of a listed video."""

    def close(self) -> None:
        """Release the file; closing twice does no harm."""
        self._closed = True

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_features(path: str | Path, feature_key: str | None = None, width: int | None = None) -> FeatureStore:
    """Open the features of many videos.

    Args:
        path: an HDF5 file in a published layout (`f[vid]` is a dataset, or a group of datasets), or a directory with
            one file `<vid>.npy`, `.npz`, `.pt` or `.safetensors` per video.
        feature_key: the array to take if a video has several, as `Preset.feature_key`; a video with one array needs no
            key, so a store of single arrays opens under every preset.
        width: D, as `Preset.input_size`; a video whose array is not [n_src, D] is refused before it is read.

    Returns:
        The store; use it in a `with` statement or close it.

    Raises:
        InputError: the path does not exist, is no HDF5 file, is damaged, or holds no video.
    """
    check_name(path, "path")
    path = Path(path)
    if path.is_dir():
        return _DirectoryStore(path, feature_key, width)
    check_file(path, f"path: {path}")
    return _Hdf5Store(path, feature_key, width)


class _Hdf5Store(FeatureStore):
    def __init__(self, path: Path, feature_key: str | None, width: int | None) -> None:
        import h5py

        try:
            self._file = h5py.File(path, "r")
            ids = sorted(self._file)
            text = read_attribute(self._file, "feature_contract", f"path: {path}")
        except InputError:
            raise
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            being_written = unreadable_hdf5(error)
            if being_written is not None:
                raise InputError(f"path: {path}: {being_written}") from error
            raise InputError(
                f"path: {path}: expected an HDF5 file or a directory, got something else or a truncated or damaged file"
                f" ({first_line(error)})"
            ) from error
        super().__init__(path, feature_key, width, ids)
        if text is not None:
            self.contract = FeatureContract.from_json(str(text), f"path: {path}: feature_contract")

    def duration_s(self, vid: str) -> float | None:
        self._check(vid)
        where = f"video {vid!r}: {self.path}"
        try:
            value = read_attribute(member(self._file, vid, where), "duration_s", where)
        except InputError:
            raise
        except Exception as error:  # see read_file
            raise InputError(f"{where}: truncated or damaged ({first_line(error)})") from error
        return None if value is None else Number(0, above=True)(value, f"{where}: duration_s")

    def _read(self, vid: str) -> npt.NDArray[Any]:
        where = f"video {vid!r}: {self.path}"
        try:
            node = member(self._file, vid, where)
            return read_dataset(node, Wanted(where, self.feature_key, width=self.width))
        except InputError:
            raise
        except Exception as error:  # see read_file
            raise InputError(f"{where}: truncated or damaged ({first_line(error)})") from error

    def close(self) -> None:
        super().close()
        self._file.close()


class _DirectoryStore(FeatureStore):
    def __init__(self, path: Path, feature_key: str | None, width: int | None) -> None:
        self._files: dict[str, list[Path]] = {}
        try:
            files = sorted(path.iterdir())
        except OSError as error:
            raise InputError(f"path: {path}: {error.strerror or error}") from None
        for file in files:
            # Only the last suffix is removed: "s30-d52.avi.npy" is video "s30-d52.avi". Hidden files are not videos.
            if file.suffix.lower() in (".npy", ".npz", ".pt", ".safetensors") and not file.name.startswith("."):
                self._files.setdefault(file.stem, []).append(file)
        videos = [file.name for file in files if is_video(file)]
        if videos and not self._files:
            found = f"expected features, got {listed(videos, 'video')}"
            raise InputError(f"path: {path}: {needs_extraction(found)}")
        super().__init__(path, feature_key, width, sorted(self._files))

    def _read(self, vid: str) -> npt.NDArray[Any]:
        file, *others = self._files[vid]
        if others:
            names = " and ".join(path.name for path in self._files[vid])
            raise InputError(f"video {vid!r}: expected one file in {self.path}, got {names}")
        return read_file(file, Wanted(f"video {vid!r}: {file}", self.feature_key, lenient=True, width=self.width))
