"""Features of another contract than the model's are refused by every command, or taken aloud with --any-features."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mmn_fast
from mmn_fast.checkpoint import load_model, save_model
from mmn_fast.errors import InputError
from mmn_fast.evaluation import evaluate, read_annotations
from mmn_fast.evaluation.predict import predict
from mmn_fast.export.to_int8 import Labelled, check_wish
from mmn_fast.features import open_features
from mmn_fast.training.run.checkpoint_file import read_checkpoint, write_checkpoint
from mmn_fast.training.run.trainer import train
from tests.command import run_here
from tests.feature_contracts import CONTRACT, DIFFERENCE, OTHER, with_contract, write_features
from tests.tiny_model import tiny_model
from tests.training_runs import command, options
from tests.training_task import PRESET, WIDTH

REFUSED = f"has features of another contract than the model: {DIFFERENCE}; extract them again"
ALOUD = f"has features of another contract than the model: {DIFFERENCE}; they are used all the same"


@pytest.fixture
def files(task: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """The task's features with the model's contract, with another one and with none; the model."""
    model = dataclasses.replace(tiny_model(tmp_path), contract=CONTRACT)
    found = {"model": save_model(model, tmp_path / "model"), "none": task["features"]}
    for name, contract in (("same", CONTRACT), ("other", OTHER)):
        found[name] = with_contract(task["features"], tmp_path / f"{name}.h5", contract)
    return found


@pytest.mark.parametrize("command_name", ["eval", "predict"])
def test_eval_and_predict_refuse_other_features(
    command_name: str, files: dict[str, Path], task: dict[str, Path], tmp_path: Path
) -> None:
    arguments = [command_name, "--model", files["model"], "--annotations", task["val_annotations"], "--features"]
    output = ["-o", tmp_path / "out.jsonl"] if command_name == "predict" else []
    for name in ("same", "none"):
        done = run_here(*arguments, files[name], *output)
        assert done.returncode == 0, done.stderr
        assert "contract" not in done.stderr
        (tmp_path / "out.jsonl").unlink(missing_ok=True)
    done = run_here(*arguments, files["other"], *output)
    assert done.returncode == 2
    hint = "(--any-features takes them all the same)"
    assert done.stderr.strip() == f"mmn-fast: --features: {files['other']} {REFUSED} {hint}"
    assert not (tmp_path / "out.jsonl").exists()
    done = run_here(*arguments, files["other"], *output, "--any-features")
    assert done.returncode == 0, done.stderr
    assert f"mmn-fast: warning: features: {files['other']} {ALOUD}" in done.stderr


def test_evaluation_from_python_refuses_other_features(
    files: dict[str, Path], task: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine, samples = mmn_fast.load(files["model"]), read_annotations(task["val_annotations"], PRESET)
    with open_features(files["other"]) as store:
        for call in (
            lambda **more: evaluate(engine, samples, store, **more),
            lambda **more: predict(engine, samples, store, tmp_path / "out.jsonl", **more),
        ):
            with pytest.raises(InputError, match=f"features: .*other.h5 {REFUSED}"):
                call()
            caplog.clear()
            call(any_features=True)
            assert ALOUD in caplog.text


def test_int8_is_not_measured_on_other_features(files: dict[str, Path], task: dict[str, Path]) -> None:
    data = Labelled(task["annotations"], files["other"])
    with pytest.raises(InputError, match=f"features: .*other.h5 {REFUSED}$"):
        check_wish(PRESET, ["video", "text", "score"], False, 0.5, data, CONTRACT)


def test_ground_refuses_other_features_and_reads_the_duration_from_the_file(
    files: dict[str, Path], tmp_path: Path
) -> None:
    rows = {"v": np.random.default_rng(0).standard_normal((9, WIDTH), np.float32)}
    same = write_features(tmp_path / "known.h5", rows, CONTRACT, duration_s=12.5)
    other = write_features(tmp_path / "unlike.h5", rows, OTHER, duration_s=12.5)
    ground = ["ground", "--model", files["model"], "-q", "a dog sings", "--json", "--features"]
    for source in (same, f"{same}::v"):
        done = run_here(*ground, source)
        assert done.returncode == 0, done.stderr
        assert '"duration_s": 12.5' in done.stdout
    assert '"duration_s": 3.0' in run_here(*ground, same, "--duration", "3").stdout
    done = run_here(*ground, f"{other}::v")
    assert (done.returncode, f"--features: {other}::v {REFUSED}" in done.stderr) == (2, True), done.stderr
    done = run_here(*ground, f"{other}::v", "--any-features")
    assert (done.returncode, ALOUD in done.stderr) == (0, True), done.stderr
    assert run_here(*ground, "absent.h5").stderr.startswith("mmn-fast: --features: absent.h5: no such file")
    done = run_here(*ground, f"{files['same']}::val0")
    assert done.stderr.startswith("mmn-fast: --duration: give the video's length in seconds")


def test_ground_takes_one_source(files: dict[str, Path]) -> None:
    ground = ["ground", "--model", files["model"], "-q", "a"]
    for arguments, message in (
        ([], "--features: give the video's features, or --video or --tubes"),
        (["--video", "v.mp4", "--features", "f.h5"], "--features: give one of --video, --features and --tubes"),
        (["--video", "v.mp4", "--duration", "3"], "--duration: expected none with --video, got 3.0"),
        (["--features", "f.npy", "--duration", "3", "--extractor", "pixels"], "--extractor: expected none with"),
        (["--tubes", "t.h5", "--any-features"], "--any-features: expected none with --tubes, got True"),
    ):
        done = run_here(*ground, *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith(f"mmn-fast: {message}"), done.stderr


def _one_epoch(task: dict[str, Path], output: Path, epochs: int = 1, **changes: Any) -> Any:
    recipe = dataclasses.replace(PRESET.recipe, epochs=epochs, milestones=())
    return options(task, output, recipe=recipe, **changes)


@pytest.mark.slow
def test_train_copies_the_contract_into_the_model_and_its_official_file(
    files: dict[str, Path], task: dict[str, Path], tmp_path: Path
) -> None:
    with_val = task | {"features": files["same"]}
    result = train(_one_epoch(with_val, tmp_path / "run", official_pth=True))
    assert load_model(result).contract == CONTRACT
    assert load_model(tmp_path / "run" / "model.pth").contract == CONTRACT
    assert load_model(train(_one_epoch(task, tmp_path / "without"))).contract is None


@pytest.mark.slow
def test_train_refuses_validation_features_and_initial_models_of_another_contract(
    files: dict[str, Path], task: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mixed = task | {"features": files["same"], "val_features": files["other"]}
    expected = f"val_features: .*other.h5 has .* than the training features .*same.h5: {DIFFERENCE}"
    with pytest.raises(InputError, match=expected):
        train(_one_epoch(mixed, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    assert load_model(train(_one_epoch(mixed, tmp_path / "run", any_features=True))).contract == CONTRACT
    assert "other.h5 has features of another contract than the training features" in caplog.text
    other = {name: value for name, value in task.items() if not name.startswith("val")} | {"features": files["other"]}
    start = {"init": files["model"], "text_encoder": None, "tokenizer": None}
    with pytest.raises(InputError, match=f"features: .*other.h5 has .* than the model of init, .*: {DIFFERENCE}"):
        train(_one_epoch(other, tmp_path / "more", **start))
    assert load_model(train(_one_epoch(other, tmp_path / "more", any_features=True, **start))).contract == OTHER


@pytest.mark.slow
def test_a_run_does_not_resume_with_features_of_another_contract(
    files: dict[str, Path], task: dict[str, Path], tmp_path: Path
) -> None:
    plain = {name: value for name, value in task.items() if not name.startswith("val")}
    same, other = (plain | {"features": files[name]} for name in ("same", "other"))
    train(_one_epoch(same, tmp_path / "run"))
    with pytest.raises(InputError, match=f"features: .*other.h5 has .* than the run's beginning: {DIFFERENCE}"):
        train(_one_epoch(other, tmp_path / "run", 2, resume=True))
    assert load_model(train(_one_epoch(same, tmp_path / "run", 2, resume=True))).contract == CONTRACT
    assert load_model(train(_one_epoch(plain, tmp_path / "run", 3, resume=True))).contract is None
    checkpoint = read_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert checkpoint.pop("feature_contract") is None  # and an earlier version's checkpoint lacks the key
    write_checkpoint(checkpoint, tmp_path / "run" / "checkpoint.pt")
    assert load_model(train(_one_epoch(other, tmp_path / "run", 4, resume=True))).contract == OTHER


@pytest.mark.slow
def test_the_command_trains_on_any_features_when_told_to(
    files: dict[str, Path], task: dict[str, Path], tmp_path: Path
) -> None:
    mixed = {"annotations": task["annotations"], "features": files["same"], "tokenizer": task["tokenizer"]}
    more = ["--val-annotations", str(task["val_annotations"]), "--val-features", str(files["other"]), "--epochs", "1"]
    arguments = command(mixed, tmp_path, "run", *more)
    done = run_here(*arguments)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("(--any-features takes them all the same)")
    assert "--val-features: " in done.stderr
    done = run_here(*arguments, "--any-features")
    assert done.returncode == 0, done.stderr
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["feature_contract"] == CONTRACT.to_dict()
