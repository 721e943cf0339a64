"""Extractors and actors that fail on purpose, for tests of encoding on a cluster."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mmn_fast
from mmn_fast import Video
from mmn_fast.features.extraction.videos import VideoFile


def own_process() -> tuple[int, int]:
    """The process that encodes, and the signal of a fault in a decoder."""
    return os.getpid(), signal.SIGSEGV


def its_actor() -> tuple[int, int]:
    """The actor of the process that encodes, and the signal for want of memory."""
    return os.getppid(), signal.SIGKILL


class Extractor:
    """Gives every file the features of one video, slowly; `crash.mp4` ends a process."""

    contract = None

    def __init__(self, videos: list[Video], wait_s: float = 0.1, ends: Callable[[], tuple[int, int]] | None = None):
        self._videos, self._wait_s, self._ends = videos, wait_s, ends or own_process

    def __call__(self, engine: mmn_fast.Engine) -> Extractor:
        """Itself: it is its own factory."""
        return self

    def read(self, path: Path) -> Any:
        """The features of the file's video."""
        time.sleep(self._wait_s)
        if path.name == "crash.mp4":
            os.kill(*self._ends())
        return SimpleNamespace(rows=self._videos[int(path.stem)].features, duration_s=4.0, lost=None)


def files_of(videos: list[Video]) -> list[VideoFile]:
    """The names of files that `Extractor` reads as these videos."""
    return [VideoFile(f"video {n}", Path(f"/{n}.mp4")) for n in range(len(videos))]


def raising(engine: mmn_fast.Engine) -> Any:
    """An extractor that cannot be made."""
    raise ValueError("no such network\nand more")


def ending(engine: mmn_fast.Engine) -> Any:
    """An extractor whose making ends the process."""
    os.kill(os.getpid(), signal.SIGKILL)


class Holder:
    """Holds what it was given."""

    def begin(self) -> None:
        """Answer once it runs."""
