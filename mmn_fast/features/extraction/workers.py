"""Processes that extract features, one video at a time each.

A decoder is C code that reads untrusted files. If it crashes, its process ends; the video is named and skipped, and a
new process goes on with the next video.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

from mmn_fast.errors import BackendUnavailable, InputError, WriteError
from mmn_fast.features.contract import FeatureContract
from mmn_fast.features.extraction.parts import Finished, write_part
from mmn_fast.features.extraction.videos import VideoFile
from mmn_fast.features.messages import first_line
from mmn_fast.process.child import GONE, Child

_TELL_EVERY_S = 0.5


@dataclass(frozen=True)
class Work:
    """What a process does with every video.

    Attributes:
        spec: the extractor.
        options: keyword arguments of `make_extractor`.
        folder: where finished videos go.
        max_duration_s: longer videos are skipped; None for no limit.
    """

    spec: str
    options: dict[str, Any]
    folder: Path
    max_duration_s: float | None


@dataclass(frozen=True)
class Skipped:
    """A video without features.

    Attributes:
        video: the video.
        reason: one sentence.
    """

    video: VideoFile
    reason: str


def serve(connection: Connection) -> None:
    """Run in a process: make the extractor, then answer every video until the other side closes the connection.

    Args:
        connection: its first message is the `Work`.
    """
    from mmn_fast.features.extractors import make_extractor
    from mmn_fast.media.container import av_module

    work: Work = connection.recv()
    try:
        av_module()  # without it every single video would be skipped
        extractor = make_extractor(work.spec, **work.options)
    except (InputError, BackendUnavailable) as error:
        connection.send(("refused", str(error)))
        return
    except Exception as error:  # a library's own error; the message names what happened
        connection.send(("refused", f"extractor: {work.spec}: {type(error).__name__}: {first_line(error)}"))
        return
    connection.send(("ready", extractor.contract))
    while True:
        connection.send(_answer(connection.recv(), extractor, work, connection))


def _answer(video: VideoFile, extractor: Any, work: Work, connection: Connection) -> tuple[str, Any]:
    told = 0.0

    def tell(seconds: float) -> None:
        nonlocal told
        if time.monotonic() - told > _TELL_EVERY_S:
            told = time.monotonic()
            connection.send(("progress", seconds))

    try:
        features = extractor.read(video.path, max_duration_s=work.max_duration_s, progress=tell)
        done = write_part(work.folder, video, features, extractor.contract)
    except WriteError as error:
        return "full", str(error)
    except InputError as error:
        return "skipped", str(error)
    except GONE:
        raise
    except MemoryError:
        return "skipped", f"{video.path}: not enough memory"
    except Exception as error:  # a video must not end the run; the message names what happened
        return "skipped", f"{video.path}: {type(error).__name__}: {first_line(error)}"
    return "done", done


class _Process:
    """One process and the video that it has."""

    def __init__(self, work: Work) -> None:
        self._child = Child(serve)
        self.connection = self._child.connection
        self.video: VideoFile | None = None
        self.ready = False  # whether it has made its extractor
        self._send(work)

    def give(self, video: VideoFile) -> None:
        self.video = video
        self._send(video)

    def _send(self, value: object) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it has ended, which the next `wait` tells
            self.connection.send(value)

    def end(self) -> str:
        """End the process; return how it ended, as a part of a sentence."""
        return self._child.end(0.2 if self.video else 2)


class Workers:
    """Some processes that extract features. A context manager, which ends them.

    Args:
        count: processes, >= 1.
        work: what they do.

    Raises:
        InputError: the extractor cannot be made.
    """

    def __init__(self, count: int, work: Work) -> None:
        self._count, self._work = count, work
        self._processes: list[_Process] = []
        self.contract = self._start()

    def _start(self) -> FeatureContract:
        """Start one process and wait for its extractor."""
        process = _Process(self._work)
        self._processes.append(process)
        try:
            kind, value = process.connection.recv()
        except GONE:
            how = process.end()
            raise InputError(f"extractor: the process that makes {self._work.spec} ended with {how}") from None
        except BaseException:
            self.close()
            raise
        if kind == "refused":
            self.close()
            raise InputError(value)
        process.ready = True
        contract: FeatureContract = value
        return contract

    def run(
        self, videos: Sequence[VideoFile], progress: Callable[[VideoFile, float], object]
    ) -> Iterator[Finished | Skipped]:
        """Extract the features of videos; the results come as they are finished.

        Args:
            videos: the videos.
            progress: called with a video at hand and the seconds of it that are done.

        Raises:
            WriteError: the system refuses a finished video's file, such as for a full disk.
            InputError: a process's extractor cannot be made.
        """
        waiting = list(reversed(videos))
        for process in self._processes:
            if waiting:
                process.give(waiting.pop())
        while len(self._processes) < min(self._count, len(videos)):
            self._processes.append(_Process(self._work))  # it answers "ready" when its extractor is made
        busy = {process.connection: process for process in self._processes}
        while waiting or any(process.video for process in busy.values()):
            for connection in wait(list(busy)):
                process = busy[connection]  # type: ignore[index]
                try:
                    kind, value = process.connection.recv()
                except GONE:
                    del busy[process.connection]
                    self._processes.remove(process)
                    yield from self._died(process, waiting, busy)
                    continue
                process.ready = True
                if kind == "progress":
                    if process.video is not None:
                        progress(process.video, value)
                    continue
                yield from _result(kind, value, process)
                process.video = None
                if waiting:
                    process.give(waiting.pop())

    def _died(self, process: _Process, waiting: list[VideoFile], busy: dict[Connection, _Process]) -> Iterator[Skipped]:
        """A process has ended by itself: skip its video and start another process if there is work for it."""
        how = process.end()
        if process.video is not None:
            yield Skipped(process.video, f"{process.video.path}: the process that read it ended with {how}")
        elif not process.ready:
            raise InputError(f"extractor: the process that makes {self._work.spec} ended with {how}")
        if waiting:
            new = _Process(self._work)
            self._processes.append(new)
            busy[new.connection] = new

    def close(self) -> None:
        """End the processes; a video at hand is lost."""
        for process in self._processes:
            process.end()
        self._processes.clear()

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _result(kind: str, value: Any, process: _Process) -> Iterator[Finished | Skipped]:
    if kind == "refused":
        raise InputError(value)
    if kind == "full":
        raise WriteError(value)
    if kind == "skipped" and process.video is not None:
        yield Skipped(process.video, value)
    if kind == "done":
        yield value
