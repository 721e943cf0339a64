"""Reads all environment variables of the package.

MMN_FAST_MODEL        model that `mmn_fast.ground` takes when none is named
MMN_FAST_CPU_ISA      generic, avx2, avx512, avx512_bf16 or amx: forces the instruction set (csrc/cpu/isa/list.h)
MMN_FAST_NUM_THREADS  CPU threads when `threads` is not given
MMN_FAST_CACHE        directory of downloads and tuning results
MMN_FAST_LOG          level of the "mmn_fast" logger: debug, info, warning, error
MMN_FAST_API_KEY      key that requests to `mmn-fast serve` must bring, if no file is named
"""

from __future__ import annotations

import logging
import operator
import os
from pathlib import Path

from mmn_fast.errors import InputError


def default_model() -> str | None:
    """`MMN_FAST_MODEL`, or None."""
    return os.environ.get("MMN_FAST_MODEL") or None


def requested_threads(threads: int | None) -> int | None:
    """CPU threads asked for: `threads`, else `MMN_FAST_NUM_THREADS`, else None.

    Raises:
        InputError: the number is not a whole number from 1 to 4096.
    """
    source: str = "threads"
    given: object = threads
    if threads is None:
        source, given = "MMN_FAST_NUM_THREADS", os.environ.get("MMN_FAST_NUM_THREADS")
        if not given:
            return None
    try:
        count = int(given) if isinstance(given, str) else operator.index(given)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        count = 0
    if not 1 <= count <= 4096 or isinstance(given, bool):
        raise InputError(f"{source}: expected a whole number from 1 to 4096, got {given!r}")
    return count


def api_key() -> str | None:
    """`MMN_FAST_API_KEY`, or None."""
    return os.environ.get("MMN_FAST_API_KEY") or None


def cache_dir() -> Path | None:
    """`MMN_FAST_CACHE`, or None: each library then uses its own directory."""
    value = os.environ.get("MMN_FAST_CACHE")
    return Path(value) if value else None


def tuning_dir() -> Path:
    """Directory of tuning results: in `MMN_FAST_CACHE`, else in the user's cache directory.

    Raises:
        OSError: the user has no home directory, for example a nameless user in a container.
    """
    root = cache_dir()
    if root is None:
        try:
            root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmn_fast"
        except RuntimeError:
            raise OSError("there is no home directory; MMN_FAST_CACHE can name another") from None
    return root / "tuning"


def log_level() -> str | None:
    """Level that `MMN_FAST_LOG` asks for; None if it is not set, "WARNING" if it names no level."""
    value = os.environ.get("MMN_FAST_LOG")
    if not value:
        return None
    return value.upper() if value.lower() in ("debug", "info", "warning", "error") else "WARNING"


def configure_logging() -> None:
    """Send the package's log to stderr at the level of `MMN_FAST_LOG`; if it is not set, the application decides."""
    logger = logging.getLogger("mmn_fast")
    logger.addHandler(logging.NullHandler())
    level = log_level()
    if level is None:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level)
    value = os.environ["MMN_FAST_LOG"]
    if value.upper() != level:
        logger.warning("MMN_FAST_LOG: expected debug, info, warning or error, got %r; taking warning", value)
