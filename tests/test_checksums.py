"""Files are read back bit for bit as written; one changed bit is refused in one sentence."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mmn_fast
from mmn_fast.checkpoint import LoadedModel, convert, load_model, model_from_state, save_model
from mmn_fast.embeddings import TextEmbeddings, VideoEmbeddings
from mmn_fast.errors import InputError
from mmn_fast.storage import checksums
from mmn_fast.storage.checksums import array_digests, chunked_sha256, combined_sha256, plain_sha256
from mmn_fast.training.run.checkpoint_file import read_checkpoint, write_checkpoint
from mmn_fast.weights.official import official_content
from tests.tiny_model import assert_same, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def directory(model: LoadedModel, tmp_path: Path) -> Path:
    return save_model(model, tmp_path / "model")


def every_flip_is_refused_or_harmless(
    path: Path, read: Callable[[], Any], same: Callable[[Any], None], count: int, head: int = 0
) -> float:
    """Change single bits at random places, half of them in the first `head` bytes if given.

    Returns:
        The share of changed files that were refused.
    """
    whole, rng, refused = path.read_bytes(), np.random.default_rng(7), 0
    said: set[str] = set()
    for number in range(count):
        place = int(rng.integers(head if head and number % 2 else len(whole)))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            found = read()
        except InputError as refusal:
            refused += 1
            said.add(str(refusal))
        else:
            same(found)
    path.write_bytes(whole)
    same(read())
    assert all(str(path.parent) in sentence and "\n" not in sentence for sentence in said)
    return refused / count


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", pytest.param("tokenizer.json", marks=pytest.mark.slow)]
)
def test_a_bit_of_a_directory(name: str, directory: Path, model: LoadedModel) -> None:
    refused = every_flip_is_refused_or_harmless(
        directory / name,
        lambda: load_model(directory),
        lambda found: assert_same(found, model),
        count=250,
        head=4000 if name == "model.safetensors" else 0,
    )
    assert refused > 0.9


def test_a_bit_of_an_official_checkpoint(model: LoadedModel, tmp_path: Path) -> None:
    record = {
        "preset": model.preset.to_dict(),
        "text_encoder": dataclasses.asdict(model.text),
        "tokenizer": model.tokenizer.to_json(),
    }
    torch.save(official_content(model.state, record, model.preset, 3, 9), tmp_path / "model.pth")
    refused = every_flip_is_refused_or_harmless(
        tmp_path / "model.pth",
        lambda: load_model(tmp_path / "model.pth"),
        lambda found: assert_same(found, model),
        count=250,
    )
    assert refused > 0.5  # the rest is padding between the records


def test_a_bit_of_a_runs_checkpoint(model: LoadedModel, tmp_path: Path) -> None:
    content = {"model": {name: torch.from_numpy(array) for name, array in model.state.items()}, "position": {"step": 3}}
    write_checkpoint(content, tmp_path / "checkpoint.pt")

    def same(found: Any) -> None:
        assert found["position"] == content["position"]
        assert all(torch.equal(tensor, found["model"][name]) for name, tensor in content["model"].items())

    refused = every_flip_is_refused_or_harmless(
        tmp_path / "checkpoint.pt", lambda: read_checkpoint(tmp_path / "checkpoint.pt"), same, count=250
    )
    assert refused == 1.0
    same(torch.load(tmp_path / "checkpoint.pt", weights_only=True))  # other readers ignore the checksum


@pytest.mark.parametrize("change", [lambda whole: whole[:-1], lambda whole: whole[:500], lambda whole: whole + b"x"])
def test_a_runs_checkpoint_that_is_cut_or_longer_is_refused(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    write_checkpoint({"model": {"a": torch.zeros(900)}}, path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=r"resume: .*checkpoint\.pt: not a checkpoint of a run, cut off"):
        read_checkpoint(path)


def test_a_runs_checkpoint_without_a_checksum_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="of a version without checksums; copy it again, or remove it"):
        read_checkpoint(tmp_path / "checkpoint.pt")


def _embeddings(kind: type) -> Any:
    rng = np.random.default_rng(3)
    shape = (2, 5, 8) if kind is VideoEmbeddings else (2, 8)
    extra = (
        {"durations_s": (3.5, 7.25), "video_ids": ("a", "b")} if kind is VideoEmbeddings else {"sentences": ("x", "y")}
    )
    return kind(rng.random(shape, np.float32), rng.random(shape, np.float32), "f" * 32, **extra)


@pytest.mark.parametrize("kind", [VideoEmbeddings, TextEmbeddings])
def test_a_bit_of_saved_embeddings(kind: Any, tmp_path: Path) -> None:
    kept = _embeddings(kind)
    kept.save(tmp_path / "e.safetensors")

    def same(found: Any) -> None:
        assert np.array_equal(found.contrastive, kept.contrastive)
        assert np.array_equal(found.iou, kept.iou)
        assert all(getattr(found, name) == getattr(kept, name) for name in ("fingerprint", *kind._per_item))

    refused = every_flip_is_refused_or_harmless(
        tmp_path / "e.safetensors", lambda: kind.load(tmp_path / "e.safetensors"), same, count=400
    )
    assert refused > 0.9


def test_embeddings_without_a_checksum_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    kept = _embeddings(TextEmbeddings)
    meta = {"kind": "mmn_fast text embeddings", "fingerprint": kept.fingerprint, "sentences": '["x", "y"]'}
    save_file({"contrastive": kept.contrastive, "iou": kept.iou}, tmp_path / "old.safetensors", metadata=meta)
    with pytest.raises(InputError, match="written by a version without checksums; encode again and save"):
        TextEmbeddings.load(tmp_path / "old.safetensors")


def test_other_weights_in_a_directory_are_refused_and_named(directory: Path) -> None:
    from safetensors.numpy import load_file, save_file

    path = directory / "model.safetensors"
    state = load_file(path)
    for changed, said in (
        ({name: array + 0.05 for name, array in state.items()}, f" and {len(state) - 1} more tensors"),
        (state | {"featpool.conv.bias": -state["featpool.conv.bias"]}, r"\(featpool\.conv\.bias\)"),
    ):
        save_file(changed, path)
        with pytest.raises(InputError, match=f"its weights.*{said}.* are not those that .*purpose: save_model"):
            load_model(directory)


def test_embeddings_of_changed_weights_are_not_scored_with_old_ones(model: LoadedModel, tmp_path: Path) -> None:
    changed = {name: array + 0.05 for name, array in model.state.items()}
    other = model_from_state(model.preset, model.text, changed, model.tokenizer, "changed")
    replaced = dataclasses.replace(model, state=changed)  # a changed copy gets a new fingerprint
    assert other.fingerprint == replaced.fingerprint != model.fingerprint
    engines = [
        mmn_fast.load(save_model(one, tmp_path / name), backend="torch")
        for name, one in (("one", model), ("other", replaced))
    ]
    text = engines[0].encode_text(["a dog jumps"])
    video = engines[1].encode_video([mmn_fast.Video(np.ones((16, model.preset.input_size), np.float32), 16.0)])
    with pytest.raises(InputError, match="text: expected embeddings of this engine's model"):
        engines[1].score(video, text)


def test_the_fingerprint_is_of_all_that_decides_results(model: LoadedModel) -> None:
    def print_of(**changes: Any) -> str:
        return dataclasses.replace(model, **changes).fingerprint

    preset = model.preset
    assert print_of() == model.fingerprint
    assert print_of(text=dataclasses.replace(model.text, num_heads=4)) != model.fingerprint
    assert print_of(preset=dataclasses.replace(preset, nms_iou=0.3)) != model.fingerprint
    assert print_of(preset=dataclasses.replace(preset, score_fusion="product")) != model.fingerprint
    recipe = dataclasses.replace(preset.recipe, epochs=99)
    assert print_of(preset=dataclasses.replace(preset, name="x", recipe=recipe, recall_at=(1,))) == model.fingerprint


def test_another_tokenizer_makes_another_model(directory: Path, tmp_path: Path, model: LoadedModel) -> None:
    words = [line for line, _ in sorted(model.tokenizer._inner.get_vocab().items(), key=lambda item: item[1])]
    same, other = tmp_path / "same.txt", tmp_path / "other.txt"
    same.write_text("\n".join(words) + "\n")
    other.write_text("\n".join([*words[:5], words[6], words[5], *words[7:]]) + "\n")
    assert load_model(directory, tokenizer=same).fingerprint == model.fingerprint
    assert load_model(directory, tokenizer=other).fingerprint != model.fingerprint


def as_format_1(directory: Path) -> None:
    """Rewrite a directory in the older format without checksums."""
    from safetensors.numpy import load_file, save_file

    config = json.loads((directory / "config.json").read_text())
    for name in ("sha256", "weights_sha256", "tokenizer_sha256", "tensors", "feature_contract"):
        del config[name]
    state = load_file(directory / "model.safetensors")
    digest = hashlib.sha256(json.dumps(config["preset"], sort_keys=True).encode())
    for name in sorted(state):
        digest.update(name.encode() + state[name].tobytes())
    config |= {"format_version": 1, "fingerprint": digest.hexdigest()[:32]}
    (directory / "config.json").write_text(json.dumps(config))
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})


def test_a_directory_of_format_1_is_held_to_its_own_hash_and_converted(
    directory: Path, model: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    as_format_1(directory)
    assert_same(load_model(directory), model)
    assert "has format 1, whose hash does not cover tokenizer.json" in caplog.text
    assert_same(load_model(convert(directory, None, None, tmp_path / "new")), model)
    weights = directory / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-100] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(InputError, match="its weights are not those that config.json was written for"):
        load_model(directory)


def test_an_export_is_held_to_its_fingerprint(demo_export: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(demo_export, tmp_path / "export"))
    assert load_model(copy).fingerprint == load_model("demo").fingerprint
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["fingerprint"] = "0" * 32
    (copy / "manifest.json").write_text(json.dumps({**manifest, "sha256": plain_sha256(manifest)}))
    with pytest.raises(InputError, match="fingerprint: expected .*, as computed from the files, got 000"):
        load_model(copy)


def test_digests_are_of_name_type_shape_and_bytes_whatever_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "none": np.empty((0, 3), np.float32),
        "scalar": np.float32(2.5).reshape(()),
        "one chunk": rng.random(2**20, np.float32),
        "chunks": rng.random((3, 700_001), np.float32),
    }
    threaded = array_digests(arrays)
    monkeypatch.setattr(checksums, "_SERIAL", 2**62)
    assert array_digests(arrays) == threaded
    assert len(set(threaded.values())) == len(arrays)
    for other in (
        {"chunks": arrays["chunks"].reshape(700_001, 3)},
        {"chunks": arrays["chunks"].view(np.int32)},
        {"other": arrays["chunks"]},
    ):
        assert not set(array_digests(other).values()) & set(threaded.values())
    assert combined_sha256(threaded) != combined_sha256({**threaded, "chunks": threaded["none"]})


def test_a_files_digest_is_the_same_whatever_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = np.random.default_rng(0).bytes(2**23 + 77)
    (tmp_path / "file").write_bytes(content + b"behind")
    parts = [content[start : start + 2**22] for start in range(0, len(content), 2**22)]
    expected = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    assert chunked_sha256(tmp_path / "file", len(content)) == expected
    monkeypatch.setattr(checksums, "_SERIAL", 2**62)
    assert chunked_sha256(tmp_path / "file", len(content)) == expected
