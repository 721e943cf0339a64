"""Files that a run of the GPU suite keeps in the folder of `--output`, however the run ends.

    log.txt              everything that was printed, written as it is printed
    <processor>.jsonl    the lines that this run added to benchmarks/results/local
    gather_choices.json  the findings of bench_gather; missing if there are none

All files but the log are replaced in one move, so they are whole at any moment.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import BinaryIO

from mmn_fast.errors import InputError, WriteError
from mmn_fast.storage.files import check_name, write_whole

LOG = "log.txt"
CHOICES = "gather_choices.json"


def new_folder(name: str, argument: str = "--output") -> Path:
    """Make a folder for a run's results, or accept one without results.

    Raises:
        InputError: the folder cannot be made or written to, or holds an earlier run's results.
    """
    check_name(name, argument)
    folder = Path(name).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        earlier = sorted(
            path.name for path in folder.iterdir() if path.name in (LOG, CHOICES) or path.suffix == ".jsonl"
        )
        if earlier:
            raise InputError(f"{argument}: expected a folder without results, got {name}, which holds {earlier[0]}")
        with (folder / LOG).open("xb"):  # refuses a second run that starts at the same moment
            pass
    except OSError as problem:
        raise InputError(f"{argument}: cannot write to {name}: {problem.strerror}") from None
    return folder


class Output:
    """Sends a run's output to the screen and, if there is a folder, to the folder's files.

    If a file cannot be written, one message says so and the run goes on: the tree holds the figures as well.

    Attributes:
        problems: file name -> why the last attempt to write the file failed.
    """

    def __init__(self, folder: Path | None, local: Path, choices: Path) -> None:
        """Note which lines and choices exist already, because earlier runs made them.

        Args:
            folder: a folder that `new_folder` returned; None for the screen alone.
            local: folder of the benchmarks' lines.
            choices: the file that bench_gather writes.
        """
        self.problems: dict[str, str] = {}
        self._folder, self._local, self._choices = folder, local, choices
        self._log: BinaryIO | None = (folder / LOG).open("ab", buffering=0) if folder else None
        self._begin = {path.name: path.stat().st_size for path in local.glob("*.jsonl")}
        self._kept: dict[str, bytes] = {CHOICES: self._read(choices)}
        self._seen: dict[Path, tuple[int, int]] = {}
        self._screen = True

    def write(self, content: bytes) -> None:
        """Show bytes and add them to the log."""
        if self._screen:
            try:
                sys.stdout.buffer.write(content)
                sys.stdout.buffer.flush()
            except OSError:  # the reader of the pipe is gone; the log goes on
                self._screen = False
        if self._log is None:
            return
        try:
            if self._log.write(content) == len(content):
                return
            reason = "no room"
        except OSError as problem:
            reason = problem.strerror
        self._failed(LOG, f"--output: cannot write {self._log.name}: {reason}")

    def say(self, text: str = "") -> None:
        """Show a line and add it to the log."""
        self.write(f"{text}\n".encode())

    def copy(self) -> None:
        """Update the folder's copies of files that changed."""
        if self._folder is None:
            return
        for path in sorted(self._local.glob("*.jsonl")):
            if self._changed(path):
                self._put(path.name, self._added(path))
        if self._changed(self._choices):
            self._put(CHOICES, self._read(self._choices))

    def _changed(self, path: Path) -> bool:
        try:
            found = path.stat()
        except OSError:
            return False
        now = (found.st_mtime_ns, found.st_size)
        was, self._seen[path] = self._seen.get(path), now
        return now != was or path.name in self.problems

    def _added(self, path: Path) -> bytes:
        """The lines that this run added; a last line that is still being written is left out."""
        content, begin = self._read(path), self._begin.get(path.name, 0)
        if len(content) < begin:  # somebody moved the earlier lines away
            begin = 0
        return b"".join(line for line in content[begin:].splitlines(keepends=True) if _is_line(line))

    def _put(self, name: str, content: bytes) -> None:
        if self._folder is None or content == self._kept.get(name, b""):
            return
        try:
            write_whole(self._folder / name, content, overwrite=True, argument="--output", durable=True)
        except WriteError as problem:
            self._failed(name, str(problem))
            return
        self._kept[name] = content
        self.problems.pop(name, None)

    def _failed(self, name: str, problem: str) -> None:
        known, self.problems[name] = name in self.problems, problem
        if not known:
            self.say(problem)

    @staticmethod
    def _read(path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError:
            return b""


def _is_line(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except ValueError:
        return False
