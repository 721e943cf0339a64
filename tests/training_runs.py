"""Helpers for training runs on the task of `training_task.py`: options, command line, comparison of two runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from mmn_fast.checkpoint import load_model
from mmn_fast.evaluation.datasets import read_annotations
from mmn_fast.features import open_features
from mmn_fast.tokenizer import load_tokenizer
from mmn_fast.training.data import TrainingData
from mmn_fast.training.run import trainer
from mmn_fast.training.run.options import TrainOptions
from tests.training_task import PRESET, TEXT

ROOT = Path(__file__).parents[1]


def options(task: dict[str, Path], output: Path, **changes: Any) -> TrainOptions:
    recipe = dataclasses.replace(
        PRESET.recipe, epochs=3, milestones=(2,), freeze_text_epochs=1, all_losses_epochs=2, batch_size=8
    )
    values: dict[str, Any] = {"preset": PRESET, "text_encoder": TEXT, "recipe": recipe, "output": output, "threads": 1}
    return TrainOptions(**(values | task | changes))


def lines(run: Path) -> list[dict[str, Any]]:
    """Read a run's log without the times."""
    found = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for line in found:
        del line["seconds"]
    return found


def assert_same_run(first: Path, second: Path) -> None:
    assert lines(first) == lines(second)
    one, two = (torch.load(run / "checkpoint.pt", weights_only=True) for run in (first, second))
    assert one["position"] == two["position"]
    compare(one, two)
    ours, theirs = (load_model(run / "model") for run in (first, second))
    assert ours.fingerprint == theirs.fingerprint


def compare(one: Any, two: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            compare(one[key], two[key])
    elif isinstance(one, list):
        for a, b in zip(one, two, strict=True):
            compare(a, b)
    elif isinstance(one, Tensor):
        assert torch.equal(one, two)
    else:
        assert one == two


class Crash(Exception):  # noqa: N818 - a power cut is not an error of the program
    """Stands for a power cut, after which no code can tidy up."""


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    real = trainer._Run._step

    def crashing(run: Any, *arguments: Any) -> Any:
        if run.position.step == step:
            raise Crash
        return real(run, *arguments)

    monkeypatch.setattr(trainer._Run, "_step", crashing)


def data_of(task: dict[str, Path], **changes: Any) -> TrainingData:
    store = open_features(task["features"])
    return TrainingData(
        read_annotations(task["annotations"], PRESET), store, PRESET, load_tokenizer(task["tokenizer"]), **changes
    )


def write_yaml(path: Path) -> Path:
    """Write the tiny preset as an official configuration file."""
    model = {
        "NUM_CLIPS": PRESET.num_clips,
        "JOINT_SPACE_SIZE": PRESET.joint_size,
        "FEATPOOL": {"INPUT_SIZE": PRESET.input_size, "HIDDEN_SIZE": PRESET.hidden_size, "KERNEL_SIZE": 2},
        "FEAT2D": {"NAME": "pool", "POOLING_COUNTS": list(PRESET.pooling_counts)},
        "PREDICTOR": {"HIDDEN_SIZE": PRESET.conv_hidden_size, "KERNEL_SIZE": 3, "NUM_STACK_LAYERS": 2},
    }
    solver = {"LR": 0.005, "BATCH_SIZE": 8, "MAX_EPOCH": 2, "MILESTONES": [1], "FREEZE_BERT": 1, "ONLY_IOU": 1}
    tree = {
        "MODEL": {"MMN": model},
        "INPUT": {"NUM_PRE_CLIPS": PRESET.num_pre_clips},
        "DATASETS": {"NAME": "charades"},
        "SOLVER": solver,
    }
    path.write_text(yaml.safe_dump(tree))
    return path


def command(task: dict[str, Path], tmp_path: Path, output: str, *extra: str) -> list[str]:
    return command_of(write_yaml(tmp_path / "tiny.yaml"), task, tmp_path / output, *extra)


def command_of(preset: Path, task: dict[str, Path], output: Path, *extra: str) -> list[str]:
    """The command line that trains the preset of a YAML file on a task."""
    sizes = ",".join(f"{name}={getattr(TEXT, name)}" for name in ("max_tokens", "width", "num_layers", "num_heads"))
    return [
        *("train", "--preset", str(preset), "--annotations", str(task["annotations"])),
        *("--features", str(task["features"]), "--tokenizer", str(task["tokenizer"]), "-o", str(output)),
        *("--text-encoder", f"{sizes},ffn_width={TEXT.ffn_width}", "--threads", "1", *extra),
    ]
