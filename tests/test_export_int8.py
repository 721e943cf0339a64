"""Exports in int8: their loss of R@1 is measured, on the demo's videos or on given ones, and limited."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import mmn_fast
from mmn_fast.artifact.manifest import read_manifest
from mmn_fast.backends.base import Settings
from mmn_fast.backends.ort import OnnxBackend
from mmn_fast.checkpoint import load_model
from mmn_fast.cli import app
from mmn_fast.demo.shapes import write_dataset
from mmn_fast.errors import BackendUnavailable, InputError
from mmn_fast.evaluation.agreement import Agreement
from mmn_fast.export import to_int8
from mmn_fast.export.to_int8 import Labelled
from mmn_fast.export.to_onnx import export
from mmn_fast.export.to_tensorrt import build_plans
from mmn_fast.export.tritonserver_repository import RepositoryOptions, write_repository
from mmn_fast.export.verify import BOUNDS, verify
from tests.conftest import Exports
from tests.tolerances import check_close

pytestmark = pytest.mark.slow


@pytest.fixture
def int8(exports: Exports) -> Path:
    return exports("demo", "int8")


@pytest.mark.full
def test_int8_ships_with_its_measured_recall(int8: Path) -> None:
    measured = read_manifest(int8).verification["quantisation"]
    assert measured["evaluation"] == "1036 sentences, demo test split"
    for name in ("R@1,IoU@0.5", "R@1,IoU@0.7"):
        assert measured["recall"][name] > 0.8
        assert measured["recall_difference_points"][name] >= -0.5
    assert measured["top1_agreement"] < 1  # equality would mean that nothing was quantised
    assert verify(int8)["bound"] == BOUNDS["int8"]


@pytest.mark.full
def test_int8_graphs_are_smaller_and_give_the_same_in_any_batch(int8: Path, exports: Exports) -> None:
    for name in ("video.onnx", "text.onnx"):
        assert (int8 / name).stat().st_size < 0.6 * (exports("demo") / name).stat().st_size
    engine = mmn_fast.load(int8)
    assert engine.info()["precision"] == "int8"
    import onnxruntime

    session = onnxruntime.InferenceSession(str(int8 / "text.onnx"))
    ids = np.random.default_rng(0).integers(1, 100, (8, 11))
    together = session.run(None, {"token_ids": ids, "attention_mask": np.ones_like(ids)})
    for row in range(8):
        alone = session.run(None, {"token_ids": ids[row : row + 1], "attention_mask": np.ones_like(ids[:1])})
        for ours, theirs in zip(alone, together, strict=True):
            check_close(ours[0], theirs[row], "onnx_backend", what=f"row {row}")


def _quantise(tmp_path: Path, exports: Exports, **options: float) -> Path:
    """Quantise a copy of the demo's export; return the int8 export."""
    directory = Path(shutil.copytree(exports("demo"), tmp_path / "copy"))
    to_int8.quantise(directory, read_manifest(directory), to_int8.demo_splits(), **options).write(directory)
    return directory


