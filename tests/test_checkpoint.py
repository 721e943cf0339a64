"""Official checkpoints and converted directories: files that load, and the words that refuse others."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.golden import cases
from mmn_fast.checkpoint import convert, load_model, save_model
from mmn_fast.errors import InputError
from mmn_fast.model import MMN, build_model
from mmn_fast.presets import PRESETS, TextEncoderConfig
from mmn_fast.storage.checksums import plain_sha256
from mmn_fast.weights.directory import FORMAT_VERSION
from mmn_fast.weights.state import state_shapes

CASE = cases.load("charades_small")
Files = Callable[[str], Path]


@pytest.fixture
def official(golden_files: Files) -> dict[str, Any]:
    """Content of an official checkpoint, for a test to change."""
    return torch.load(golden_files("charades_small") / "model.pth", weights_only=True)


def _save(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def _load(path: Path, golden_files: Files) -> dict[str, np.ndarray]:
    return load_model(path, CASE.preset, golden_files("charades_small") / "vocab.txt").state


_expected = cache(CASE.state)  # drawing its 23 million values takes a second


def _same(state: dict[str, np.ndarray]) -> None:
    expected = _expected()
    assert state.keys() == expected.keys()
    assert all(np.array_equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", [*cases.SMALL, "charades_full"])
def test_state_shapes_are_those_of_the_model(name: str) -> None:
    case = cases.load(name)
    with torch.device("meta"):
        state = MMN(case.preset, case.text).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert shapes == state_shapes(case.preset, case.text)


@pytest.mark.slow
def test_official_checkpoint_loads_with_training_state_beside_it(tmp_path: Path, golden_files: Files) -> None:
    CASE.write_checkpoint(tmp_path / "model.pth", training_state=True)
    _same(_load(tmp_path / "model.pth", golden_files))


@pytest.mark.slow
def test_bare_state_dict_loads_without_prefix(official: dict, tmp_path: Path, golden_files: Files) -> None:
    bare = {name.removeprefix("module."): tensor for name, tensor in official["model"].items()}
    _same(_load(_save(bare, tmp_path / "model.pth"), golden_files))


@pytest.mark.slow
def test_leftovers_of_older_versions_are_ignored(official: dict, tmp_path: Path, golden_files: Files) -> None:
    model = official["model"]
    model["module.text_encoder.bert.embeddings.position_ids"] = torch.arange(64)[None]
    for layer, shape in (("fc1", (24, 20)), ("fc2", (24, 24))):
        model[f"module.featpool.{layer}.weight"] = torch.zeros(shape)
        model[f"module.featpool.{layer}.bias"] = torch.zeros(24)
    for name in [name for name in model if name.endswith("num_batches_tracked")]:
        del model[name]
    _same(_load(_save(official, tmp_path / "model.pth"), golden_files))


@pytest.mark.slow
def test_legacy_file_format_loads(official: dict, tmp_path: Path, golden_files: Files) -> None:
    torch.save(official, tmp_path / "model.pth", _use_new_zipfile_serialization=False)
    _same(_load(tmp_path / "model.pth", golden_files))


def test_half_precision_checkpoint_loads_as_float32(official: dict, tmp_path: Path, golden_files: Files) -> None:
    official["model"] = {name: tensor.half() for name, tensor in official["model"].items()}
    state = _load(_save(official, tmp_path / "model.pth"), golden_files)
    assert {array.dtype for array in state.values()} == {np.dtype(np.float32)}


def test_text_sizes_are_read_off_the_tensors(golden_files: Files) -> None:
    model = load_model(
        golden_files("charades_small") / "model.pth", CASE.preset, golden_files("charades_small") / "vocab.txt"
    )
    assert model.text == CASE.text == TextEncoderConfig(num_layers=1, ffn_width=96, max_tokens=64)


@pytest.mark.slow
def test_converted_directory_holds_the_same_model(golden_files: Files, golden_model: Files) -> None:
    vocab = golden_files("charades_small") / "vocab.txt"
    checkpoint = load_model(golden_files("charades_small") / "model.pth", CASE.preset, vocab)
    directory = load_model(golden_model("charades_small"))
    _same(directory.state)
    assert directory.preset == checkpoint.preset
    assert directory.text == checkpoint.text
    assert directory.fingerprint == checkpoint.fingerprint
    config = json.loads((golden_model("charades_small") / "config.json").read_text())
    assert config["format_version"] == FORMAT_VERSION
    assert config["preset"]["nms_iou"] == 0.5
    assert config["preset"]["recipe"]["milestones"] == [8, 13]


@pytest.mark.slow
def test_fingerprint_changes_with_weights_and_preset(official: dict, tmp_path: Path, golden_files: Files) -> None:
    vocab = golden_files("charades_small") / "vocab.txt"
    path = golden_files("charades_small") / "model.pth"
    first = load_model(path, CASE.preset, vocab).fingerprint
    assert load_model(path, dataclasses.replace(CASE.preset, nms_iou=0.3), vocab).fingerprint != first
    official["model"]["module.featpool.conv.bias"][0] += 1
    assert load_model(_save(official, tmp_path / "m.pth"), CASE.preset, vocab).fingerprint != first


class _Evil:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("evil-was-here"),))


def _lfs_pointer(path: Path, _: dict) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 681\n")


def _truncated(path: Path, content: dict) -> None:
    _save(content, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _missing_key(path: Path, content: dict) -> None:
    del content["model"]["module.proposal_conv.bn.3.running_var"]
    _save(content, path)


def _extra_key(path: Path, content: dict) -> None:
    content["model"]["module.extra.weight"] = torch.zeros(3)
    _save(content, path)


def _missing_text(path: Path, content: dict) -> None:
    content["model"] = {name: t for name, t in content["model"].items() if "text_encoder" not in name}
    _save(content, path)


def _not_finite(path: Path, content: dict) -> None:
    content["model"]["module.featpool.conv.weight"][3, 4] = float("nan")
    _save(content, path)


def _wrong_width(path: Path, content: dict) -> None:
    content["model"]["module.featpool.conv.weight"] = torch.zeros(32, 500, 1)
    _save(content, path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path, _: path.touch(), "is empty"),
        (_lfs_pointer, "is a Git-LFS pointer, not the file itself; run `git lfs pull`"),
        (_truncated, "is truncated or damaged"),
        (lambda path, _: path.write_bytes(b"certainly no checkpoint"), "is not a PyTorch checkpoint"),
        (lambda path, _: path.write_bytes(pickle.dumps(_Evil(), 4)), "is not a PyTorch checkpoint"),
        (lambda path, _: path.write_bytes(pickle.dumps(_Evil(), 2)), "checkpoint: .*(damaged|not loaded)"),
        (lambda path, _: _save(_Evil(), path), r"beside tensors \(\S+\) and is not loaded, since that runs code"),
        (lambda path, c: _save({"model": c["model"], "config": _Evil()}, path), "not loaded, since that runs code"),
        (lambda path, _: _save([1, 2], path), "expected a state dict, or a dict with one under 'model'.*, got list"),
        (lambda path, _: _save({"model": {}}, path), "expected a state dict, or a dict with .*, got a dict of model"),
        (lambda path, _: _save({"model": {"a": 1}}, path), "a: expected a tensor, got int"),
        (_missing_key, r"missing key proposal_conv.bn.3.running_var \(for preset 'charades_small'\)"),
        (_extra_key, "unexpected key extra.weight"),
        (_missing_text, "missing key text_encoder.bert.embeddings.word_embeddings.weight"),
        (_not_finite, "featpool.conv.weight holds NaN or infinite values"),
        (_wrong_width, r"featpool.conv.weight is \[32, 500, 1\], preset 'charades_small' expects \[32, 20, 1\]"),
    ],
)
def test_unusable_checkpoint_is_refused_and_nothing_is_written(
    spoil: Callable[[Path, dict], object], message: str, official: dict, tmp_path: Path, golden_files: Files
) -> None:
    path = tmp_path / "in" / "model.pth"
    path.parent.mkdir()
    spoil(path, official)
    with pytest.raises(InputError, match=message) as refusal:
        convert(path, CASE.preset, golden_files("charades_small") / "vocab.txt", tmp_path / "out" / "model")
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "in"]
    assert not Path("evil-was-here").exists()


@pytest.mark.full
def test_a_width_that_belongs_to_another_preset_is_named(tmp_path: Path) -> None:
    text = TextEncoderConfig(num_layers=1, ffn_width=96, max_tokens=64)
    shapes = state_shapes(PRESETS["activitynet-captions"], text)
    path = _save({"model": {name: torch.zeros(shape) for name, shape in shapes.items()}}, tmp_path / "model.pth")
    with pytest.raises(InputError, match=r"\[512, 500, 1\].*these weights are of the sizes of 'activitynet-captions'"):
        load_model(path, "charades-sta", cases.VOCAB)


def test_a_width_of_another_preset_in_a_model_of_other_sizes_is_named(
    official: dict, tmp_path: Path, golden_files: Files
) -> None:
    official["model"]["module.featpool.conv.weight"] = torch.zeros(512, 500, 1)
    with pytest.raises(InputError, match="this width belongs to 'activitynet-captions'"):
        _load(_save(official, tmp_path / "model.pth"), golden_files)


def test_tokenizer_of_another_size_is_refused(golden_files: Files, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\ndoor\n")
    with pytest.raises(InputError, match="tokenizer: expected the 30522 word pieces that .*model.pth embeds, got 5"):
        load_model(golden_files("charades_small") / "model.pth", CASE.preset, tmp_path / "vocab.txt")


@pytest.mark.parametrize("given", [{}, {"preset": "charades-sta"}, {"tokenizer": cases.VOCAB}])
def test_checkpoint_needs_preset_and_tokenizer(given: dict, golden_files: Files) -> None:
    with pytest.raises(InputError, match="an official checkpoint needs preset= and tokenizer="):
        load_model(golden_files("charades_small") / "model.pth", **given)


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_existing_output_is_refused_and_kept(make: Callable[[Path], None], golden_files: Files, tmp_path: Path) -> None:
    output = tmp_path / "out"
    make(output)
    with pytest.raises(InputError, match="out exists; name a directory that does not"):
        convert(golden_files("charades_small") / "model.pth", CASE.preset, cases.VOCAB, output)
    assert output.exists()


def test_failed_write_leaves_nothing(golden_model: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(golden_model("charades_small"))

    def full_disk(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model.tokenizer, "save", full_disk)
    with pytest.raises(InputError, match="No space left on device"):
        save_model(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def directory(golden_model: Files, tmp_path: Path) -> Path:
    """A converted directory for a test to damage."""
    return Path(shutil.copytree(golden_model("charades_small"), tmp_path / "model"))


def _edit_config(directory: Path, change: Callable[[dict], object], sign: bool = True) -> None:
    """Change config.json and, if `sign`, its own checksum, so that the value is refused and not the checksum."""
    config = json.loads((directory / "config.json").read_text())
    own = config.pop("sha256")
    change(config)
    config["sha256"] = plain_sha256(config) if sign else own
    (directory / "config.json").write_text(json.dumps(config))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "is not a converted directory: no config.json"),
        (lambda d: (d / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda d: (d / "config.json").write_text("{"), "config.json: not JSON"),
        (lambda d: _edit_config(d, lambda c: c.pop("preset")), "config.json: missing preset"),
        (lambda d: _edit_config(d, lambda c: c.update(format_version=99)), "format_version: expected 3, got 99"),
        (
            lambda d: _edit_config(d, lambda c: c.update(source="x"), sign=False),
            "config.json has changed since it was written",
        ),
        (
            lambda d: _edit_config(d, lambda c: c["preset"].update(nms_iou=0.4)),
            "as computed from the files, got",
        ),
        (lambda d: _edit_config(d, lambda c: c["text_encoder"].update(num_heads=6)), "fingerprint: expected"),
        (lambda d: _edit_config(d, lambda c: c["text_encoder"].update(num_heads=5)), "num_heads"),
        (
            lambda d: _edit_config(d, lambda c: c["preset"].pop("num_clips")),
            r"config.json: preset .*: missing num_clips",
        ),
        (lambda d: _edit_config(d, lambda c: c["preset"].update(joint_size=32)), r"is \[24, .*expects \[32, "),
        (
            lambda d: _edit_config(d, lambda c: c["text_encoder"].update(width="x")),
            "config.json: text_encoder: width: expected an integer",
        ),
        (lambda d: _cut(d / "model.safetensors"), "model.safetensors is truncated or damaged"),
        (lambda d: _lfs_pointer(d / "model.safetensors", {}), "is a Git-LFS pointer"),
        (lambda d: _cut(d / "tokenizer.json"), "tokenizer.json is not the file that config.json was written for"),
    ],
)
def test_damaged_directory_is_refused(spoil: Callable[[Path], object], message: str, directory: Path) -> None:
    spoil(directory)
    with pytest.raises(InputError, match=message) as refusal:
        load_model(directory)
    assert "\n" not in str(refusal.value)


def test_directory_refuses_another_preset(directory: Path) -> None:
    with pytest.raises(InputError, match="was converted with preset 'charades_small', got 'tacos'"):
        load_model(directory, preset="tacos")


@pytest.mark.slow
def test_hub_id_is_downloaded(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[tuple] = []

    def snapshot(repo_id: str, allow_patterns: list[str], cache_dir: str | None) -> str:
        asked.append((repo_id, cache_dir))
        return str(directory)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setenv("MMN_FAST_CACHE", "/somewhere")
    _same(load_model("owner/mmn-charades").state)
    assert asked == [("owner/mmn-charades", "/somewhere/hub")]
    (directory / "model.safetensors").unlink()
    with pytest.raises(InputError, match="owner/mmn-charades: the hub repository has no model.safetensors"):
        load_model("owner/mmn-charades")


def test_unreachable_hub_id_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def snapshot(*_: object, **__: object) -> str:
        raise OSError("no route to host\nlong trace")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(InputError, match="owner/name: neither a local path nor a reachable hub repository .no route"):
        load_model("owner/name")


@pytest.mark.parametrize("model", ["absent.pth", "/absent/model", "absent", "some/dir/deeper"])
def test_absent_model_is_refused(model: str) -> None:
    with pytest.raises(InputError, match="no such file or directory, and not a hub id"):
        load_model(model)


def test_built_model_computes_with_the_given_weights(golden_model: Files) -> None:
    model = load_model(golden_model("charades_small"))
    net = build_model(model.preset, model.text, model.state)
    assert not net.training
    assert not any(tensor.is_meta for tensor in [*net.parameters(), *net.buffers()])
    assert set(net.state_dict()) - set(model.state) == {
        f"proposal_conv.bn.{layer}.num_batches_tracked" for layer in range(8)
    }
