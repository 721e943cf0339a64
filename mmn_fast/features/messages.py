"""Parts of messages about files of features: names in the file, close matches, a decoder's reason."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Collection
from pathlib import Path

from mmn_fast.errors import InputError


def pick(names: Collection[str], key: str | None, where: str, lenient: bool) -> str:
    """Pick the key if the file has it; without a key (lenient: or with an unknown one) pick the only name."""
    if key is not None and key in names:
        return key
    if len(names) == 1 and (key is None or lenient):
        return next(iter(names))
    if key is None:
        raise InputError(f"{where}: {choice(names, where)}")
    raise InputError(f"{where}: no key {key!r}{close_to(key, names)}; {listed(names, 'key')}")


def choice(names: Collection[str], where: str) -> str:
    """Ask for a key, in the spelling that the caller must use; `where` is "source: FILE", or a video of a store."""
    found = f"expected one array, or a key that names one, got {listed(names, 'key')}"
    kind, _, place = where.partition(": ")
    if kind != "source":
        return f"{found}; feature_key names the one to take"
    first = next(iter(names), "KEY")
    return f"{found}; give FILE::KEY, as in {place}{'/' if '::' in place else '::'}{first}"


_VIDEOS = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts", ".wmv"),
    *(".asf", ".flv", ".ogv", ".mxf", ".dv", ".gif"),
)


def is_video(path: Path) -> bool:
    """Whether a file's suffix says that it is a video."""
    return path.suffix.lower() in _VIDEOS


def needs_extraction(what: str) -> str:
    """Tell the user how to handle a video file: its features must be extracted first."""
    return (
        f"{what}, and a model takes features: `mmn-fast features VIDEO -o FILE.h5 --extractor ...` makes them, with the"
        " extractor of the model's training (pixels for the demo model; docs/features.md says what is known of the"
        " published models' ones); `mmn-fast ground --video VIDEO` does it at once"
    )


def unreadable_hdf5(error: Exception) -> str | None:
    """The message for an HDF5 file that is still being written; None for other errors."""
    said = str(error)
    if "unable to lock file" in said:
        return "the HDF5 file is locked: another process is writing to it; try again when it has closed the file"
    if "already open for" in said:
        return (
            "the HDF5 file is open for writing, or its writer was killed; try again when it has been closed, or run"
            " h5clear -s on it"
        )
    return None


def listed(names: Collection[str], what: str) -> str:
    """Say how many names there are, and list the first ones."""
    plural = "" if len(names) == 1 else "s"
    first = [repr(name) for name in itertools.islice(names, 4)] + ["..."] * (len(names) > 4)
    return f"{len(names)} {what}{plural}" + (f" ({', '.join(first)})" if first else "")


def close_to(name: str, names: Collection[str]) -> str:
    close = difflib.get_close_matches(name, list(names))
    return f", did you mean {' or '.join(map(repr, close))}?" if close else ""


def first_line(error: Exception) -> str:
    text = (getattr(error, "strerror", None) or str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__
