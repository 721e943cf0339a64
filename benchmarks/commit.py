"""Which commit a figure is of: git's answer, or `BENCH_COMMIT` where the tree has no git.

A tree that was copied to a machine without its `.git` takes its commit from the environment, as this prints it:

    BENCH_COMMIT=$(git describe --always --exclude '*' --abbrev=10 --dirty)
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

VARIABLE = "BENCH_COMMIT"
DIGITS = 10  # of a commit, in every line
_WANTED = "7 to 40 hexadecimal digits of a commit, with -dirty behind them where the tree was changed"


def git(root: Path, *arguments: str) -> str | None:
    """What git answers in a tree; None where it does not, or where the tree is no repository of its own."""
    if not (root / ".git").exists():  # else git answers for a repository that the tree happens to lie in
        return None
    try:
        found = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def commit_of(root: Path, results: tuple[str, ...] = ()) -> tuple[str, bool]:
    """The commit of a tree, and whether the tree may differ from it.

    Args:
        root: the tree's top folder.
        results: paths below it that measuring itself writes; they do not make a tree dirty.

    Returns:
        The commit's first 10 digits, "" where it is unknown, and then dirty; whether the tree is dirty.

    Raises:
        ValueError: `BENCH_COMMIT` is no commit, or not the one that git says.
    """
    stated, found = os.environ.get(VARIABLE, ""), git(root, "rev-parse", f"--short={DIGITS}", "HEAD")
    match = re.fullmatch(r"([0-9a-f]{7,40})(-dirty)?", stated)
    if stated and match is None:
        raise ValueError(f"{VARIABLE}: expected {_WANTED}, got {stated!r}")
    if not found:
        return (match[1][:DIGITS], match[2] is not None) if match else ("", True)
    if match and not found.startswith(match[1][: len(found)]):
        raise ValueError(f"{VARIABLE}: expected {found}, which git says of this tree, got {stated!r}")
    kept_out = [f":!{path}" for path in results]
    return found, git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", *kept_out) != ""
