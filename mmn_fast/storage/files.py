"""Files and directories: checks names, and writes contents that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mmn_fast.errors import InputError, WriteError
from mmn_fast.storage.unfinished import remove_abandoned, unfinished

_OF_DISKS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


def check_name(name: object, argument: str) -> None:
    """Refuse a value that cannot name a file or directory.

    Args:
        name: a str or a path.
        argument: name of the caller's argument, for the message.

    Raises:
        InputError: neither str nor path, empty, or longer than the system allows.
    """
    if not isinstance(name, (str, os.PathLike)) or not str(name):
        raise InputError(f"{argument}: expected a name or a path, got {name!r}")
    try:
        os.stat(name)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(f"{argument}: {str(name)[:80]!r}: {getattr(error, 'strerror', None) or error}") from None


def refuse_existing(path: str | Path, argument: str = "path") -> Path:
    """Refuse a path that exists or cannot be written; call this before long work whose result goes there.

    Unfinished remains of that file from killed processes are removed.

    Args:
        path: file to write later.
        argument: name of the caller's argument, for the message.

    Raises:
        InputError: the path exists, or its folder does not exist or cannot be written to.
    """
    path = Path(path)
    if path.exists():
        raise InputError(f"{argument}: {path} already exists; expected the name of a new file")
    if not path.parent.is_dir():
        raise InputError(f"{argument}: cannot write {path}: no such folder {path.parent}")
    remove_abandoned(path.parent, path.name)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"{argument}: cannot write {path}: the folder {path.parent} is read-only")
    return path


def write_whole(
    path: str | Path, content: bytes, overwrite: bool, argument: str = "path", durable: bool = False
) -> Path:
    """Write a file; it appears whole or not at all.

    Args:
        path: file to write.
        content: the file's bytes.
        overwrite: replace an existing file instead of refusing.
        argument: name of the caller's argument, for messages.
        durable: see `whole_file`.

    Raises:
        InputError: the file exists and may not be replaced.
        WriteError: the file cannot be written.
    """
    path = Path(path) if overwrite else refuse_existing(path, argument)
    with whole_file(path, argument, durable) as file:
        file.write(content)
    return path


@contextmanager
def whole_file(path: str | Path, argument: str = "path", durable: bool = False) -> Iterator[BinaryIO]:
    """Open a file to write. It takes the name `path` when the block ends well; otherwise nothing is left of it.

    At any moment `path` is the whole old file or the whole new one. A device or pipe is written to directly.

    Args:
        path: file to write; an existing file is replaced. A link is followed.
        argument: name of the caller's argument, for messages.
        durable: the guarantee also holds across power cuts.

    Raises:
        InputError: `path` names no file.
        WriteError: the system refuses (any OSError of the block counts as a refusal, also as wrapped by libraries).
    """
    path = Path(path)
    if not path.name:
        raise InputError(f"{argument}: expected the name of a file, got {str(path)!r}")
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            with path.open("wb") as device:
                yield device
            return
        target = Path(os.path.realpath(path))
        with unfinished(target) as partial:
            with partial.open("x+b") as file:
                yield file
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            partial.replace(target)
            if durable:
                _sync_directory(target.parent)
    except Exception as error:
        reason = _refusal(error)
        if reason is None:
            raise
        raise WriteError(f"{argument}: cannot write {path}: {reason}") from None


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_directory(output: Path, argument: str) -> Iterator[Path]:
    """Create a directory to fill, next to `output`. It takes the name `output` when the block ends well.

    Otherwise nothing is left of the directory and of the parents made for it, unless a parent holds something else by
    then.

    Args:
        output: directory to create; must not exist.
        argument: name of the caller's argument, for messages.

    Raises:
        InputError: the directory cannot be made.
        WriteError: the system refuses to write into it, as in `whole_file`.
    """
    made: list[Path] = []
    filling = False
    try:
        for parent in reversed(output.parents):
            if not parent.exists():
                with suppress(FileExistsError):  # another process has made it by now
                    parent.mkdir()
                    made.append(parent)
        with unfinished(output) as partial:
            partial.mkdir()
            filling = True
            yield partial
            partial.rename(output)
    except Exception as error:
        reason = _refusal(error)
        if reason is None:
            raise
        kind = WriteError if filling else InputError
        raise kind(f"{argument}: {output}: {reason}") from None
    finally:
        for parent in reversed(made):
            with suppress(OSError):  # not empty, which is normal after success
                parent.rmdir()


def _refusal(error: BaseException) -> str | None:
    """The system's reason for a write error; None for another kind of error.

    HDF5, safetensors and PyTorch raise their own errors for a full disk. These carry the system's error number in their
    text, or are raised while Python handles the system's error.
    """
    if isinstance(error, InputError):
        return None
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)  # HDF5 fills `strerror` with three lines of its own
    if isinstance(error, OSError):
        return error.strerror or f"not all of it could be written ({error})"  # NumPy counts the bytes that were written
    number = re.search(r"\b(?:errno\s*=?|os error)\s*(\d+)", str(error), re.IGNORECASE)
    if number is not None:
        return os.strerror(int(number[1]))
    earlier = error.__context__
    return earlier.strerror if isinstance(earlier, OSError) and earlier.errno in _OF_DISKS else None
