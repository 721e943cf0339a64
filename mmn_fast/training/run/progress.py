"""Output of a run in progress: its log, TensorBoard's files, and a progress bar."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


class Log:
    """Writes log.jsonl, and TensorBoard's files beside it if TensorBoard is installed; without a path, nothing.

    If the disk refuses lines, they wait for room and the run goes on.

    Attributes:
        failure: why lines are waiting; None if no lines are waiting.
    """

    def __init__(self, path: Path | None, step: int) -> None:
        self.failure: str | None = None
        self._waiting = b""
        self._file = None if path is None else path.open("ab", buffering=0)
        self._board: Any = None
        if path is not None:
            with contextlib.suppress(ImportError):
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(path.parent / "tensorboard"), purge_step=step + 1)

    def write(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            self._waiting += (json.dumps(line) + "\n").encode()
            self._flush(self._file)
        if self._board is not None:
            for name, value in (line.get("metrics") or line).items():
                if isinstance(value, float):
                    self._board.add_scalar(name, value, line["step"])

    def _flush(self, file: io.FileIO) -> None:
        before, self.failure = self.failure, None
        try:
            while self._waiting:  # the disk may take only a part; the rest follows
                self._waiting = self._waiting[file.write(self._waiting) :]
        except OSError as error:
            self.failure = error.strerror or str(error)
            if before is None:
                logger.warning("%s: %s; its lines wait for room", file.name, self.failure)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._file, self._board):
            if file is not None:
                file.close()


class ProgressBar:
    """A bar with the epoch, the losses and the time left."""

    def __init__(self, total: int, shown: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(
            *columns, TextColumn("{task.fields[losses]}"), console=Console(stderr=True), disable=not shown
        )
        self._task = self._bar.add_task("training", total=total, losses="")

    def update(self, step: int, epoch: int, epochs: int, line: dict[str, Any]) -> None:
        losses = f"loss {line['loss']:.4f} (video {line['loss_video']:.3f}, sentence {line['loss_sentence']:.3f},"
        losses += f" iou {line['loss_iou']:.3f})"
        self._bar.update(self._task, completed=step, description=f"epoch {epoch}/{epochs}", losses=losses)

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
