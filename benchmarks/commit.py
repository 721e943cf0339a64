"""Finds the commit that a figure belongs to: git's answer, or `BENCH_COMMIT` if the tree has no git.

A tree that was copied without its `.git` takes its commit from the environment. Set the variable like this:

    BENCH_COMMIT=$(git describe --always --exclude '*' --abbrev=10 --dirty)
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

VARIABLE = "BENCH_COMMIT"
DIGITS = 10  # digits of a commit in every line
_WANTED = "7 to 40 hexadecimal digits of a commit, followed by -dirty if the tree was changed"


def git(root: Path, *arguments: str) -> str | None:
    """Run git in a tree and return its output; None if git fails or the tree is not a repository of its own."""
    if not (root / ".git").exists():  # otherwise git would answer for a repository around the tree
        return None
    try:
        found = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def commit_of(root: Path, results: tuple[str, ...] = ()) -> tuple[str, bool]:
    """Find the commit of a tree, and whether the tree may differ from it (is dirty).

    Args:
        root: the tree's top folder.
        results: paths below `root` that benchmarks write; changes there do not make the tree dirty.

    Returns:
        The commit's first 10 digits, "" if unknown; whether the tree is dirty (True if the commit is unknown).

    Raises:
        ValueError: `BENCH_COMMIT` is not a commit, or differs from git's answer.
    """
    stated, found = os.environ.get(VARIABLE, ""), git(root, "rev-parse", f"--short={DIGITS}", "HEAD")
    match = re.fullmatch(r"([0-9a-f]{7,40})(-dirty)?", stated)
    if stated and match is None:
        raise ValueError(f"{VARIABLE}: expected {_WANTED}, got {stated!r}")
    if not found:
        return (match[1][:DIGITS], match[2] is not None) if match else ("", True)
    if match and not found.startswith(match[1][: len(found)]):
        raise ValueError(f"{VARIABLE}: expected {found}, the commit that git names, got {stated!r}")
    kept_out = [f":!{path}" for path in results]
    return found, git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", *kept_out) != ""
