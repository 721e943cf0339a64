"""HDF5: the dataset under a key of a file, or of a video's group."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmn_fast.features.messages import choice, pick
from mmn_fast.types import InputError


def read_hdf5(path: Path, key: str | None, where: str, lenient: bool) -> npt.NDArray[Any]:
    import h5py

    with h5py.File(path, "r") as file:
        node = file
        for part in (key or "").split("/"):
            if not part:
                continue
            if not isinstance(node, h5py.Group):
                raise InputError(f"{_inside(where, node)} is a dataset, got key {key!r} below it")
            node = node[pick(node, part, _inside(where, node), False)]
        return read_dataset(node, None, where)


def read_dataset(node: Any, key: str | None, where: str) -> npt.NDArray[Any]:
    """An HDF5 dataset, or of a group the dataset of that key or the only one."""
    import h5py

    if isinstance(node, h5py.Group) and key is not None and isinstance(node.get(key), h5py.Dataset):
        node = node[key]
    if isinstance(node, h5py.Group):
        first = list(itertools.islice(_datasets(node), 2))  # a file may hold thousands of videos
        if len(first) != 1:
            raise InputError(f"{_inside(where, node)}: {choice(node)}")
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
