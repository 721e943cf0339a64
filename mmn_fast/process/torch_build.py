"""Facts about the installed PyTorch without importing it: an import takes seconds, and most commands need no torch."""

from __future__ import annotations

import re
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path


def is_installed() -> bool:
    """Whether `import torch` would find PyTorch."""
    return _folder() is not None


def version() -> str:
    """The installed version, such as "2.9.1+cpu"; "" if PyTorch is not installed or does not give it."""
    try:
        return metadata.version("torch") if is_installed() else ""
    except metadata.PackageNotFoundError:
        return ""


@cache
def has_cuda() -> bool:
    """Whether the installed PyTorch is built with CUDA, or with ROCm (also called "cuda"), by its version file."""
    folder = _folder()
    try:
        text = "" if folder is None else (folder / "version.py").read_text(encoding="utf-8")
    except OSError:
        return False
    # `cuda: Optional[str] = None` in a build for CPUs, `cuda: Optional[str] = '12.8'` in another
    found = re.findall(r"^(?:cuda|hip)\b[^=\n]*=\s*(.+?)\s*$", text, re.MULTILINE)
    return any(value != "None" for value in found)


def _folder() -> Path | None:
    try:
        spec = find_spec("torch")
    except (ImportError, ValueError):  # a finder refuses, or the module has no spec
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin).parent
