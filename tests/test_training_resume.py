"""A run that is cut off resumes to the same bits: power cuts, signals, damaged checkpoints."""

from __future__ import annotations

import dataclasses
import io
import os
import signal
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch

from mmn_fast.checkpoint import load_model
from mmn_fast.errors import InputError
from mmn_fast.training.run import trainer
from mmn_fast.training.run.checkpoint_file import read_checkpoint, write_checkpoint
from mmn_fast.training.run.trainer import InterruptedRunError, train
from tests.process_group import Group
from tests.training_runs import Crash, assert_same_run, crash_at, lines, options
from tests.training_task import CONV_PRESET

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "conv-accumulate-bf16": {"preset": CONV_PRESET, "accumulate": 2, "precision": "bf16", "warmup_steps": 3},
    "iou-only-uncached": {"losses": "iou-only", "cache_gib": 0},
    "fp16": {"precision": "fp16", "losses": "no-cross-video"},
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    variant: str, task: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"checkpoint_every": 2, **VARIANTS[variant]}
    train(options(task, tmp_path / "whole", **changes))
    # Before the first checkpoint, within an epoch, and between epochs (3 steps each).
    for step in (1, 5, 6, 8):
        with monkeypatch.context() as patch:
            crash_at(patch, step)
            with pytest.raises(Crash):
                train(options(task, tmp_path / "cut", resume=True, **changes))
    train(options(task, tmp_path / "cut", resume=True, **changes))
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_resuming_a_finished_run_changes_nothing(task: dict[str, Path], tmp_path: Path) -> None:
    result = train(options(task, tmp_path / "run"))
    before, weights = lines(tmp_path / "run"), load_model(result).fingerprint
    assert train(options(task, tmp_path / "run", resume=True)) == result
    assert lines(tmp_path / "run") == before
    assert load_model(result).fingerprint == weights


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2], ids=["within an epoch", "at its end"])
def test_sigterm_writes_a_checkpoint_at_the_steps_end(
    step: int, task: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(options(task, tmp_path / "whole"))
    real = trainer._Run._step

    def signalled(run: Any, *arguments: Any) -> Any:
        if run.position.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(run, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer._Run, "_step", signalled)
        with pytest.raises(InterruptedRunError, match=r"resume goes on from there"):
            train(options(task, tmp_path / "cut"))
    position = torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)["position"]
    assert position["step"] == step + 1
    train(options(task, tmp_path / "cut", resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def train_until_killed(half: bool, task: dict[str, Path], output: Path, changes: dict[str, Any]) -> None:
    """Train, and end by SIGKILL in the fifth write of a checkpoint, when half or all of the file is written."""
    real, count = torch.save, 0

    def save(content: object, file: BinaryIO) -> None:
        nonlocal count
        count += 1
        if count < 5:
            real(content, file)
            return
        buffer = io.BytesIO()
        real(content, buffer)
        Path(file.name).write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // (2 if half else 1)])
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save
    train(options(task, output, **changes))


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["half of the file is written", "the file is written, not yet renamed"])
def test_sigkill_during_a_checkpoint_write_loses_nothing(
    moment: str, task: dict[str, Path], tmp_path: Path, group: Group
) -> None:
    changes = {"checkpoint_every": 1}
    train(options(task, tmp_path / "whole", **changes))
    with pytest.raises(AssertionError, match=rf"^process 0: it ended with status -{signal.SIGKILL:d}$"):
        group(train_until_killed, 1, moment.startswith("half"), task, tmp_path / "cut", changes)
    # Two epochs of three steps; checkpoints 1 and 2 come within the first, 3 at its end, 4 at step 4; 5 was lost.
    assert torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)["position"]["step"] == 4
    assert len(list((tmp_path / "cut").glob(".checkpoint.pt.partial-*"))) == 2
    train(options(task, tmp_path / "cut", resume=True, **changes))
    assert not list((tmp_path / "cut").glob(".*"))
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_resume_refuses_another_run_and_a_damaged_checkpoint(task: dict[str, Path], tmp_path: Path) -> None:
    train(options(task, tmp_path / "run"))
    with pytest.raises(InputError, match=r"resume: .*checkpoint\.pt: seed: the run was begun with 0, got 5"):
        train(options(task, tmp_path / "run", resume=True, seed=5))
    other = dataclasses.replace(options(task, tmp_path).recipe, learning_rate=0.25, epochs=9)  # type: ignore[type-var]
    message = r"checkpoint\.pt: learning_rate: the run was begun with 0\.005, got 0\.25"
    with pytest.raises(InputError, match=message + "$"):
        train(options(task, tmp_path / "run", resume=True, recipe=other))
    with pytest.raises(InputError, match=message + "; also different: dropout, seed$"):
        train(options(task, tmp_path / "run", resume=True, recipe=other, seed=5, dropout=0.3))
    shorter = dataclasses.replace(options(task, tmp_path).recipe, epochs=2)  # type: ignore[type-var]
    with pytest.raises(InputError, match=r"epochs: the run was begun with 3, got 2; it can only be extended"):
        train(options(task, tmp_path / "run", resume=True, recipe=shorter))
    content = read_checkpoint(tmp_path / "run" / "checkpoint.pt")
    for name in ("betas", "weight_decay", "max_gradient_norm", "processes", "seed"):
        del content["run"]["preset"]["recipe"][name]  # a version had these as constants
    write_checkpoint(content, tmp_path / "run" / "checkpoint.pt")
    train(options(task, tmp_path / "run", resume=True))
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match=r"resume: .*checkpoint\.pt: not a checkpoint of a run"):
        train(options(task, tmp_path / "run", resume=True))


@pytest.mark.slow
def test_a_bit_of_the_checkpoint_stops_the_run_from_going_on(task: dict[str, Path], tmp_path: Path) -> None:
    result = train(options(task, tmp_path / "run"))
    path, before = tmp_path / "run" / "checkpoint.pt", load_model(result).fingerprint
    whole = path.read_bytes()
    for place in np.random.default_rng(5).integers(len(whole), size=12):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"resume: .*checkpoint\.pt"):
            train(options(task, tmp_path / "run", resume=True))
    path.write_bytes(whole)
    assert load_model(train(options(task, tmp_path / "run", resume=True))).fingerprint == before
