"""One video's features from one file: .h5, .npy, .npz, .pt, .safetensors.

h5py, safetensors and torch are imported only when a file needs them.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from mmn_fast.errors import InputError
from mmn_fast.features.hdf5 import read_hdf5
from mmn_fast.features.limits import Wanted
from mmn_fast.features.messages import first_line, is_video, needs_extraction, pick, unreadable_hdf5
from mmn_fast.features.pre_clips import from_torch
from mmn_fast.storage.files import check_name
from mmn_fast.weights.hub import check_arrived


def load_features(source: str | Path, key: str | None = None, width: int | None = None) -> npt.NDArray[Any]:
    """Read one video's features from one file; no other file is opened.

    Args:
        source: a file ending in .h5, .hdf5, .npy, .npz, .pt, .pth or .safetensors, or "FILE::KEY".
        key: the array to take if the file holds several: a path inside an HDF5 file (a dataset, or a group with one
            dataset), a name in .npz and .safetensors, a dict key in .pt.
        width: D, if known; an array that is not [n_src, D] is refused before it is read.

    Returns:
        The array as stored, at most 2 GiB; types that NumPy lacks (bfloat16) become float32. An .npy file is mapped
        into memory, not read. `pre_clips` checks shape and dtype.

    Raises:
        InputError: the file is missing, has an unknown suffix, is a Git-LFS pointer, is damaged, or holds pickled
            objects; the key does not exist (close matches are named), a key is given but the file has none, or no key
            is given but the file holds several arrays; the array takes more than 2 GiB, was never written, or has its
            values in another file.
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
    return read_file(path, Wanted(f"source: {path}", inside if key is None else key, width=width))


def read_file(path: Path, wanted: Wanted) -> npt.NDArray[Any]:
    """Read the wanted array from a file; `wanted.where` begins every message."""
    where = wanted.where
    check_file(path, where)
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise InputError(f"{where}: expected a file ending in {', '.join(_READERS)}, got {suffix or 'no suffix'}")
    try:
        return _READERS[suffix](path, wanted)
    except (InputError, ImportError):
        raise
    except Exception as error:  # on damaged bytes a decoder may raise anything
        being_written = unreadable_hdf5(error)
        if being_written is not None:
            raise InputError(f"{where}: {being_written}") from error
        raise InputError(f"{where}: truncated, damaged or no {suffix} file ({first_line(error)})") from error


def check_file(path: Path, where: str) -> None:
    if path.is_dir():
        raise InputError(f"{where}: expected a file, got a directory; name the file of one video")
    check_arrived(path, where)
    if is_video(path):
        raise InputError(f"{where}: {needs_extraction('this is a video')}")


def _read_npy(path: Path, wanted: Wanted) -> npt.NDArray[Any]:
    if wanted.key is not None and not wanted.lenient:
        raise InputError(f"{wanted.where}: an .npy file holds one array and no keys, got key {wanted.key!r}")
    with path.open("rb") as file:
        _check_npy_header(file, wanted)
    # Copy on write: the caller may write to the array; the file stays unchanged.
    return np.asarray(np.load(path, mmap_mode="c", allow_pickle=False))


def _read_npz(path: Path, wanted: Wanted) -> npt.NDArray[Any]:
    with np.load(path, allow_pickle=False) as file:
        if not isinstance(file, np.lib.npyio.NpzFile) or file.zip is None:
            raise ValueError("no zip archive")
        name = pick(file.files, wanted.key, wanted.where, wanted.lenient)
        with file.zip.open(name if name in file.zip.namelist() else f"{name}.npy") as member:
            _check_npy_header(member, wanted)
        array: npt.NDArray[Any] = file[name]
    return array


def _check_npy_header(file: IO[bytes], wanted: Wanted) -> None:
    """Check the shape and dtype that an array's header states."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise _pickled(wanted.where)
    wanted.check(shape, dtype.itemsize, dtype)


def _pickled(where: str) -> InputError:
    return InputError(f"{where}: holds pickled Python objects and is not loaded, since that runs code")


def _read_torch(path: Path, wanted: Wanted) -> npt.NDArray[Any]:
    import pickle

    import torch

    where = wanted.where
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > path.stat().st_size:  # torch.save compresses nothing
            raise InputError(f"{where}: a file of {path.stat().st_size} bytes unpacks to {unpacked}, so it is not read")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error):
            raise
        raise _pickled(where) from None
    if isinstance(content, dict):
        content = {str(name): value for name, value in content.items()}
        content = content[pick(content, wanted.key, where, wanted.lenient)]
    elif wanted.key is not None and not wanted.lenient:
        raise InputError(f"{where}: holds a {type(content).__name__} without keys, got key {wanted.key!r}")
    if not isinstance(content, torch.Tensor):
        raise InputError(f"{where}: expected a tensor, got {type(content).__name__}")
    wanted.check(content.shape, content.element_size(), content.dtype)  # strides of 0 blow up small data
    return from_torch(content)


_BITS = {"BOOL": 8, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8}
_IN_NUMPY = ("F16", "F32", "F64", "I8", "I16", "I32", "I64", "U8", "BOOL")


def _read_safetensors(path: Path, wanted: Wanted) -> npt.NDArray[Any]:
    from safetensors import safe_open

    with safe_open(str(path), framework="numpy") as file:
        name = pick(list(file.keys()), wanted.key, wanted.where, wanted.lenient)
        header = file.get_slice(name)
        dtype = header.get_dtype()
        bits = int("".join(filter(str.isdigit, dtype)) or 8) if dtype not in _BITS else _BITS[dtype]
        wanted.check(header.get_shape(), bits / 8, dtype)
        array: npt.NDArray[Any]
        if dtype in _IN_NUMPY:
            array = file.get_tensor(name)
            return array
    with safe_open(str(path), framework="pt") as file:
        return from_torch(file.get_tensor(name))


_READERS: dict[str, Callable[[Path, Wanted], npt.NDArray[Any]]] = {
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".safetensors": _read_safetensors,
}
