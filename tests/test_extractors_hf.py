"""The extractor `hf:`: several kinds of networks, tiny and saved to disk; their outputs, files and refusals."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmn_fast.errors import InputError
from mmn_fast.features.extractors import extractor_for, make_extractor
from mmn_fast.features.extractors.steps import FrameSteps
from tests.tolerances import check_close

pytestmark = pytest.mark.slow


class _Transformers:
    """The module, imported at its first use, because the import takes two seconds of every process that collects."""

    def __getattr__(self, name: str) -> Any:
        pytest.importorskip("PIL")
        return getattr(pytest.importorskip("transformers"), name)


transformers = _Transformers()

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {**SMALL, "image_size": 32, "patch_size": 8}
FRAMES = np.random.default_rng(0).integers(0, 256, (9, 48, 64, 3), np.uint8)


def clip() -> tuple[Any, Any]:
    config = transformers.CLIPConfig(text_config={**SMALL, "vocab_size": 99}, vision_config=VISION, projection_dim=24)
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    return transformers.CLIPModel(config), processor


def siglip() -> tuple[Any, Any]:
    config = transformers.SiglipConfig(text_config={**SMALL, "vocab_size": 99}, vision_config=VISION)
    return transformers.SiglipModel(config), transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})


def dinov2() -> tuple[Any, Any]:
    config = transformers.Dinov2Config(**{**VISION, "image_size": 28, "patch_size": 14})
    processor = transformers.BitImageProcessorPil(size={"shortest_edge": 36}, crop_size=28, resample=3)
    return transformers.Dinov2Model(config), processor


def resnet() -> tuple[Any, Any]:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    return transformers.ResNetModel(config), transformers.ConvNextImageProcessorPil(size={"shortest_edge": 32})


def videomae() -> tuple[Any, Any]:
    config = transformers.VideoMAEConfig(**VISION, num_frames=4)
    processor = transformers.VideoMAEImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    return transformers.VideoMAEModel(config), processor


def vjepa2() -> tuple[Any, Any]:
    heads = {"num_attention_heads": 2, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    sizes = {"patch_size": 8, "crop_size": 32, "frames_per_clip": 4, "mlp_ratio": 2, "pred_hidden_size": 16}
    config = transformers.VJEPA2Config(hidden_size=32, num_hidden_layers=1, pred_num_mask_tokens=1, **heads, **sizes)
    return transformers.VJEPA2Model(config), None


MAKERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    maker.__name__: maker for maker in (clip, siglip, dinov2, resnet, videomae, vjepa2)
}
# Width, output, frames per clip, and the other outputs.
EXPECTED = {
    "clip": (24, "get_image_features", 1, ["pooler_output", "last_hidden_state:mean"]),
    "siglip": (32, "get_image_features", 1, ["last_hidden_state:first"]),
    "dinov2": (32, "pooler_output", 1, ["last_hidden_state:first"]),
    "resnet": (16, "pooler_output", 1, ["last_hidden_state:mean"]),
    "videomae": (32, "last_hidden_state:mean", 4, ["last_hidden_state:first"]),
    "vjepa2": (32, "last_hidden_state:mean", 4, []),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name, make in MAKERS.items():
        torch.manual_seed(0)
        model, processor = make()
        model.save_pretrained(root / name)
        if processor is not None:
            processor.save_pretrained(root / name)
    values = {"do_resize": True, "size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": 32, "resample": 2}
    values |= {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.4, 0.5, 0.6]}
    values |= {"image_std": [0.2, 0.3, 0.4], "video_processor_type": "VJEPA2VideoProcessor"}
    (root / "vjepa2/video_preprocessor_config.json").write_text(json.dumps(values))
    return root


def rows_of(extractor: Any, frames: np.ndarray = FRAMES) -> np.ndarray:
    return np.concatenate(list(extractor.stream(iter(frames))))


@pytest.mark.parametrize("name", MAKERS)
def test_a_network_is_loaded_with_sensible_defaults(name: str, models: Path) -> None:
    width, output, clip_frames, others = EXPECTED[name]
    extractor = make_extractor(f"hf:{models / name}", threads=1)
    contract = extractor.contract
    assert (contract.width, contract.output, contract.clip_frames) == (width, output, clip_frames)
    assert (contract.fps, contract.stride) == ((2, 1) if clip_frames == 1 else (8, 2))
    digest = hashlib.sha256((models / name / "model.safetensors").read_bytes()).hexdigest()
    assert contract.weights_sha256 == digest
    rows = rows_of(extractor)
    assert (rows.shape, rows.dtype) == (((9 if clip_frames == 1 else 4), width), np.float32)
    assert np.array_equal(rows_of(extractor_for(contract, threads=1)), rows)
    for other in others:
        chosen = make_extractor(f"hf:{models / name}", output=other, threads=1)
        assert chosen.contract.output == other
        assert str(contract.first_difference(chosen.contract)).startswith(("width: ", "output: "))
    with pytest.raises(InputError, match=r"output: .* has no output 'pool'.*; it has \d outputs? \('"):
        make_extractor(f"hf:{models / name}", output="pool", threads=1)


@pytest.mark.parametrize("name", MAKERS)
def test_the_contract_says_what_is_done_to_a_frame(name: str, models: Path) -> None:
    extractor: Any = make_extractor(f"hf:{models / name}", threads=1)
    steps = FrameSteps(**{field.name: getattr(extractor.contract, field.name) for field in fields(FrameSteps)})
    for shape in ((97, 131, 3), (131, 97, 3), (48, 64, 3)):
        frame = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
        check_close(extractor.prepare(frame), steps(frame), "prepared_frame", "fp32")


def test_rows_are_those_of_the_network_itself(models: Path) -> None:
    image, processor = transformers.CLIPModel.from_pretrained(models / "clip").eval(), clip()[1]
    with torch.inference_mode():
        pixels = processor(list(FRAMES), return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        expected = image.get_image_features(pixel_values=pixels).pooler_output.numpy()
    made = rows_of(make_extractor(f"hf:{models / 'clip'}", batch_size=4, threads=1))
    check_close(made, expected, "network_features")
    pairs = rows_of(make_extractor(f"hf:{models / 'clip'}", clip_frames=2, threads=1))
    check_close(pairs[:4], expected[:8].reshape(4, 2, -1).mean(axis=1), "network_features")
    check_close(pairs[4], expected[8], "network_features")

    video, processor = transformers.VideoMAEModel.from_pretrained(models / "videomae").eval(), videomae()[1]
    padded = np.concatenate([FRAMES, FRAMES[-1:]])
    with torch.inference_mode():
        clips = [list(padded[start : start + 4]) for start in (0, 2, 4, 6)]
        pixels = processor(clips, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        expected = video(pixels).last_hidden_state.mean(dim=1).numpy()
    check_close(rows_of(make_extractor(f"hf:{models / 'videomae'}", threads=1)), expected, "network_features")


def test_half_precision_runs_and_is_near(models: Path) -> None:
    full, half = (
        rows_of(make_extractor(f"hf:{models / 'clip'}", precision=name, threads=1)) for name in ("fp32", "bf16")
    )
    cosines = (full * half).sum(axis=1) / np.linalg.norm(full, axis=1) / np.linalg.norm(half, axis=1)
    assert cosines.min() > 0.99
    assert not np.array_equal(full, half)


def test_random_weights_are_never_used(models: Path, tmp_path: Path) -> None:
    """transformers fills missing weights with random numbers: a pooler that the files lack is no output."""
    config = transformers.ViTConfig(**VISION)
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    assert make_extractor(f"hf:{tmp_path / 'vit'}", threads=1).contract.output == "last_hidden_state:mean"
    with pytest.raises(InputError, match="has no output 'pooler_output'"):
        make_extractor(f"hf:{tmp_path / 'vit'}", output="pooler_output", threads=1)
    shutil.copytree(models / "dinov2", tmp_path / "dino")
    state = transformers.Dinov2Model.from_pretrained(tmp_path / "dino").state_dict()
    from safetensors.torch import save_file

    kept = {name: value.contiguous() for name, value in state.items() if "layernorm" not in name}
    save_file(kept, tmp_path / "dino/model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"its files lack 2 weights, such as layernorm\.bias"):
        make_extractor(f"hf:{tmp_path / 'dino'}", threads=1)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"device": "cuda:9"}, "device: this PyTorch .* finds 0 CUDA devices, got 'cuda:9'"),
        ({"device": "gpu"}, "device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        ({"precision": "int8"}, "precision: expected auto, fp32, bf16, fp16, got 'int8'"),
        ({"clip_frames": 8}, "clip_frames: .* takes clips of 4 frames, got 8"),
    ],
)
def test_options_that_do_not_fit_are_refused(option: dict[str, Any], message: str, models: Path) -> None:
    if torch.cuda.is_available() and "cuda" in str(option.get("device")):
        pytest.skip("there is a CUDA device")
    with pytest.raises(InputError, match=f"^{message}"):
        make_extractor(f"hf:{models / 'videomae'}", **option)


def test_places_without_a_model_are_refused(models: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    for name, content in (("config.json", "{}"), ("model.safetensors", "text")):
        (tmp_path / "text" / name).write_text(content)
    shutil.copytree(models / "clip", tmp_path / "pointer")
    (tmp_path / "pointer/model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    shutil.copytree(models / "clip", tmp_path / "bare")
    for path in (tmp_path / "bare").glob("*processor*"):
        path.unlink()
    for place, message in (
        ("absent", "expected hf:<a directory, or a hub id>, got no directory "),
        ("empty", r"config\.json: no such file"),
        ("text", "transformers does not load its image processor"),
        ("pointer", r"model\.safetensors is a Git-LFS pointer"),
        ("bare", "transformers does not load its image processor"),
    ):
        with pytest.raises(InputError, match=f"^extractor: .*{message}"):
            make_extractor(f"hf:{tmp_path / place}", threads=1)
    assert not os.environ.get("HF_HUB_OFFLINE")


@pytest.mark.parametrize("shards", [False, True])
def test_a_hub_id_is_downloaded_without_what_is_not_needed(
    shards: bool, models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub = tmp_path / "hub"
    shutil.copytree(models / "dinov2", hub)
    if shards:
        (hub / "model.safetensors").rename(hub / "model-00001-of-00001.safetensors")
        names = transformers.Dinov2Model(dinov2()[0].config).state_dict()
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
        (hub / "model.safetensors.index.json").write_text(json.dumps(index))
    (hub / "pytorch_model.bin").write_text("not needed")
    asked: list[str] = []

    def download(repo_id: str, files: list[str]) -> Path:
        assert repo_id == "facebook/dinov2"
        asked.extend(files)
        return hub

    monkeypatch.setattr("mmn_fast.features.extractors.hf_files.download", download)
    listed = [path.name for path in hub.iterdir()]
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda api, repo_id: listed)
    contract = make_extractor("hf:facebook/dinov2", threads=1).contract
    assert contract.extractor == "hf:facebook/dinov2"
    assert "pytorch_model.bin" not in asked
    assert {"config.json", "preprocessor_config.json"} <= set(asked)
    assert ("model-00001-of-00001.safetensors" in asked) == shards
    local = make_extractor(f"hf:{models / 'dinov2'}", threads=1).contract
    assert local.first_difference(contract) is None
