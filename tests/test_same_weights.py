"""Every way from a trained model to an engine gives the same bits, even if the number of heads cannot be guessed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import mmn_fast
from mmn_fast.artifact.manifest import read_manifest
from mmn_fast.checkpoint import LoadedModel, convert, load_model, save_model
from mmn_fast.errors import InputError
from mmn_fast.export.to_onnx import export
from mmn_fast.training.run.trainer import train
from tests.command import run_here
from tests.tiny_model import assert_same
from tests.training_runs import options
from tests.training_task import PRESET, TEXT, WIDTH, write_task

assert TEXT.num_heads * 64 != TEXT.width


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_task(tmp_path_factory.mktemp("task"), 8, seed=1)


@pytest.fixture(scope="module")
def run(task: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch with model/ and model.pth."""
    output = tmp_path_factory.mktemp("run") / "run"
    recipe = dataclasses.replace(PRESET.recipe, epochs=1, milestones=(1,))
    train(options(task, output, recipe=recipe, official_pth=True))
    return output


@pytest.fixture(scope="module")
def trained(run: Path) -> LoadedModel:
    return load_model(run / "model")


def moments(path: Path) -> list[list[list[mmn_fast.Moment]]]:
    engine = mmn_fast.load(path, backend="torch", threads=1)
    rows = np.random.default_rng(0).standard_normal((20, WIDTH), np.float32)
    return engine.ground([mmn_fast.Query(mmn_fast.Video(rows, 16.0), ["a dog jumps", "the dog sleeps"])])


def test_training_to_pth_to_directory_to_engine(run: Path, trained: LoadedModel, tmp_path: Path) -> None:
    assert_same(load_model(run / "model.pth"), trained)
    assert_same(load_model(convert(run / "model.pth", None, None, tmp_path / "a")), trained)
    done = run_here("convert", run / "model.pth", "-o", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'b'}: preset tiny" in done.stdout
    assert_same(load_model(tmp_path / "b"), trained)
    assert moments(run / "model") == moments(run / "model.pth") == moments(tmp_path / "b")


def test_a_preset_of_another_recipe_is_the_same_model(run: Path, trained: LoadedModel, tmp_path: Path) -> None:
    """A run with --epochs has its own recipe; naming the preset again does not contradict it."""
    assert trained.preset != PRESET
    for path in (run / "model", run / "model.pth"):
        assert_same(load_model(path, PRESET), trained)
    with pytest.raises(InputError, match=r"with preset 'tiny', got 'tiny' \(nms_iou: 0\.5, got 0\.3\)"):
        load_model(run / "model.pth", dataclasses.replace(PRESET, nms_iou=0.3))


def test_the_official_code_keeps_what_the_file_says(run: Path, trained: LoadedModel, tmp_path: Path) -> None:
    """The official checkpointer takes "model" out, trains on, and saves all other entries beside the new weights."""
    content = torch.load(run / "model.pth", weights_only=True)
    weights = content.pop("model")
    torch.save({"model": weights, "optimizer": {}, **content, "epoch": 2}, tmp_path / "later.pth")
    assert_same(load_model(tmp_path / "later.pth"), trained)


def test_a_file_that_says_nothing_needs_the_heads(
    run: Path, trained: LoadedModel, task: dict[str, Path], tmp_path: Path
) -> None:
    content = torch.load(run / "model.pth", weights_only=True)
    torch.save({"model": content["model"]}, tmp_path / "bare.pth")
    command = ["convert", tmp_path / "bare.pth", "-o", tmp_path / "a", "--tokenizer", task["tokenizer"]]
    preset = ["--preset", _yaml(tmp_path / "tiny.yaml")]
    for more, said in (([], "needs --preset and --tokenizer; --preset is missing"), (preset, "--text-heads N")):
        done = run_here(*command, *more)
        assert done.returncode == 2
        assert said in done.stderr
        assert not (tmp_path / "a").exists()
    done = run_here(*command, *preset, "--text-heads", 2)
    assert done.returncode == 0, done.stderr
    # The YAML file has another name and recipe, but the same values that decide results.
    assert load_model(tmp_path / "a").fingerprint == trained.fingerprint
    assert moments(tmp_path / "a") == moments(run / "model")


def _yaml(path: Path) -> Path:
    path.write_text(
        "INPUT: {NUM_PRE_CLIPS: 16}\nDATASETS: {NAME: charades}\nMODEL:\n  MMN:\n    NUM_CLIPS: 8\n"
        "    JOINT_SPACE_SIZE: 16\n    FEATPOOL: {INPUT_SIZE: 12, HIDDEN_SIZE: 24, KERNEL_SIZE: 2}\n"
        "    FEAT2D: {NAME: pool, POOLING_COUNTS: [7]}\n"
        "    PREDICTOR: {HIDDEN_SIZE: 24, KERNEL_SIZE: 3, NUM_STACK_LAYERS: 2}\n"
    )
    return path


def test_loading_and_saving_again(trained: LoadedModel, tmp_path: Path) -> None:
    first = save_model(trained, tmp_path / "first")
    second = save_model(load_model(first), tmp_path / "second")
    assert_same(load_model(second), trained)
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert_same(load_model(convert(second, None, None, tmp_path / "third")), trained)


def test_training_goes_on_from_either(run: Path, trained: LoadedModel, task: dict[str, Path], tmp_path: Path) -> None:
    still = dataclasses.replace(PRESET.recipe, epochs=1, freeze_text_epochs=1, milestones=(1,))
    for name in ("model", "model.pth"):
        result = load_model(
            train(options(task, tmp_path / name, init=run / name, text_encoder=None, tokenizer=None, recipe=still))
        )
        assert result.text == trained.text
        text = [name for name in trained.state if name.startswith("text_encoder.bert.")]
        assert all(np.array_equal(result.state[name], trained.state[name]) for name in text)


@pytest.mark.slow
def test_an_export_is_the_same_model(run: Path, trained: LoadedModel, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    exported = load_model(export(run / "model.pth", tmp_path / "onnx", what=["score"]))
    assert exported.fingerprint == read_manifest(tmp_path / "onnx").fingerprint == trained.fingerprint
    assert (exported.preset, exported.text) == (trained.preset, trained.text)
    assert exported.tokenizer.digest() == trained.tokenizer.digest()
