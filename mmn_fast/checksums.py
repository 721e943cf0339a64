"""Checksums of arrays, files and plain values. Whatever the package writes for later carries one and is held to it.

Everything is SHA-256. Measured on 500 MB (AMD Milan, OpenSSL with SHA instructions, processor time): SHA-256 0.32 s,
BLAKE2b 0.64 s, CRC-32 0.14 s. CRC-32 finds damage but cannot name a model: among 100,000 models two would share a
number. hashlib lets threads run side by side, so large arrays are hashed in chunks: 0.16 s with two threads on two free
cores. xxHash would be faster still, but it is no part of Python, and reading the file takes longer than either.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from mmn_fast.cores import usable_cores

_CHUNK = 2**22  # bytes that one thread hashes at a time: 1.3 ms of work against some 30 us for handing it over
_SERIAL = 2**23  # bytes below which starting threads takes longer than they save
_MAX_THREADS = 4  # more of them wait for memory

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def array_digests(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, str]:
    """SHA-256 of every array: of its name, dtype and shape, and of the SHA-256s of its chunks of 4 MiB.

    Args:
        arrays: C-contiguous arrays of any dtype and shape.

    Returns:
        Hexadecimal digests under the arrays' names, in the order of names.
    """
    names = sorted(arrays)
    flat = {name: arrays[name].reshape(-1).view(np.uint8).data for name in names}
    pieces = [(name, flat[name][start : start + _CHUNK]) for name in names for start in _starts(len(flat[name]))]
    digests = {name: hashlib.sha256(_header(name, arrays[name])) for name in names}
    total = sum(map(len, flat.values()))
    for (name, _), digest in zip(pieces, side_by_side(lambda piece: _sha256(piece[1]), pieces, total), strict=True):
        digests[name].update(digest)
    return {name: digest.hexdigest() for name, digest in digests.items()}


def combined_sha256(digests: Mapping[str, str]) -> str:
    """One SHA-256, hexadecimal, of the digests that `array_digests` gives."""
    return plain_sha256(dict(digests))


def plain_sha256(plain: Mapping[str, Any]) -> str:
    """SHA-256 of plain values, hexadecimal, however they are laid out as JSON."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal, as `sha256sum` prints it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def chunked_sha256(path: Path, size: int) -> str:
    """SHA-256, hexadecimal, of the SHA-256s of the chunks of 4 MiB that a file's first `size` bytes are.

    Several threads share the work, which for one large file `file_sha256` cannot.
    """
    with path.open("rb") as file:
        descriptor = file.fileno()

        def of_chunk(start: int) -> bytes:
            return _sha256(os.pread(descriptor, min(_CHUNK, size - start), start))

        digests = side_by_side(of_chunk, list(_starts(size)), size)
    return hashlib.sha256(b"".join(digests)).hexdigest()


def side_by_side(function: Callable[[_Item], _Result], items: Sequence[_Item], total: int) -> list[_Result]:
    """The function's results, by several threads if that pays.

    Args:
        function: hashes one item.
        items: what to hash.
        total: their bytes together.
    """
    threads = min(_MAX_THREADS, usable_cores(), len(items))
    if threads < 2 or total < _SERIAL:
        return [function(item) for item in items]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))


def _header(name: str, array: npt.NDArray[Any]) -> bytes:
    return f"{name}\n{array.dtype.str}\n{array.shape}\n".encode()


def _starts(size: int) -> Iterator[int]:
    return iter(range(0, size, _CHUNK))


def _sha256(data: bytes | memoryview) -> bytes:
    return hashlib.sha256(data).digest()
