"""A private folder for what clients send. It is gone when the service ends; after a crash, when the next one starts."""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmn_fast.errors import InputError
from mmn_fast.storage.unfinished import unfinished


@contextmanager
def private_folder(parent: Path | None = None) -> Iterator[Path]:
    """Make an empty folder that only this user can read; remove it at the end, and the remains of killed services.

    Args:
        parent: folder to make it in; None takes `mmn-fast-serve-<user>` in the system's temporary folder.

    Raises:
        InputError: the parent cannot be written to, or belongs to someone else.
    """
    if parent is None:
        parent = Path(tempfile.gettempdir()) / f"mmn-fast-serve-{os.getuid()}"
    try:
        parent.mkdir(mode=0o700, exist_ok=True)
        found = os.lstat(parent)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise InputError(f"uploads: expected a folder of this user, got {parent} of another one, or a link")
        with unfinished(parent / "uploads") as folder:
            folder.mkdir(mode=0o700)
            yield folder
    except OSError as error:
        if error.filename is None or not str(error.filename).startswith(str(parent)):
            raise
        raise InputError(f"uploads: cannot use {parent}: {error.strerror}") from None


@contextmanager
def private_file(folder: Path, suffix: str) -> Iterator[Path]:
    """A free name in the folder; the file is removed at the end."""
    path = folder / f"{secrets.token_hex(8)}{suffix}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
