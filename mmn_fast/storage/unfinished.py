"""Temporary names of unfinished files and directories, and removal of killed processes' remains.

While `name` is being made, it stands next to its final place as `.name.partial-<12 hex digits>`. Its maker holds an
exclusive `flock` on `.name.partial-<12 hex digits>.lock` during the work. The lock ends with the process, however the
process ends, so a process that gets the lock knows that the maker is gone and may remove both files. Process numbers,
start times and ages cannot tell this: containers that share a disk have equal process numbers and separate clocks, and
a training run may write for days. The lock is a file of its own, because NFS locks files between hosts, but directories
only within one host.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmn_fast.storage import locks

_LOG = logging.getLogger(__name__)
_LONGEST = 200  # most bytes that are kept of the name: file systems allow 255, and 31 are added


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Give a temporary name for an unfinished file or directory, free for use and safe from `remove_abandoned`.

    A file or directory that still has this name when the block ends is removed: move it to `path` first. Remains of
    killed processes for the same `path` are removed, too.

    Args:
        path: the final name; its folder exists.

    Yields:
        The temporary name; nothing has it yet.

    Raises:
        OSError: the folder cannot be written to.
    """
    remove_abandoned(path.parent, path.name)
    partial, lock, descriptor = _take(path)
    maker = os.getpid()
    try:
        yield partial
    finally:
        if os.getpid() == maker:  # a forked process leaves its parent's file alone
            _remove(partial)
            with suppress(OSError):
                lock.unlink(missing_ok=True)
            if descriptor is not None:
                locks.release(descriptor)


def remove_abandoned(folder: str | Path, name: str | None = None) -> None:
    """Remove unfinished files of ended processes, but no file of a living process on any host.

    Args:
        folder: folder to search; may be missing.
        name: final name of the unfinished files; None for any name.
    """
    stem = r"\..+" if name is None else re.escape(f".{_stem(name)}")
    pattern = re.compile(rf"{stem}\.partial-[0-9a-f]{{12}}\.lock", re.DOTALL)
    with suppress(OSError):
        for lock in [Path(entry.path) for entry in os.scandir(folder) if pattern.fullmatch(entry.name)]:
            with suppress(OSError):
                descriptor = locks.take(lock)
                if descriptor is None:
                    continue
                try:
                    _LOG.info("removing unfinished work of a process that is gone: %s", lock.with_suffix(""))
                    _remove(lock.with_suffix(""))
                    lock.unlink()
                finally:
                    locks.release(descriptor)


def _take(path: Path) -> tuple[Path, Path, int | None]:
    """Take a free name; return it, its lock file, and the lock's descriptor (None if the file system has no locks)."""
    while True:
        partial = path.with_name(f".{_stem(path.name)}.partial-{secrets.token_hex(6)}")
        lock = partial.with_name(f"{partial.name}.lock")
        os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666))
        try:
            descriptor = locks.take(lock)
        except OSError:  # no locks here, so the lock file would prove nothing
            lock.unlink(missing_ok=True)
            return partial, lock, None
        if descriptor is not None:  # otherwise another process took it for abandoned before it was locked
            return partial, lock, descriptor


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _stem(name: str) -> str:
    return os.fsencode(name)[:_LONGEST].decode(errors="ignore")
