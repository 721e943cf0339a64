"""Parts of messages about files of features: what is there, what came close, what a decoder said."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Collection

from mmn_fast.types import InputError


def pick(names: Collection[str], key: str | None, where: str, lenient: bool) -> str:
    """The key if it is there; the only name if there is no key (lenient: or another key)."""
    if key is not None and key in names:
        return key
    if len(names) == 1 and (key is None or lenient):
        return next(iter(names))
    if key is None:
        raise InputError(f"{where}: {choice(names)}")
    raise InputError(f"{where}: no key {key!r}{close_to(key, names)}; {listed(names, 'key')}")


def choice(names: Collection[str]) -> str:
    return f"expected one array, or a key that names one, got {listed(names, 'key')}"


def listed(names: Collection[str], what: str) -> str:
    """How many names there are, and the first of them."""
    plural = "" if len(names) == 1 else "s"
    first = [repr(name) for name in itertools.islice(names, 4)] + ["..."] * (len(names) > 4)
    return f"{len(names)} {what}{plural}" + (f" ({', '.join(first)})" if first else "")


def close_to(name: str, names: Collection[str]) -> str:
    close = difflib.get_close_matches(name, list(names))
    return f", did you mean {' or '.join(map(repr, close))}?" if close else ""


def first_line(error: Exception) -> str:
    text = (getattr(error, "strerror", None) or str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__
