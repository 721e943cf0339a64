"""A model carries the contract of its features through directories, checkpoints and exports."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import mmn_fast
from mmn_fast.artifact.manifest import FORMAT_VERSION, Manifest, read_manifest
from mmn_fast.checkpoint import DEMO_MODEL, LoadedModel, convert, load_model, save_model
from mmn_fast.demo.shapes import make_video
from mmn_fast.errors import InputError
from mmn_fast.features.extractors.registry import make_extractor
from mmn_fast.storage.checksums import plain_sha256
from mmn_fast.types import Query, Video
from mmn_fast.weights.official import official_content
from tests.command import run_here
from tests.feature_contracts import CONTRACT, DIFFERENCE, OTHER, write_features
from tests.tiny_model import assert_same, tiny_model
from tests.training_task import WIDTH


@pytest.fixture
def model(tmp_path: Path) -> LoadedModel:
    return dataclasses.replace(tiny_model(tmp_path), contract=CONTRACT)


@pytest.fixture
def directory(model: LoadedModel, tmp_path: Path) -> Path:
    return save_model(model, tmp_path / "model")


def _signed(directory: Path, name: str, change: dict[str, object], remove: tuple[str, ...] = ()) -> None:
    """Change a signed JSON file and sign it again."""
    values = json.loads((directory / name).read_text()) | change
    for key in ("sha256", *remove):
        del values[key]
    (directory / name).write_text(json.dumps({**values, "sha256": plain_sha256(values)}))


def test_a_directory_keeps_the_contract_which_no_fingerprint_has(model: LoadedModel, directory: Path) -> None:
    loaded = load_model(directory)
    assert loaded.contract == CONTRACT
    assert_same(loaded, dataclasses.replace(model, contract=None))
    assert load_model(directory, tokenizer=directory / "tokenizer.json").contract == CONTRACT
    assert load_model(save_model(loaded, directory.with_name("again"))).contract == CONTRACT


def test_a_directory_of_the_format_before_loads_and_has_no_contract(model: LoadedModel, directory: Path) -> None:
    _signed(directory, "config.json", {"format_version": 2}, ("feature_contract",))
    loaded = load_model(directory)
    assert loaded.contract is None
    assert_same(loaded, model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": 0}, r"config\.json: feature_contract: fps: expected a number > 0"),
        ({"fsp": 2}, r"config\.json: feature_contract: unknown key 'fsp'; did you mean 'fps'"),
    ],
)
def test_a_directory_with_an_impossible_contract_is_refused(
    change: dict[str, object], message: str, directory: Path
) -> None:
    _signed(directory, "config.json", {"feature_contract": CONTRACT.to_dict() | change})
    with pytest.raises(InputError, match=message):
        load_model(directory)


def test_an_official_file_of_a_training_run_keeps_the_contract(model: LoadedModel, tmp_path: Path) -> None:
    record = {
        "preset": model.preset.to_dict(),
        "text_encoder": dataclasses.asdict(model.text),
        "tokenizer": model.tokenizer.to_json(),
    }
    for values, contract in ((CONTRACT.to_dict(), CONTRACT), (None, None)):
        content = official_content(model.state, {**record, "feature_contract": values}, model.preset, 1, 1)
        torch.save(content, tmp_path / "model.pth")
        assert load_model(tmp_path / "model.pth").contract == contract
    torch.save(official_content(model.state, record, model.preset, 1, 1), tmp_path / "model.pth")
    assert load_model(tmp_path / "model.pth").contract is None


@pytest.mark.parametrize("name", ["contract.json", "features.h5"])
def test_convert_adds_a_contract_from_either_kind_of_file(name: str, tmp_path: Path) -> None:
    plain = save_model(tiny_model(tmp_path), tmp_path / "plain")
    (tmp_path / "contract.json").write_text(json.dumps(CONTRACT.to_dict()))
    write_features(tmp_path / "features.h5", {"v": np.ones((3, WIDTH), np.float32)}, CONTRACT)
    done = run_here("convert", plain, "-o", tmp_path / "new", "--contract", tmp_path / name)
    assert done.returncode == 0, done.stderr
    assert "features of onnx:there/net.onnx" in done.stdout
    assert load_model(tmp_path / "new").contract == CONTRACT
    assert load_model(tmp_path / "new").fingerprint == load_model(plain).fingerprint


def test_convert_refuses_a_contract_that_does_not_suit_the_model(directory: Path, tmp_path: Path) -> None:
    write_features(tmp_path / "none.h5", {"v": np.ones((3, WIDTH), np.float32)}, None)
    (tmp_path / "wide.json").write_text(json.dumps({**CONTRACT.to_dict(), "width": 77}))
    (tmp_path / "other.json").write_text(json.dumps(OTHER.to_dict()))
    (tmp_path / "bad.json").write_text('{"fps": 3}')
    for name, message in (
        ("none.h5", "--contract: .*none.h5 does not say how its features are made"),
        ("wide.json", f"--contract: width: expected {WIDTH}, that of the features of preset 'tiny', got 77"),
        ("other.json", f"--contract: .*model has another contract for its features: {DIFFERENCE}"),
        ("bad.json", "--contract: .*bad.json: missing extractor, clip_frames, stride, width"),
        ("absent.json", "--contract: .*absent.json: No such file"),
        ("absent.h5", "--contract: .*absent.h5: no such file"),
    ):
        done = run_here("convert", directory, "-o", tmp_path / "new", "--contract", tmp_path / name)
        assert done.returncode == 2
        assert re.match(f"mmn-fast: {message}", done.stderr), done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert not (tmp_path / "new").exists()


def _manifest(model: LoadedModel) -> Manifest:
    return Manifest(
        preset=model.preset,
        text=model.text,
        fingerprint=model.fingerprint,
        source="tiny",
        weights_sha256="0" * 64,
        precision="fp32",
        fp32_stages=(),
        raw_features=False,
        top_k=None,
        opset=20,
        graphs={"text": "text.onnx"},
        files={"text.onnx": "0" * 64},
        feature_contract=model.contract,
    )


def test_a_manifest_keeps_the_contract_and_an_older_one_has_none(model: LoadedModel, tmp_path: Path) -> None:
    _manifest(model).write(tmp_path)
    assert read_manifest(tmp_path).feature_contract == CONTRACT
    _manifest(dataclasses.replace(model, contract=None)).write(tmp_path)
    assert read_manifest(tmp_path).feature_contract is None
    _signed(tmp_path, "manifest.json", {"format_version": FORMAT_VERSION - 1}, ("feature_contract",))
    assert read_manifest(tmp_path).feature_contract is None
    _signed(tmp_path, "manifest.json", {"format_version": FORMAT_VERSION, "feature_contract": {"fps": 1}})
    with pytest.raises(InputError, match=r"manifest\.json: feature_contract: missing extractor"):
        read_manifest(tmp_path)


def test_an_export_keeps_the_contract(demo_export: Path, tmp_path: Path) -> None:
    assert load_model(demo_export).contract == load_model("demo").contract
    assert mmn_fast.load(demo_export, backend="onnx").contract == make_extractor("pixels").contract
    older = Path(shutil.copytree(demo_export, tmp_path / "older"))
    _signed(older, "manifest.json", {"format_version": FORMAT_VERSION - 1}, ("feature_contract",))
    assert mmn_fast.load(older, backend="onnx").contract is None


def test_the_model_in_the_box_and_its_world_have_the_contract_of_pixels() -> None:
    contract = load_model(DEMO_MODEL).contract
    assert contract == make_extractor("pixels").contract
    assert contract is not None
    assert (contract.fps, contract.clip_frames, contract.stride, contract.width) == (8, 2, 2, 357)
    assert load_model("shapes-tubes").contract is None  # rows of tubes are no rows of a video


def test_info_shows_the_contract() -> None:
    shown = json.loads(run_here("info", "--model", "demo", "--json").stdout)["engine"]["features"]["contract"]
    assert shown == make_extractor("pixels").contract.to_dict()
    assert "contract:\n      extractor: pixels" in run_here("info", "--model", "demo").stdout


def test_an_engine_refuses_a_video_of_another_contract(directory: Path) -> None:
    engine = mmn_fast.load(directory)
    rows = np.random.default_rng(0).standard_normal((9, WIDTH), np.float32)
    moved = dataclasses.replace(CONTRACT, extractor="onnx:elsewhere.onnx")  # the same weights at another place
    for contract in (None, CONTRACT, moved):
        engine.ground([Query(Video(rows, 9.0, "v", contract), ["a dog sings"])])
    other = Video(rows, 9.0, "v", OTHER)
    with pytest.raises(InputError, match=rf"batch\[0\]\.video has features of another contract .*: {DIFFERENCE}"):
        engine.ground([Query(other, ["a dog sings"])])
    with pytest.raises(InputError, match=rf"videos\[1\] has features of another contract .*: {DIFFERENCE}"):
        engine.encode_video([Video(rows, 9.0), other])
    with pytest.raises(InputError, match=rf"batch\[0\]\.video has features of another contract .*: {DIFFERENCE}"):
        engine.ground([Query(other, ["a dog sings"])], window_s=4.0)


def test_an_engine_makes_the_extractor_of_its_contract_or_says_why_not(
    model: LoadedModel, directory: Path, tmp_path: Path
) -> None:
    demo = mmn_fast.load("demo")
    assert demo.contract is not None
    extractor = demo.extractor(threads=1)
    assert extractor.contract == demo.contract
    frames = make_video("test", 0, 0).frames()
    rows = np.concatenate(list(extractor.stream(frames)))
    np.testing.assert_array_equal(rows, make_video("test", 0, 0).features)
    with pytest.raises(InputError, match=r"there/net\.onnx: no such file"):
        mmn_fast.load(directory).extractor()
    with pytest.raises(InputError, match="extractor: expected 'onnx', which the contract names, got 'pixels'"):
        mmn_fast.load(directory).extractor("pixels")
    wide = dataclasses.replace(model, contract=dataclasses.replace(demo.contract, width=WIDTH))
    with pytest.raises(InputError, match="extractor: pixels makes other features than the contract: width: expected"):
        mmn_fast.load(save_model(wide, tmp_path / "wide")).extractor()
    plain = save_model(tiny_model(tmp_path), tmp_path / "plain")
    with pytest.raises(InputError, match="extractor: the model .*plain does not say how its features are made"):
        mmn_fast.load(plain).extractor()


def test_convert_from_python_adds_a_contract(tmp_path: Path) -> None:
    plain = save_model(tiny_model(tmp_path), tmp_path / "plain")
    assert load_model(convert(plain, None, None, tmp_path / "new", contract=CONTRACT)).contract == CONTRACT
