"""Writes HDF5 files: a full disk is an error, and not a crash of HDF5."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO


@contextmanager
def new_hdf5(file: BinaryIO) -> Iterator[tuple[Any, Callable[[], None]]]:
    """Write HDF5 into a file.

    HDF5 2.0 ends the process with a segmentation fault if the system refuses a write (a full disk, a limit) and HDF5
    meets that when it closes the file. So HDF5 writes through an object whose writes never fail, and which remembers
    the first error.

    Args:
        file: an empty file, open for reading and writing.

    Yields:
        The `h5py.File`, and a function that raises the system's first refusal so far; call it after each large write.

    Raises:
        OSError: the system has refused a write.
    """
    import h5py

    unfailing = _Unfailing(file)
    with h5py.File(unfailing, "w") as new:
        yield new, unfailing.check
    unfailing.check()


class _Unfailing:
    """A file that remembers the first error of its writes and pretends that they have succeeded."""

    def __init__(self, file: BinaryIO) -> None:
        self._descriptor = file.fileno()
        self._place = self._size = 0
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the first error of the writes so far.

        Raises:
            OSError: the system's refusal.
        """
        if self._error is not None:
            raise self._error

    def write(self, data: Any) -> int:
        """Write at the place, or pretend to."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            written = self._tried(partial(os.pwrite, self._descriptor, view[done:], self._place + done))
            if written is None:
                break
            done += written
        self._place += len(view)
        self._size = max(self._size, self._place)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Give the file a size, or pretend to."""
        self._size = self._place if size is None else size
        self._tried(partial(os.ftruncate, self._descriptor, self._size))
        return self._size

    def readinto(self, buffer: Any) -> int:
        """Read at the place; bytes that were not written are 0."""
        view = memoryview(buffer).cast("B")
        found = self._tried(partial(os.pread, self._descriptor, len(view), self._place)) or b""
        view[: len(found)] = found
        view[len(found) :] = bytes(len(view) - len(found))
        self._place += len(view)
        return len(view)

    def read(self, size: int = -1) -> bytes:
        """Read at the place; h5py takes an object for a file if it can `read` and `seek`."""
        content = bytearray(max(self._size - self._place, 0) if size < 0 else size)
        self.readinto(content)
        return bytes(content)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the place."""
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        return self._place

    def tell(self) -> int:
        """The place in the file."""
        return self._place

    def flush(self) -> None:
        """Do nothing: every write goes to the system at once."""

    def _tried(self, call: Callable[[], Any]) -> Any:
        """The call's result; None after an error, the first of which is remembered."""
        if self._error is None:
            try:
                return call()
            except OSError as error:
                self._error = error
        return None
