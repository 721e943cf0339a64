"""Finds the packages that make and check exports: missing ones, and the versions of installed ones."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from mmn_fast.version import __version__

_EXPORTER = ("torch", "onnx", "onnxruntime")


def missing_extra(names: Sequence[str] = _EXPORTER) -> str | None:
    """Name the packages that are not installed, in one sentence; None if all are installed."""
    missing = [name for name in names if find_spec(name) is None]
    wanted = ["torch"] * ("torch" in missing) + ["mmn_fast[onnx]"] * (missing not in ([], ["torch"]))
    return f"{' and '.join(missing)} not installed (pip install {' '.join(wanted)})" if missing else None


def versions() -> dict[str, str]:
    """Versions by name: mmn_fast, Python, and the installed packages that make an export."""
    found = {"mmn_fast": __version__, "python": platform.python_version()}
    for name in (*_EXPORTER, "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
