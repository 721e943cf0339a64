"""Features of videos: read them from files, check them, average them into pre-clips.

Step 1 of the model. The published extractors store one row per source clip; the model takes T averaged rows.
NumPy only: torch, h5py and safetensors are imported where a file or a tensor needs them.
"""

from __future__ import annotations

import difflib
import itertools
import math
import numbers
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from mmn_fast.files import check_name
from mmn_fast.hub import check_arrived
from mmn_fast.pixel_features import PixelFeatures as PixelFeatures  # public here: features from frames
from mmn_fast.presets import Preset
from mmn_fast.types import FloatArray, InputError

IntArray = npt.NDArray[np.int64]

_EPS = 1e-12  # of torch.nn.functional.normalize
# Rows are worked on in blocks that stay in a core's L2 cache (1 MiB of float32). A block has at most 128 rows so that
# float32 sums over it lose little; longer spans add up the blocks' sums.
_BLOCK_VALUES = 2**18
_BLOCK_ROWS = 128


def check_features(features: Any, width: int, name: str = "features") -> npt.NDArray[Any]:
    """A video's features as a NumPy array, or a sentence that says why they cannot be used.

    Args:
        features: float [n_src, D], NumPy, torch (any device) or nested lists, any float dtype, any strides.
        width: D.
        name: the argument's name in messages.

    Returns:
        float [n_src, D], not copied where NumPy can share the memory; types that NumPy lacks (bfloat16) become
        float32. Every value is finite in float32.

    Raises:
        InputError: not floating point, not [n_src, D] with n_src >= 1, or a value is NaN, infinite or beyond float32.
    """
    rows = _as_rows(features, width, name)
    for _ in _float32_blocks(rows, name):
        pass
    return rows


def check_duration(duration_s: Any, name: str = "duration_s") -> float:
    """A duration in seconds, 1e-30 to 1e30: moments are computed in float32, and their lengths are fractions of it.

    Args:
        duration_s: a real number, Python's or NumPy's.
        name: the argument's name in messages.

    Raises:
        InputError: no real number (a bool or text is none), not positive, not finite, or beyond the bounds above.
    """
    kind = type(duration_s).__name__
    if isinstance(duration_s, numbers.Real) and not isinstance(duration_s, bool):
        try:
            seconds = float(duration_s)
        except OverflowError:  # a huge int, which repr may refuse as well
            seconds = duration_s = math.inf
        if 1e-30 <= seconds <= 1e30:
            return seconds
    got = " ".join(repr(duration_s).split())
    got = got if len(got) <= 60 else f"{got[:60]}..."
    raise InputError(f"{name}: expected a positive, finite number of seconds, got {got} ({kind})")


def pre_clips(features: Any, preset: Preset, name: str = "features") -> FloatArray:
    """Normalise each stream of each row and average the rows into T pre-clips.

    Equivalent to (one stream; `spans` as in `pre_clip_spans`):
        rows = F.normalize(features.float(), dim=1)
        return torch.stack([rows[start:end].mean(dim=0) for start, end in spans])

    A row whose squares overflow float32 is normalised all the same (it would come out as zeros above).

    Costs two passes over a block of rows in cache and one numpy call per span and block: about the time that it takes
    to read the features from memory twice. Beside the result it needs a few MiB, whatever n_src is.

    Args:
        features: float [n_src, D], see `check_features`; D = preset.input_size, the streams side by side.
        preset: gives T, the streams' widths and whether bounds are clamped.
        name: the argument's name in messages.

    Returns:
        float32 [T, D], C-contiguous, memory of its own.

    Raises:
        InputError: as `check_features`.
    """
    rows = _as_rows(features, preset.input_size, name, f" for preset {preset.name!r}")
    starts, ends = pre_clip_spans(len(rows), preset.num_pre_clips, preset.clamp_pre_clips)
    sums = np.zeros((preset.num_pre_clips, preset.input_size), np.float32)
    for first, block in _float32_blocks(rows, name):
        unit = _unit_rows(block, preset.feature_streams)
        for t in range(*_spans_in(starts, ends, first, first + len(block))):
            sums[t] += unit[max(starts[t] - first, 0) : ends[t] - first].sum(axis=0)
    sums /= (ends - starts).astype(np.float32)[:, None]
    return sums


