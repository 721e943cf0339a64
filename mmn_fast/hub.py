"""Files from the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from mmn_fast.environment import cache_dir
from mmn_fast.types import InputError


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
