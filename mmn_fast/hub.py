"""Files that come from elsewhere: from the Hugging Face hub, or through Git-LFS."""

from __future__ import annotations

import re
from pathlib import Path

from mmn_fast.environment import cache_dir
from mmn_fast.errors import InputError


def is_hub_id(name: str | Path) -> bool:
    """Whether the name has the form of a hub id, `owner/name`, and no local path of that name can be meant."""
    return (
        isinstance(name, str)
        and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(?<!\.pth)(?<!\.json)(?<!\.txt)", name) is not None
    )


def download(repo_id: str, files: list[str]) -> Path:
    """Bring files of a hub repository here.

    Args:
        repo_id: `owner/name`.
        files: names of the files wanted.

    Returns:
        The local directory that holds them; `MMN_FAST_CACHE` moves it.

    Raises:
        InputError: the repository cannot be reached, or lacks one of the files.
    """
    from huggingface_hub import snapshot_download

    cache = cache_dir()
    try:
        root = Path(snapshot_download(repo_id, allow_patterns=files, cache_dir=str(cache / "hub") if cache else None))
    except Exception as error:  # the hub client raises many kinds; the first line of each says what happened
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{repo_id}: neither a local path nor a reachable hub repository ({reason})") from None
    missing = [name for name in files if not (root / name).is_file()]
    if missing:
        raise InputError(f"{repo_id}: the hub repository has no {', '.join(missing)}")
    return root


def check_arrived(path: Path, where: str) -> bytes:
    """Refuse a file that is absent, empty, or stands for another.

    Args:
        path: the file.
        where: how messages call it.

    Returns:
        Its first bytes, at most 64.

    Raises:
        InputError: a directory, not readable, empty, or a Git-LFS pointer.
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
