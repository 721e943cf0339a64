"""Reads one dataset from an HDF5 file, or from a video's group, by its key. Only the named file is opened.

HDF5 can point elsewhere (external links, external storage, virtual datasets) and can promise more than it holds
(chunks that were never written, compressed chunks that grow without end). Every such trap is checked before a dataset
is read.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmn_fast.errors import InputError
from mmn_fast.features.limits import Wanted
from mmn_fast.features.messages import choice, pick

_MAX_LINKS = 32  # soft links one after another; a longer chain counts as a circle
_DEFLATE, _CHECKSUM, _SHUFFLE = 1, 3, 2  # HDF5's numbers of filters
_DEFLATE_GROWTH = 1032  # the most that deflate can grow data; HDF5 unpacks a whole chunk before it checks the size
_MAX_GROWN = 2**28  # bytes that a chunk may unpack to without being checked first
_MAX_CHUNK = {True: 2**26, False: 2**24}  # bytes of a compressed chunk: True if deflate alone packs it


def read_hdf5(path: Path, wanted: Wanted) -> npt.NDArray[Any]:
    """Read the dataset under a key; the key is a path inside the file."""
    import h5py

    with h5py.File(path, "r") as file:
        node = file
        for part in (wanted.key or "").split("/"):
            if part in ("", "."):
                continue
            where = inside(wanted.where, node)
            if not isinstance(node, h5py.Group):
                raise InputError(f"{where} is a dataset, got key {wanted.key!r} below it")
            node = member(node, part if _has(node, part) else pick(list(node), part, where, False), wanted.where)
        return read_dataset(node, Wanted(wanted.where, width=wanted.width))


def read_dataset(node: Any, wanted: Wanted) -> npt.NDArray[Any]:
    """Read a dataset; from a group, read the dataset under the key, or the only dataset."""
    import h5py

    if isinstance(node, h5py.Group) and wanted.key is not None and _has(node, wanted.key):
        below = member(node, wanted.key, wanted.where)
        node = below if isinstance(below, h5py.Dataset) else node
    if isinstance(node, h5py.Group):
        first = list(itertools.islice(_datasets(node, wanted.where, set()), 2))  # a file may hold thousands of videos
        if len(first) != 1:
            raise InputError(f"{inside(wanted.where, node)}: {choice(node, inside(wanted.where, node))}")
        node = first[0]
    _check_dataset(node, wanted)
    return np.asarray(node[()])


def read_attribute(node: Any, name: str, where: str) -> str | float | None:
    """Read an attribute that is one text or one number.

    Args:
        node: the HDF5 file, group or dataset that has it.
        name: the attribute's name.
        where: begins messages.

    Returns:
        The value; None if there is no such attribute.

    Raises:
        InputError: the attribute is something else.
    """
    import h5py

    if name not in node.attrs:
        return None
    header = node.attrs.get_id(name)
    text = h5py.check_string_dtype(header.dtype) is not None
    if header.shape != () or not (text or header.dtype.kind in "fiu"):
        kind = "text" if text else header.dtype
        raise InputError(f"{inside(where, node)}: {name}: expected one text or one number, got {kind} {header.shape}")
    value = node.attrs[name]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return value if isinstance(value, str) else float(value)


def member(group: Any, name: str, where: str) -> Any:
    """The group's member under a name; soft links are followed only inside the same file.

    Args:
        group: an HDF5 group.
        name: a name without slashes.
        where: begins messages.

    Raises:
        InputError: the name is an external link (to another file), or soft links go in a circle.
        KeyError: a soft link leads nowhere.
    """
    import h5py

    node, parts, num_links = group, [name], 0
    while parts:
        part = parts.pop(0)
        if part in ("", "."):
            continue
        if not isinstance(node, h5py.Group) or not _has(node, part):
            raise KeyError(f"{name!r} is a link to {part!r} in {node.name!r}, which is not there")
        # Group.get and `in` would open the other file to look for the link's target.
        links, raw = node.id.links, part.encode("utf-8", "surrogateescape")
        kind = links.get_info(raw).type
        if kind == h5py.h5l.TYPE_EXTERNAL:
            place = f"{inside(where, node)}{'/' if node.name.strip('/') else '::'}{part}"
            other = links.get_val(raw)[0].decode("utf-8", "replace")
            raise InputError(f"{place}: is a link into another file, {other!r}, which is not read; name that file")
        if kind != h5py.h5l.TYPE_SOFT:
            node = node[part]
            continue
        num_links += 1
        if num_links > _MAX_LINKS:
            raise InputError(f"{where}::{name}: expected features, got more than {_MAX_LINKS} links one after another")
        target = links.get_val(raw).decode("utf-8", "surrogateescape")
        node = node.file if target.startswith("/") else node
        parts = target.split("/") + parts
    return node


def _has(group: Any, name: str) -> bool:
    found: bool = group.id.links.exists(name.encode("utf-8", "surrogateescape"))
    return found


def inside(where: str, node: Any) -> str:
    """A place in an HDF5 file, spelled FILE::KEY, as callers may spell it."""
    return f"{where}::{node.name.strip('/')}".removesuffix("::")


def _datasets(group: Any, where: str, seen: set[int]) -> Iterator[Any]:
    """Yield the datasets of an HDF5 group, at any depth; a group with several links is visited once."""
    import h5py

    address = h5py.h5o.get_info(group.id).addr
    if address in seen:
        return
    seen.add(address)
    for name in group:
        below = member(group, name, where)
        if isinstance(below, h5py.Dataset):
            yield below
        elif isinstance(below, h5py.Group):
            yield from _datasets(below, where, seen)


def _check_dataset(dataset: Any, wanted: Wanted) -> None:
    """Refuse a dataset whose values are in other files, were never written, or would take too much memory."""
    import h5py

    place = inside(wanted.where, dataset)
    if not isinstance(dataset, h5py.Dataset):
        raise InputError(f"{place}: expected a dataset, got a {type(dataset).__name__.lower()}")
    if dataset.is_virtual:
        raise InputError(f"{place}: is a virtual dataset, made of parts of others, which are not read; write a copy")
    if dataset.external:
        raise InputError(f"{place}: keeps its values in another file, {dataset.external[0][0]!r}, which is not read")
    if dataset.shape is None:
        raise InputError(f"{place}: expected a float array, got an empty dataspace")
    if dataset.dtype.hasobject:
        raise InputError(f"{place}: expected a float array, got values of varying length ({dataset.dtype})")
    Wanted(place, width=wanted.width).check(dataset.shape, dataset.dtype.itemsize, dataset.dtype)
    if dataset.chunks is None:
        if dataset.id.get_storage_size() < dataset.nbytes:
            raise InputError(f"{place}: its values were never written")
        return
    _check_chunks(dataset, place)


def _check_chunks(dataset: Any, place: str) -> None:
    expected = math.prod(-(-side // chunk) for side, chunk in zip(dataset.shape, dataset.chunks, strict=True))
    written = dataset.id.get_num_chunks()
    if written < expected:
        raise InputError(f"{place}: {expected - written} of its {expected} chunks were never written")
    filters = dataset.id.get_create_plist()
    numbers = {filters.get_filter(at)[0] for at in range(filters.get_nfilters())}
    packed = numbers - {_CHECKSUM, _SHUFFLE}
    size = math.prod(dataset.chunks) * dataset.dtype.itemsize
    limit = _MAX_CHUNK[packed == {_DEFLATE}]
    if packed and size > limit:
        raise InputError(f"{place}: expected compressed chunks of at most {limit >> 20} MiB, got {size >> 20} MiB")
    Wanted(place).check(dataset.chunks, dataset.dtype.itemsize, f"chunks of {dataset.dtype}")
    for stored, offset in _stored_sizes(dataset):
        # A filter adds at most a few bytes per kilobyte; a chunk that compresses is stored smaller.
        if stored > size + size // 16 + 4096 or (
            _DEFLATE in packed and stored * _DEFLATE_GROWTH > _MAX_GROWN and _unpacks_beyond(dataset, offset, size)
        ):
            raise InputError(f"{place}: a chunk holds more than the {size} bytes that it unpacks to")


def _stored_sizes(dataset: Any) -> list[tuple[int, tuple[int, ...]]]:
    """Bytes in the file and place of every chunk."""
    found: list[tuple[int, tuple[int, ...]]] = []

    def keep(chunk: Any) -> None:
        found.append((chunk.size, chunk.chunk_offset))

    dataset.id.chunk_iter(keep)
    return found


def _unpacks_beyond(dataset: Any, offset: tuple[int, ...], size: int) -> bool:
    """Whether a chunk's deflate stream is longer than the chunk."""
    _, data = dataset.id.read_direct_chunk(offset)
    unpack = zlib.decompressobj()
    return len(unpack.decompress(data, size + 1)) > size
