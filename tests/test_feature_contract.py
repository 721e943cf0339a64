"""The feature contract: its checks, its JSON, and the first field in which two contracts differ."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from mmn_fast.errors import InputError
from mmn_fast.features import open_features
from mmn_fast.features.contract import FeatureContract
from mmn_fast.features.extractors import extractor_for, make_extractor
from tests.feature_files import FEATURES, write

CLIP = FeatureContract(
    "hf:/models/clip",
    fps=2,
    clip_frames=1,
    stride=1,
    width=512,
    weights_sha256="0f" * 32,
    resize={"shortest_edge": 224, "filter": "bicubic"},
    crop={"height": 224, "width": 224},
    scale=1 / 255,
    mean=(0.48, 0.46, 0.41),
    std=(0.27, 0.26, 0.28),
    output="get_image_features",
)


def test_a_contract_survives_json() -> None:
    assert FeatureContract.from_json(CLIP.to_json()) == CLIP
    assert FeatureContract.from_dict({"extractor": "vgg", "fps": 4, "clip_frames": 1, "stride": 1, "width": 4096}) == (
        FeatureContract("vgg", 4.0, 1, 1, 4096)
    )
    assert CLIP.kind == "hf"
    assert dataclasses.replace(CLIP, stride=3).row_s == 1.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": 0}, "fps: expected a number > 0 and <= 1000, got 0"),
        ({"stride": True}, "stride: expected an integer >= 1, got True"),
        ({"weights_sha256": "0F" * 32}, "weights_sha256: expected 64 lower-case hexadecimal digits, got '0F"),
        ({"resize": {"filter": "bicubic"}}, "resize: expected an object with height, "),
        ({"resize": {"height": 3}}, "resize: expected height and width together"),
        ({"resize": {"shortest_edge": 3, "filter": "sinc"}}, "resize: filter: expected 'nearest' or "),
        ({"crop": {"height": 3}}, "crop: missing width"),
        ({"mean": [0, "x"]}, "mean[1]: expected a finite number, got 'x'"),
        ({"std": [0]}, "std[0]: expected a finite number > 0, got 0"),
        ({"colour": "grey"}, "colour: expected 'rgb' or 'bgr', got 'grey'"),
        ({"speed": 3}, "unknown key 'speed'"),
    ],
)
def test_a_value_that_cannot_be_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        FeatureContract.from_dict({**CLIP.to_dict(), **change}, "x.h5: feature_contract")
    assert str(caught.value).startswith(f"x.h5: feature_contract: {message}")


def test_hostile_json_is_refused_in_a_sentence() -> None:
    for text in ("{", "[" * 100 + "]" * 100, '"' + "a" * 2**17 + '"', json.dumps({"extractor": "pixels"}), "null"):
        with pytest.raises(InputError, match="^here"):
            FeatureContract.from_json(text, "here")


def test_the_first_difference_names_the_field_and_both_values() -> None:
    assert CLIP.first_difference(dataclasses.replace(CLIP)) is None
    other = dataclasses.replace(CLIP, fps=4, stride=2)
    assert CLIP.first_difference(other) == "fps: expected 2.0, got 4.0"
    assert other.first_difference(CLIP) == "fps: expected 4.0, got 2.0"
    bgr = dataclasses.replace(CLIP, colour="bgr")
    assert CLIP.first_difference(bgr) == "colour: expected 'rgb', got 'bgr'"


def test_the_place_of_the_weights_does_not_matter_but_their_sha256_does() -> None:
    moved = dataclasses.replace(CLIP, extractor="hf:openai/clip-vit-base-patch32")
    assert CLIP.first_difference(moved) is None
    onnx = dataclasses.replace(CLIP, extractor="onnx:clip.onnx")
    assert CLIP.first_difference(onnx) == "extractor: expected 'hf', got 'onnx'"
    other = dataclasses.replace(moved, weights_sha256="1f" * 32)
    assert str(CLIP.first_difference(other)).startswith("weights_sha256: expected '0f0f")
    unknown = dataclasses.replace(moved, weights_sha256=None)
    assert str(CLIP.first_difference(unknown)).startswith("extractor: expected 'hf:/models/clip', got 'hf:openai/")


def test_an_extractor_is_made_of_a_contract() -> None:
    contract = make_extractor("pixels", fps=4, clip_frames=3).contract
    assert extractor_for(contract).contract == contract
    with pytest.raises(InputError, match="extractor: pixels makes other features than the contract: width: expected 3"):
        extractor_for(dataclasses.replace(contract, width=3))


@pytest.mark.parametrize("spec", ["", "pixel", "pixels:", "pixels:here", 3, ["pixels"]])
def test_an_unknown_extractor_is_refused(spec: object) -> None:
    with pytest.raises(InputError, match=r"^extractor: expected pixels.*, got "):
        make_extractor(spec)  # type: ignore[arg-type]


def test_a_store_has_the_contract_and_the_lengths_of_its_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name in ("a", "b", "c"):
            file[name] = np.zeros((2, 512), np.float32)
        file["a"].attrs["duration_s"] = 12.5
        file["c"].attrs["duration_s"] = -1.0
        file.attrs["feature_contract"] = CLIP.to_json()
    with open_features(tmp_path / "x.h5") as store:
        assert store.contract == CLIP
        assert store.duration_s("a") == 12.5
        assert store.duration_s("b") is None
        with pytest.raises(InputError, match=r"^video 'c': .*duration_s: expected a finite number > 0, got -1"):
            store.duration_s("c")
        with pytest.raises(InputError, match="^video 'd': not in "):
            store.duration_s("d")
    with open_features(write(tmp_path / "y.h5", {"a": FEATURES})) as store:
        assert store.contract is None
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder/a.npy", {"a": FEATURES})
    with open_features(tmp_path / "folder") as store:
        assert (store.contract, store.duration_s("a")) == (None, None)


@pytest.mark.parametrize("value", ["{", np.zeros(3), "null", b"\xff", 3])
def test_a_broken_contract_of_a_file_is_refused(value: object, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a"] = FEATURES
        file.attrs["feature_contract"] = value
    with pytest.raises(InputError, match=r"^path: .*x\.h5.*feature_contract: "):
        open_features(tmp_path / "x.h5")