def test_int8_that_costs_too_much_is_refused(exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibration videos with values a hundred times too small give ranges that clip the graph's values."""
    monkeypatch.setattr(to_int8, "_EVALUATION_VIDEOS", 6)
    monkeypatch.setattr(to_int8, "_CALIBRATION_VIDEOS", 2)
    shrunk = to_int8.pre_clips
    monkeypatch.setattr(to_int8, "pre_clips", lambda rows, preset: shrunk(rows, preset) * np.float32(0.01))
    with pytest.raises(InputError, match=r"int8 costs \d+\.\d\d points of R@1 on \d+ sentences .* more than 0\.5; "):
        _quantise(tmp_path, exports)
    allowed = _quantise(tmp_path / "allowed", exports, max_recall_loss=100)
    measured = read_manifest(allowed).verification["quantisation"]
    assert min(measured["recall_difference_points"].values()) < -0.5
    assert measured["max_recall_loss_points"] == 100


def test_int8_that_costs_too_much_leaves_no_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def degraded(*arguments: object) -> Agreement:
        loss = {"R@1,IoU@0.5": 0.0, "R@1,IoU@0.7": -0.0051}
        return Agreement(1000, 0.1, 0.9, dict.fromkeys(loss, 0.8), loss)

    monkeypatch.setattr(to_int8, "agreement", degraded)
    monkeypatch.setattr(to_int8, "_EVALUATION_VIDEOS", 1)
    monkeypatch.setattr(to_int8, "_CALIBRATION_VIDEOS", 2)
    done = CliRunner().invoke(app, ["export", "demo", "-o", str(tmp_path / "out"), "--precision", "int8"])
    assert done.exit_code != 0
    assert "int8 costs 0.51 points of R@1" in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_plans_of_int8_are_refused(exports: Exports, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(exports("demo"), tmp_path / "copy"))
    dataclasses.replace(read_manifest(copy), precision="int8").write(copy)
    with pytest.raises(InputError, match="is int8, which is for CPUs; export the model as fp16, bf16 or fp32"):
        build_plans(copy)
    with pytest.raises(InputError, match="device: int8 graphs are for CPUs, expected auto or cpu without plans"):
        write_repository(copy, tmp_path / "models", RepositoryOptions(device="gpu"))
    write_repository(copy, tmp_path / "models")
    config = (tmp_path / "models" / "mmn_video" / "config.pbtxt").read_text()
    assert "KIND_CPU" in config
    with pytest.raises(BackendUnavailable, match="backend 'onnx': device 'cuda:0': int8 graphs are for CPUs"):
        OnnxBackend(load_model(copy), Settings("cuda:0", "auto"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"what": ["video"]}, "int8 is measured with all graphs on pre-clips; expected --what all, no --raw-features"),
        (
            {"raw_features": True},
            "int8 is measured with all graphs on pre-clips; expected --what all, no --raw-features",
        ),
        ({"max_recall_loss": -1.0}, "max_recall_loss: expected points of R@1, 0 or more, got -1.0"),
    ],
)
def test_int8_that_cannot_be_measured_is_refused(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        export("demo", tmp_path / "out", precision="int8", **options)  # type: ignore[arg-type]


def test_int8_of_another_world_is_refused(tmp_path: Path, golden_model: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match="int8 is exported only with its R@1 measured; the demo's videos"):
        export(golden_model("charades_small"), tmp_path / "out", precision="int8")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    """Annotated videos in the official layout."""
    root = tmp_path_factory.mktemp("dataset") / "shapes"
    write_dataset(root, counts={"test": 12}, workers=1)
    return Labelled(root / "test.json", root / "features.h5")


@pytest.fixture
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_CALIBRATION_VIDEOS", 2), ("_EVALUATION_SENTENCES", 20), ("_FEWEST_SENTENCES", 10)):
        monkeypatch.setattr(to_int8, name, value)


@pytest.mark.usefixtures("_few")
def test_int8_is_measured_on_given_videos(dataset: Labelled, tmp_path: Path) -> None:
    """The measured videos differ from the calibration videos, and no more are used than needed."""
    command = ["export", "demo", "-o", str(tmp_path / "out"), "--precision", "int8", "--max-recall-loss", "100"]
    options = ["--annotations", str(dataset.annotations), "--features", str(dataset.features)]
    done = CliRunner().invoke(app, [*command, *options])
    assert done.exit_code == 0, done.output
    measured = read_manifest(tmp_path / "out").verification["quantisation"]
    assert measured["calibration"].startswith("2 videos, ")
    assert measured["calibration"].endswith(" sentences, test.json")
    sentences, _, name = measured["evaluation"].partition(" sentences, ")
    assert 20 <= int(sentences) < 40
    assert name == "test.json, other videos"
    splits = to_int8.check_wish(load_model("demo").preset, ["video", "text", "score"], False, 0.5, dataset)
    calibrated, evaluated = ({q.video.video_id for q in s.batch} for s in (splits.calibration, splits.evaluation))
    assert len(calibrated) == 2
    assert not calibrated & evaluated


def test_unsuitable_videos_are_refused(dataset: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, other = tmp_path / "out", tmp_path / "features"
    with pytest.raises(InputError, match=r"expected 200 sentences or more beside those of the 16 videos .* got 0 in"):
        export("demo", output, precision="int8", int8_data=dataset)
    with pytest.raises(InputError, match="annotations: expected only with precision 'int8', got precision 'fp16'"):
        export("demo", output, precision="fp16", int8_data=dataset)
    other.mkdir()
    np.save(other / "unknown.npy", np.ones((20, 357), np.float32))
    with pytest.raises(InputError, match=r"features: .*/features has no video 'test-0-000\d\d' of .*test.json"):
        export("demo", output, precision="int8", int8_data=dataclasses.replace(dataset, features=other))
    done = CliRunner().invoke(app, ["export", "demo", "-o", str(output), "--annotations", str(dataset.annotations)])
    assert "--annotations, --features: expected both or neither" in str(done.exception)
    assert not output.exists()
