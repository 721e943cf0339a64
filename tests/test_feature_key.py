"""Commands that read features of many videos take `--feature-key`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from mmn_fast.cli import app
from mmn_fast.errors import InputError
from mmn_fast.presets import PRESETS
from mmn_fast.training.run.trainer import train
from tests.training_runs import options


def test_eval_takes_the_array_of_that_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    width = PRESETS["shapes"].input_size
    with h5py.File("f.h5", "w") as file:
        file["v/rgb"] = np.random.default_rng(0).random((20, width), np.float32)
        file["v/flow"] = np.zeros((20, 3), np.float32)
    Path("a.json").write_text(json.dumps({"v": {"duration": 9.0, "timestamps": [[1.0, 4.0]], "sentences": ["red"]}}))
    command = ["eval", "--model", "demo", "--annotations", "a.json", "--features", "f.h5", "--json"]
    done = CliRunner().invoke(app, [*command, "--feature-key", "rgb"])
    assert done.exit_code == 0, done.output
    assert isinstance(CliRunner().invoke(app, command).exception, InputError)
    wide = CliRunner().invoke(app, [*command, "--feature-key", "flow"])
    assert isinstance(wide.exception, InputError)
    assert "float32 [20, 3]" in str(wide.exception)


def test_train_takes_the_array_of_that_key(task: dict[str, Path], tmp_path: Path) -> None:
    features = tmp_path / "two.h5"
    with h5py.File(features, "w") as file:
        for path in task["features"].glob("*.npy"):
            file[f"{path.stem}/good"] = np.load(path)
            file[f"{path.stem}/other"] = np.zeros((4, 3), np.float32)
    recipe = dataclasses.replace(options(task, tmp_path).recipe, epochs=1)  # type: ignore[type-var]
    train(options(task, tmp_path / "run", features=features, feature_key="good", recipe=recipe))
    with pytest.raises(InputError, match="video 'train"):
        train(options(task, tmp_path / "other", features=features, recipe=recipe))


def test_export_wants_annotations_beside_the_key(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", "demo", "-o", str(tmp_path / "out"), "--feature-key", "rgb"])
    assert "--feature-key: only with them" in str(done.exception)
