"""Checksums of arrays, files and plain values. Every file that the package writes for later reading carries a checksum,
and reading verifies it.

Everything is SHA-256. Measured on 500 MB (AMD Milan, OpenSSL with SHA instructions, processor time): SHA-256 0.32 s,
BLAKE2b 0.64 s, CRC-32 0.14 s. CRC-32 finds damage but cannot name a model: among 100,000 models two would share a
number. hashlib releases the GIL, so threads hash chunks of large arrays side by side: 0.16 s with two threads on two
free cores. xxHash would be faster still, but it is no part of Python, and reading the file takes longer than either.
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

from mmn_fast.process.cores import usable_cores

_CHUNK = 2**22  # bytes that one thread hashes at a time: 1.3 ms of work, while handing it over takes about 30 us
_SERIAL = 2**23  # below this many bytes, starting threads takes longer than they save
_MAX_THREADS = 4  # more threads would wait for memory

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def array_digests(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, str]:
    """SHA-256 of every array. The hash covers name, dtype, shape, and the SHA-256s of the array's chunks of 4 MiB.

    Args:
        arrays: C-contiguous arrays of any dtype and shape.

    Returns:
        Hexadecimal digests by name, in the order of names.
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
    """SHA-256, hexadecimal, of all digests of `array_digests` together."""
    return plain_sha256(dict(digests))


def plain_sha256(plain: Mapping[str, Any]) -> str:
    """SHA-256 of plain values, hexadecimal; the layout of their JSON text does not matter."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal, as `sha256sum` prints it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def chunked_sha256(path: Path, size: int) -> str:
    """SHA-256, hexadecimal, of the SHA-256s of chunks of 4 MiB, over a file's first `size` bytes.

    Several threads share the work; `file_sha256` hashes a file with one thread.
    """
    with path.open("rb") as file:
        descriptor = file.fileno()

        def of_chunk(start: int) -> bytes:
            return _sha256(os.pread(descriptor, min(_CHUNK, size - start), start))

        digests = side_by_side(of_chunk, list(_starts(size)), size)
    return hashlib.sha256(b"".join(digests)).hexdigest()


def side_by_side(function: Callable[[_Item], _Result], items: Sequence[_Item], total: int) -> list[_Result]:
    """Apply the function to all items, with several threads if that saves time.

    Args:
        function: hashes one item.
        items: the items to hash.
        total: bytes of all items together.
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