def float32_rows(features: Any, preset: Preset, name: str = "features") -> FloatArray:
    """A video's features as they are, checked, for an engine that makes pre-clips itself.

    Args:
        features: float [n_src, D], see `check_features`; D = preset.input_size.
        preset: gives D.
        name: the argument's name in messages.

    Returns:
        float32 [n_src, D], C-contiguous, finite; the memory of `features` where that is so already.

    Raises:
        InputError: as `check_features`.
    """
    rows = _as_rows(features, preset.input_size, name, f" for preset {preset.name!r}")
    for _ in _float32_blocks(rows, name):
        pass
    return np.ascontiguousarray(rows, np.float32)


def pre_clip_spans(num_rows: int, num_pre_clips: int, clamp: bool) -> tuple[IntArray, IntArray]:
    """The source rows that each pre-clip is the mean of, with the official code's float32 rounding (half to even).

    Args:
        num_rows: n_src >= 1.
        num_pre_clips: T.
        clamp: bounds are clamped to the last row before the mean, which leaves that row out of the last mean (MMN);
            else only the row of an empty span is (MMN-STVG).

    Returns:
        starts and ends, int64 [T] each, ascending: pre-clip t is the mean of rows starts[t] to ends[t] - 1. A span that
        is empty in the official code has one row here; it may overlap the next span.
    """
    grid = np.arange(num_pre_clips + 1, dtype=np.float32) / np.float32(num_pre_clips)
    bounds = np.rint(grid * np.float32(num_rows)).astype(np.int64)
    if clamp:
        bounds = np.minimum(bounds, num_rows - 1)
    starts = np.minimum(bounds[:-1], num_rows - 1)
    return starts, np.maximum(bounds[1:], starts + 1)


def _spans_in(starts: IntArray, ends: IntArray, first: int, last: int) -> tuple[int, int]:
    """First and one past the last of the spans that share a row with rows first to last - 1."""
    return int(np.searchsorted(ends, first, "right")), int(np.searchsorted(starts, last, "left"))


def _unit_rows(block: FloatArray, streams: tuple[int, ...]) -> FloatArray:
    """Each stream of each row divided by its norm; float32 [rows, D].

    einsum and sum, unlike a matrix product, do not go through BLAS: the result does not depend on its threads.
    """
    unit = np.empty_like(block)
    for end, width in zip(itertools.accumulate(streams), streams, strict=True):
        stream = block[:, end - width : end]
        with np.errstate(over="ignore"):
            squares = np.einsum("ij,ij->i", stream, stream)
        overflowed = np.isinf(squares)
        if overflowed.any():
            scale: FloatArray = np.where(overflowed, np.abs(stream).max(axis=1), np.float32(1))
            stream = np.divide(stream, scale[:, None], dtype=np.float32)
            squares = np.einsum("ij,ij->i", stream, stream)
        norms = np.maximum(np.sqrt(squares), np.float32(_EPS))
        np.divide(stream, norms[:, None], out=unit[:, end - width : end])
    return unit


