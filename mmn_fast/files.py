"""Files and directories: names that can be used, and contents that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmn_fast.errors import InputError


def check_name(name: object, argument: str) -> None:
    """Refuse what cannot name a file or directory.

    Args:
        name: a str or a path.
        argument: name of the caller's argument, for the message.

    Raises:
        InputError: neither, empty, or longer than the system takes.
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
    """Refuse a path that is taken or whose folder is missing: ask before long work whose result goes there.

    Args:
        path: file to write later.
        argument: name of the caller's argument, for the message.

    Raises:
        InputError: the path exists, or its folder does not.
    """
    path = Path(path)
    if path.exists():
        raise InputError(f"{argument}: {path} already exists; expected the name of a new file")
    if not path.parent.is_dir():
        raise InputError(f"{argument}: cannot write {path}: no such folder {path.parent}")
    return path


def write_whole(path: str | Path, content: bytes, overwrite: bool) -> Path:
    """Write a file in one move.

    Args:
        path: file to write.
        content: its bytes.
        overwrite: replace an existing file instead of refusing.

    Raises:
        InputError: the file exists and may not be replaced, or cannot be written.
    """
    path = Path(path) if overwrite else refuse_existing(path)
    if not path.name:
        raise InputError(f"path: expected the name of a file, got {str(path)!r}")
    partial = _partial(path)
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"path: cannot write {path}: {error.strerror or error}") from None
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return path


@contextmanager
def new_directory(output: Path, argument: str) -> Iterator[Path]:
    """Give a directory to fill, beside `output`, and give it that name when the block has ended well.

    Otherwise nothing is left of it, nor of the parents that were made for it, unless something else is in them by then.

    Args:
        output: directory to create; must not exist.
        argument: name of the argument that it came from, for messages.

    Raises:
        InputError: the system refuses (any OSError of the block is taken for that).
    """
    partial = _partial(output)
    made: list[Path] = []
    try:
        for parent in reversed(output.parents):
            if not parent.exists():
                with suppress(FileExistsError):  # somebody else's by now
                    parent.mkdir()
                    made.append(parent)
        partial.mkdir()
        yield partial
        partial.rename(output)
    except OSError as error:
        raise InputError(f"{argument}: {output}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in reversed(made):
            with suppress(OSError):  # not empty, as always where all went well
                parent.rmdir()


def _partial(path: Path) -> Path:
    """Where what will be `path` stands until it is whole. Containers that share a disk have equal process numbers."""
    return path.with_name(f".{path.name}.partial-{secrets.token_hex(6)}")
