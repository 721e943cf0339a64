"""One video's features from one file: .h5, .npy, .npz, .pt, .safetensors.

h5py, safetensors and torch are imported where a file needs them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmn_fast.features.hdf5 import read_hdf5
from mmn_fast.features.messages import first_line, pick
from mmn_fast.features.pre_clips import from_torch
from mmn_fast.files import check_name
from mmn_fast.hub import check_arrived
from mmn_fast.types import InputError


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
    return read_file(path, inside if key is None else key, f"source: {path}")


def read_file(path: Path, key: str | None, where: str, lenient: bool = False) -> npt.NDArray[Any]:
    """The array under a key; `where` begins every message. Lenient: a file with one array needs no matching key."""
    check_file(path, where)
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise InputError(f"{where}: expected a file ending in {', '.join(_READERS)}, got {suffix or 'no suffix'}")
    try:
        return _READERS[suffix](path, key, where, lenient)
    except (InputError, ImportError):
        raise
    except Exception as error:  # what a decoder raises on damaged bytes is anyone's guess
        raise InputError(f"{where}: truncated, damaged or no {suffix} file ({first_line(error)})") from error


def check_file(path: Path, where: str) -> None:
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
        name = pick(file.files, key, where, lenient)
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
        content = content[pick(content, key, where, lenient)]
    elif key is not None and not lenient:
        raise InputError(f"{where}: holds a {type(content).__name__} without keys, got key {key!r}")
    if not isinstance(content, torch.Tensor):
        raise InputError(f"{where}: expected a tensor, got {type(content).__name__}")
    return from_torch(content)


def _read_safetensors(path: Path, key: str | None, where: str, lenient: bool) -> npt.NDArray[Any]:
    from safetensors import safe_open

    with safe_open(str(path), framework="numpy") as file:
        name = pick(list(file.keys()), key, where, lenient)
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
        return from_torch(file.get_tensor(name))


_Reader = Callable[[Path, "str | None", str, bool], npt.NDArray[Any]]
_READERS: dict[str, _Reader] = {
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".safetensors": _read_safetensors,
}