def _float32_blocks(rows: npt.NDArray[Any], name: str) -> Iterator[tuple[int, FloatArray]]:
    """Blocks of consecutive rows as (first row's index, float32 C-contiguous [<= 128, D]), checked to be finite."""
    step = min(_BLOCK_ROWS, max(1, _BLOCK_VALUES // rows.shape[1]))
    for first in range(0, len(rows), step):
        with np.errstate(over="ignore"):
            block = np.ascontiguousarray(rows[first : first + step], dtype=np.float32)
        finite = np.isfinite(block)
        if not finite.all():
            row, column = np.argwhere(~finite)[0].tolist()
            raise InputError(
                f"{name}: expected finite float32 values, got {rows[first + row, column]} in row {first + row}"
            )
        yield first, block


def _as_rows(features: Any, width: int, name: str, purpose: str = "") -> npt.NDArray[Any]:
    """Any array-like as a floating-point NumPy array [n_src, width] with n_src >= 1; values are not looked at."""
    expected = f"{name}: expected a float array [n_src, {width}]{purpose}"
    try:
        rows = _from_torch(features) if _is_tensor(features) else np.asarray(features)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{expected}, got {type(features).__name__} ({_first_line(error)})") from None
    if rows.dtype.name == "bfloat16":  # ml_dtypes, as JAX has it
        rows = rows.astype(np.float32)
    got = f"{rows.dtype} {list(rows.shape)}"
    if rows.ndim == 0 and not isinstance(features, np.ndarray):
        got = type(features).__name__
    if not np.issubdtype(rows.dtype, np.floating):
        raise InputError(f"{expected}, got {got}")
    if np.ma.is_masked(features):
        raise InputError(f"{expected}, got a masked array; fill in or leave out what is masked")
    if rows.ndim != 2 or rows.shape[1] != width:
        transposed = rows.ndim == 2 and rows.shape[0] == width
        raise InputError(f"{expected}, got {got}{'; transpose it' if transposed else ''}")
    if not len(rows):
        raise InputError(f"{expected} with n_src >= 1, got {got}")
    return rows


def _is_tensor(value: Any) -> bool:
    """Whether a value is a torch tensor; where torch was never imported nothing is."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _from_torch(tensor: Any) -> npt.NDArray[Any]:
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.is_floating_point() and str(tensor.dtype) not in ("torch.float16", "torch.float32", "torch.float64"):
        tensor = tensor.float()  # bfloat16 and float8: NumPy has neither
    array: npt.NDArray[Any] = tensor.numpy()
    return array


def load_features(source: str | Path, key: str | None = None) -> npt.NDArray[Any]:
    """Read one video's features from a file.

    Args:
        source: a file ending in .h5, .hdf5, .npy, .npz, .pt, .pth or .safetensors, or "FILE::KEY".
        key: the array to take where the file holds several: a path inside an HDF5 file (a dataset, or a group with one
            dataset), a name in .npz and .safetensors, a dict key in .pt.

    Returns:
        The array as stored; types that NumPy lacks (bfloat16) become float32. `pre_clips` checks shape and dtype.

    Raises:
        InputError: no such file, unknown suffix, a Git-LFS pointer, damaged, or holding pickled objects; no such key
            (with close matches), a key where the file has none, or no key where the file holds several arrays.
    """
    check_name(source, "source")
    path, inside = Path(source), None
    if "::" in str(source) and not path.exists():
        file, _, inside = str(source).partition("::")
        path = Path(file)
        if not inside:
            raise InputError(f"source: expected FILE::KEY, got no key in {str(source)!r}")
    if inside is not None and key is not None:
        raise InputError(f"key: {str(source)!r} names a key already, got {key!r} as well")
    return _read_file(path, inside if key is None else key, f"source: {path}")


def _read_file(path: Path, key: str | None, where: str, lenient: bool = False) -> npt.NDArray[Any]:
    """The array under a key; `where` begins every message. Lenient: a file with one array needs no matching key."""
    _check_file(path, where)
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise InputError(f"{where}: expected a file ending in {', '.join(_READERS)}, got {suffix or 'no suffix'}")
    try:
        return _READERS[suffix](path, key, where, lenient)
    except (InputError, ImportError):
        raise
    except Exception as error:  # what a decoder raises on damaged bytes is anyone's guess
        raise InputError(f"{where}: truncated, damaged or no {suffix} file ({_first_line(error)})") from error


def _check_file(path: Path, where: str) -> None:
    if path.is_dir():
        raise InputError(f"{where}: expected a file, got a directory; open_features reads one file per video")
    check_arrived(path, where)


def _read_npy(path: Path, key: str | None, where: str, lenient: bool) -> npt.NDArray[Any]:
    if key is not None and not lenient:
        raise InputError(f"{where}: an .npy file holds one array and no keys, got key {key!r}")
    with path.open("rb") as file:
        array: npt.NDArray[Any] = _without_pickle(lambda: np.lib.format.read_array(file, allow_pickle=False), where)
    return array


def _read_npz(path: Path, key: str | None, where: str, lenient: bool) -> npt.NDArray[Any]:
    with np.load(path, allow_pickle=False) as file:
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("no zip archive")
        name = _pick(file.files, key, where, lenient)
        array: npt.NDArray[Any] = _without_pickle(lambda: file[name], where)
    return array


def _without_pickle(read: Callable[[], Any], where: str) -> Any:
    try:
        return read()
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise InputError(f"{where}: holds pickled Python objects and is not loaded, since that runs code") from None


def _read_torch(path: Path, key: str | None, where: str, lenient: bool) -> npt.NDArray[Any]:
    import pickle

    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error):
            raise
        raise InputError(f"{where}: holds pickled Python objects and is not loaded, since that runs code") from None
    if isinstance(content, dict):
        content = {str(name): value for name, value in content.items()}
        content = content[_pick(content, key, where, lenient)]
    elif key is not None and not lenient:
        raise InputError(f"{where}: holds a {type(content).__name__} without keys, got key {key!r}")
    if not isinstance(content, torch.Tensor):
        raise InputError(f"{where}: expected a tensor, got {type(content).__name__}")
    return _from_torch(content)


def _read_safetensors(path: Path, key: str | None, where: str, lenient: bool) -> npt.NDArray[Any]:
    from safetensors import safe_open

    with safe_open(str(path), framework="numpy") as file:
        name = _pick(list(file.keys()), key, where, lenient)
        numpy_has_it = file.get_slice(name).get_dtype() in (
            "F16",
            "F32",
            "F64",
            "I8",
            "I16",
            "I32",
            "I64",
            "U8",
            "BOOL",
        )
        array: npt.NDArray[Any]
        if numpy_has_it:
            array = file.get_tensor(name)
            return array
    with safe_open(str(path), framework="pt") as file:
        return _from_torch(file.get_tensor(name))


def _read_hdf5(path: Path, key: str | None, where: str, lenient: bool) -> npt.NDArray[Any]:
    import h5py

    with h5py.File(path, "r") as file:
        node = file
        for part in (key or "").split("/"):
            if not part:
                continue
            if not isinstance(node, h5py.Group):
                raise InputError(f"{_inside(where, node)} is a dataset, got key {key!r} below it")
            node = node[_pick(node, part, _inside(where, node), False)]
        return _read_dataset(node, None, where)


def _read_dataset(node: Any, key: str | None, where: str) -> npt.NDArray[Any]:
    """An HDF5 dataset, or of a group the dataset of that key or the only one."""
    import h5py

    if isinstance(node, h5py.Group) and key is not None and isinstance(node.get(key), h5py.Dataset):
        node = node[key]
    if isinstance(node, h5py.Group):
        first = list(itertools.islice(_datasets(node), 2))  # a file may hold thousands of videos
        if len(first) != 1:
            raise InputError(f"{_inside(where, node)}: {_choice(node)}")
        node = first[0]
    return np.asarray(node[()])


def _inside(where: str, node: Any) -> str:
    """A place in an HDF5 file, spelled FILE::KEY as the caller may."""
    return f"{where}::{node.name.strip('/')}".removesuffix("::")


def _datasets(group: Any) -> Iterator[Any]:
    """The datasets of an HDF5 group, at any depth."""
    import h5py

    for name in group:
        member = group[name]
        if isinstance(member, h5py.Dataset):
            yield member
        elif isinstance(member, h5py.Group):
            yield from _datasets(member)


_Reader = Callable[[Path, "str | None", str, bool], npt.NDArray[Any]]
_READERS: dict[str, _Reader] = {
    ".h5": _read_hdf5,
    ".hdf5": _read_hdf5,
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".safetensors": _read_safetensors,
}


def _pick(names: Collection[str], key: str | None, where: str, lenient: bool) -> str:
    """The key if it is there; the only name if there is no key (lenient: or another key)."""
    if key is not None and key in names:
        return key
    if len(names) == 1 and (key is None or lenient):
        return next(iter(names))
    if key is None:
        raise InputError(f"{where}: {_choice(names)}")
    raise InputError(f"{where}: no key {key!r}{_close_to(key, names)}; {_listed(names, 'key')}")


def _choice(names: Collection[str]) -> str:
    return f"expected one array, or a key that names one, got {_listed(names, 'key')}"


def _listed(names: Collection[str], what: str) -> str:
    """How many names there are, and the first of them."""
    plural = "" if len(names) == 1 else "s"
    first = [repr(name) for name in itertools.islice(names, 4)] + ["..."] * (len(names) > 4)
    return f"{len(names)} {what}{plural}" + (f" ({', '.join(first)})" if first else "")


def _close_to(name: str, names: Collection[str]) -> str:
    close = difflib.get_close_matches(name, list(names))
    return f", did you mean {' or '.join(map(repr, close))}?" if close else ""


def _first_line(error: Exception) -> str:
    text = (getattr(error, "strerror", None) or str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__


class FeatureStore(ABC):
    """Features of many videos by id; `open_features` makes one. A context manager.

    The ids are listed once, when the store is opened, and an id is only ever looked up in that list: it never becomes
    part of a path.

    Attributes:
        path: the file or directory.
        feature_key: the array to take of a video that has several.
    """

    def __init__(self, path: Path, feature_key: str | None, ids: Collection[str]) -> None:
        self.path = path
        self.feature_key = feature_key
        self._ids = dict.fromkeys(ids)
        self._closed = False
        if not ids:
            self.close()
            raise InputError(f"path: {path}: expected features of at least one video, got none")

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
            InputError: no such video, its features are damaged or not one array, or the store is closed.
        """
        if self._closed:
            raise InputError(f"video {vid!r}: {self.path} has been closed")
        if vid not in self:
            close = _close_to(vid, self._ids) if isinstance(vid, str) else ""
            raise InputError(f"video {vid!r}: not in {self.path}{close}; {_listed(self._ids, 'video')}")
        return self._read(vid)

    @abstractmethod
    def _read(self, vid: str) -> npt.NDArray[Any]:
        """The features of a video that is there."""

    def close(self) -> None:
        """Release the file; closing twice does no harm."""
        self._closed = True

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_features(path: str | Path, feature_key: str | None = None) -> FeatureStore:
    """Open the features of many videos.

    Args:
        path: an HDF5 file in a published layout (`f[vid]` is a dataset, or a group of datasets), or a directory with
            one file `<vid>.npy`, `.npz`, `.pt` or `.safetensors` per video.
        feature_key: the array to take of a video that has several, as `Preset.feature_key`; a video that has one
            needs none, so a store in the other layout opens under every preset.

    Returns:
        The store, to use in a `with` statement or to close.

    Raises:
        InputError: nothing there, no HDF5 file, damaged, or no video in it.
    """
    check_name(path, "path")
    path = Path(path)
    if path.is_dir():
        return _DirectoryStore(path, feature_key)
    _check_file(path, f"path: {path}")
    return _Hdf5Store(path, feature_key)


class _Hdf5Store(FeatureStore):
    def __init__(self, path: Path, feature_key: str | None) -> None:
        import h5py

        try:
            self._file = h5py.File(path, "r")
            ids = sorted(self._file)
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise InputError(
                f"path: {path}: expected an HDF5 file or a directory, got something else or a truncated or damaged file"
                f" ({_first_line(error)})"
            ) from error
        super().__init__(path, feature_key, ids)

    def _read(self, vid: str) -> npt.NDArray[Any]:
        where = f"video {vid!r}: {self.path}"
        try:
            return _read_dataset(self._file[vid], self.feature_key, where)
        except InputError:
            raise
        except Exception as error:  # see _read_file
            raise InputError(f"{where}: truncated or damaged ({_first_line(error)})") from error

    def close(self) -> None:
        super().close()
        self._file.close()


class _DirectoryStore(FeatureStore):
    def __init__(self, path: Path, feature_key: str | None) -> None:
        self._files: dict[str, list[Path]] = {}
        try:
            files = sorted(path.iterdir())
        except OSError as error:
            raise InputError(f"path: {path}: {error.strerror or error}") from None
        for file in files:
            # Only the last suffix goes: "s30-d52.avi.npy" is video "s30-d52.avi". Hidden files are no videos.
            if file.suffix.lower() in (".npy", ".npz", ".pt", ".safetensors") and not file.name.startswith("."):
                self._files.setdefault(file.stem, []).append(file)
        super().__init__(path, feature_key, sorted(self._files))

    def _read(self, vid: str) -> npt.NDArray[Any]:
        file, *others = self._files[vid]
        if others:
            names = " and ".join(path.name for path in self._files[vid])
            raise InputError(f"video {vid!r}: expected one file in {self.path}, got {names}")
        return _read_file(file, self.feature_key, f"video {vid!r}: {file}", lenient=True)
