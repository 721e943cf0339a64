"""Files from elsewhere: downloads from the Hugging Face hub, and Git-LFS pointers."""

from __future__ import annotations

import re
from pathlib import Path

from mmn_fast.errors import InputError
from mmn_fast.process.environment import cache_dir


def is_hub_id(name: str | Path) -> bool:
    """Whether the name has the form of a hub id, `owner/name`, and cannot mean a local path."""
    return (
        isinstance(name, str)
        and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(?<!\.pth)(?<!\.json)(?<!\.txt)", name) is not None
    )


def download(repo_id: str, files: list[str]) -> Path:
    """Download files of a hub repository.

    Args:
        repo_id: `owner/name`.
        files: names of the wanted files.

    Returns:
        The local directory that holds the files; `MMN_FAST_CACHE` chooses its place.

    Raises:
        InputError: the repository cannot be reached, or lacks a wanted file.
    """
    from huggingface_hub import snapshot_download

    cache = cache_dir()
    try:
        root = Path(snapshot_download(repo_id, allow_patterns=files, cache_dir=str(cache / "hub") if cache else None))
    except Exception as error:  # the hub client raises many kinds of errors; the first line of each says what happened
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{repo_id}: neither a local path nor a reachable hub repository ({reason})") from None
    missing = [name for name in files if not (root / name).is_file()]
    if missing:
        raise InputError(f"{repo_id}: the hub repository has no {', '.join(missing)}")
    return root


def check_arrived(path: Path, where: str) -> bytes:
    """Refuse a file that is missing, empty, or a pointer to another file.

    Args:
        path: the file.
        where: name of the file in messages.

    Returns:
        The file's first bytes, at most 64.

    Raises:
        InputError: the file is a directory, unreadable, empty, or a Git-LFS pointer.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise InputError(f"{where}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(f"{where}: {getattr(error, 'strerror', None) or error}") from None
    if not head:
        raise InputError(f"{where} is empty")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{where} is a Git-LFS pointer, not the file itself; run `git lfs pull` there")
    return head
