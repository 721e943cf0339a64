"""The directory of a run.

log.jsonl       one line per step, one per evaluation
checkpoint.pt   the state of the run; replaced as a whole, so an interruption leaves the old or the new file
best-<epoch>/   the best model so far, as a converted directory (only with validation data)
model/          the result: the best model, or the last one without validation data
model.pth       the result in the official format, if asked for, plus the facts that this format leaves open
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from mmn_fast.checkpoint import LoadedModel, save_model
from mmn_fast.errors import InputError
from mmn_fast.storage.files import whole_file, write_whole
from mmn_fast.storage.unfinished import remove_abandoned
from mmn_fast.training.run.checkpoint_file import write_checkpoint
from mmn_fast.weights.official import official_content


class RunOutput:
    """Files of a run.

    Args:
        path: the run's directory.
        resume: the directory may hold a run.

    Raises:
        InputError: the directory is not empty, and `resume` is False.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        if not resume and path.exists() and any(path.iterdir()):
            raise InputError(f"output: {path} is not empty; resume the run in it, or name a new directory")
        self.path = path
        self.checkpoint, self.log, self.model = path / "checkpoint.pt", path / "log.jsonl", path / "model"

    def prepare(self, step: int, epoch: int) -> None:
        """Make the directory, or tidy it up for a run that resumes after `step` in `epoch`."""
        self.path.mkdir(parents=True, exist_ok=True)
        remove_abandoned(self.path)
        if self.log.exists():
            self._trim_log(step, epoch)

    def _trim_log(self, step: int, epoch: int) -> None:
        """Drop the log's lines after the checkpoint, because they will be written again."""
        kept = []
        for text in self.log.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                line = json.loads(text)
            except json.JSONDecodeError:  # the interruption cut this line off
                break
            finished = "metrics" not in line or line["epoch"] < epoch
            if line["step"] <= step and finished:
                kept.append(text)
        write_whole(self.log, "".join(kept).encode(), overwrite=True, argument="output", durable=True)

    def best(self, epoch: int) -> Path:
        """Directory of the best model, named by its epoch."""
        return self.path / f"best-{epoch}"

    def save_best(self, model: LoadedModel, epoch: int) -> None:
        """Write the model of `epoch` as the best one."""
        # A run that was interrupted before its checkpoint may have left this directory.
        shutil.rmtree(self.best(epoch), ignore_errors=True)
        save_model(model, self.best(epoch))

    def save_checkpoint(self, content: Any) -> None:
        """Replace the checkpoint, see `write_checkpoint`."""
        with whole_file(self.checkpoint, "output", durable=True) as file:
            write_checkpoint(content, file.name)

    def remove_older_best(self, epoch: int) -> None:
        """Remove the best models of all epochs but `epoch`."""
        for directory in self.path.glob("best-*"):
            if directory != self.best(epoch):
                shutil.rmtree(directory, ignore_errors=True)

    def save_result(self, model: LoadedModel) -> None:
        """Write the result as a converted directory."""
        fresh = self.path / ".model-new"
        shutil.rmtree(fresh, ignore_errors=True)
        save_model(model, fresh)
        shutil.rmtree(self.model, ignore_errors=True)
        fresh.rename(self.model)

    def save_official(self, model: LoadedModel, epoch: int, step: int) -> None:
        """Write the result in the official format, after `step` steps; the weights are those of `epoch`."""
        record = {
            "preset": model.preset.to_dict(),
            "text_encoder": dataclasses.asdict(model.text),
            "tokenizer": model.tokenizer.to_json(),
            "feature_contract": None if model.contract is None else model.contract.to_dict(),
        }
        content = official_content(model.state, record, model.preset, epoch, step)
        with whole_file(self.path / "model.pth", "output", durable=True) as file:
            torch.save(content, file)
