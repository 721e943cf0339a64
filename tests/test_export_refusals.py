"""Refusals of exports and backend "onnx": changed files and manifests, arguments, places, full disks."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmn_fast
from mmn_fast.artifact.manifest import read_manifest
from mmn_fast.checkpoint import save_model
from mmn_fast.errors import BackendUnavailable, InputError
from mmn_fast.export import to_onnx
from mmn_fast.export.to_onnx import export
from mmn_fast.export.verify import VerificationError, verify
from mmn_fast.storage.checksums import file_sha256, plain_sha256
from mmn_fast.storage.files import new_directory
from tests.command import run_here
from tests.conftest import Exports
from tests.tiny_model import tiny_model

pytestmark = pytest.mark.slow


@pytest.fixture
def copy(exports: Exports, tmp_path: Path) -> Path:
    """A copy of the demo's export for a test to damage."""
    return Path(shutil.copytree(exports("demo"), tmp_path / "copy"))


def test_files_that_differ_from_the_manifest_are_refused(copy: Path) -> None:
    video = copy / "video.onnx"
    content = bytearray(video.read_bytes())
    content[len(content) // 2] ^= 1
    video.write_bytes(content)
    for call in (verify, lambda path: mmn_fast.load(path, backend="onnx")):
        with pytest.raises(InputError, match="video.onnx is not the file that was verified: sha256 expected"):
            call(copy)
    video.unlink()
    with pytest.raises(InputError, match="video.onnx is missing; the manifest lists it"):
        verify(copy)


@pytest.mark.parametrize("name", ["manifest.json", "text.onnx"])
def test_a_file_that_cannot_be_read_is_refused(name: str, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read error stands in for another user's file, because the superuser can read all files."""
    opened = Path.open

    def refuse(self: Path, *arguments: Any, **named: Any) -> Any:
        if self.name == name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return opened(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", refuse)
    for call in (verify, mmn_fast.load):
        with pytest.raises(InputError, match=rf"export: .*{name} cannot be read \(Permission denied\)"):
            call(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 3}, "format_version: expected 5, got 3; export the model again"),
        ({"kind": "other"}, "is not the manifest of an mmn_fast export"),
        ({"files": {"../model": "00"}}, "expected names of files in the same directory, got '../model'"),
        ({"files": {}}, "graph 'video' is in 'video.onnx', which is not among its files"),
        ({"top_k": 3}, "the graphs' inputs and outputs are not those of preset 'shapes'"),
        ({"text": {"layers": 1}}, "manifest.json: text: unknown key 'layers'; did you mean 'num_layers'"),
        ({"text": {"width": True}}, "manifest.json: text_encoder: width: expected an integer >= 1, got True"),
        ({"precisoin": "fp32"}, "manifest.json: unknown key 'precisoin'; did you mean 'precision'"),
        ({"precision": "fp23"}, "manifest.json: precision: expected 'fp32' or 'fp16' or .*, got 'fp23'"),
        ({"fp32_stages": ["head"]}, "manifest.json: fp32_stages: unknown 'head'; did you mean 'heads'"),
        ({"raw_features": 0}, "manifest.json: raw_features: expected true or false, got 0"),
        ({"top_k": 0}, "manifest.json: top_k: expected an integer >= 1, got 0"),
        ({"opset": 20.0}, "manifest.json: opset: expected an integer >= 1, got 20.0"),
        ({"graphs": {"vido": {}}}, "manifest.json: graphs: unknown 'vido'; did you mean 'video'"),
        ({"graphs": {"video": {}}}, "manifest.json: graphs: video: missing file, inputs, outputs"),
        ({"graphs": []}, r"manifest.json: graphs: expected an object, got \[\]"),
        ({"files": {"video.onnx": 3}}, "manifest.json: files: 'video.onnx': expected text"),
        ({"preset": {}}, "manifest.json: preset '': missing name, num_pre_clips"),
        ({"preset": {"name": "x" * 300}}, "manifest.json: preset 'x.*: missing num_pre_clips"),
    ],
)
def test_a_manifest_of_something_else_is_refused(change: dict[str, object], message: str, copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text()) | change
    del manifest["sha256"]
    (copy / "manifest.json").write_text(json.dumps(manifest | {"sha256": plain_sha256(manifest)}))
    with pytest.raises(InputError, match=message):
        verify(copy)


@pytest.mark.parametrize(
    "change",
    [
        *({"precision": "bf16"}, {"precision": 7}, {"files": None}, {"text": {}}, {"opset": "x"}, {"sha256": "00"}),
        *({"preset": {"nms_iou": 0.9}}, {"preset": {"score_power": 7}}, {"files": {"reference.safetensors": "00"}}),
        *({"fingerprint": "00"}, {"more": 1}),
    ],
)
def test_a_manifest_that_was_changed_is_refused(change: dict[str, object], copy: Path) -> None:
    """Some changes, such as another NMS threshold, show in no graph."""
    manifest = json.loads((copy / "manifest.json").read_text())
    for name, value in change.items():
        manifest[name] = manifest[name] | value if isinstance(value, dict) else value
    if change == {"text": {}}:
        del manifest["text"]["max_tokens"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    for call in (verify, mmn_fast.load):
        with pytest.raises(InputError, match=r"manifest.json has changed since it was written: its sha256 differs"):
            call(copy)


def test_a_manifest_may_be_laid_out_otherwise(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(dict(reversed(manifest.items()))))
    assert json.loads(json.dumps(read_manifest(copy).to_dict())) == {k: manifest[k] for k in manifest if k != "sha256"}


def test_verification_names_the_first_difference(copy: Path) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(copy / "text.onnx")
    weight = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.5), weight.name))
    onnx.save(model, copy / "text.onnx")
    manifest = read_manifest(copy)
    files = manifest.files | {"text.onnx": file_sha256(copy / "text.onnx")}
    dataclasses.replace(manifest, files=files).write(copy)
    with pytest.raises(VerificationError, match=r"text, batch of 1, row 0: fused_from_text \[.*\]: expected .* within"):
        verify(copy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "int3"}, "precision: expected one of fp32, fp16, bf16, int8, got 'int3'"),
        ({"what": ["video", "audio"]}, "what: expected all, or some of video, text, score, got 'audio'"),
        ({"what": []}, "what: expected all, or some of video, text, score, got ''"),
        ({"top_k": 0}, "top_k: expected an integer from 1 to 100, got 0"),
        ({"model": os.devnull + "x"}, "model: /dev/nullx: no such file or directory"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        export(**{"model": "demo", "output": tmp_path / "out", **arguments})  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_places_that_do_not_fit_are_refused(exports: Exports, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="output: .* exists; name a directory that does not"):
        export("demo", tmp_path)
    with pytest.raises(InputError, match="is not a converted directory: no config.json"):
        export(tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="is an export already; name the model that it was made from"):
        export(exports("demo"), tmp_path / "out")
    with pytest.raises(InputError, match="is not an export: no manifest.json"):
        verify(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, exports: Exports, tmp_path: Path) -> None:
    directory = exports("demo")
    monkeypatch.setattr("mmn_fast.export.packages.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"torch and onnx and onnxruntime not installed \(pip install torch mmn_fast"):
        export("demo", tmp_path / "out")
    monkeypatch.setattr("mmn_fast.backends.ort.find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"onnxruntime is not installed \(pip install mmn_fast\[onnx\], "):
        mmn_fast.load(directory, backend="onnx")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"backend": "torch"},
            InputError,
            "is an export, which backend 'torch' cannot run; load it with",
        ),
        (
            {"precision": "fp16"},
            BackendUnavailable,
            "precision 'fp16': .* was exported as fp32; mmn-fast export",
        ),
        ({"precision": "fp8"}, BackendUnavailable, "precision 'fp8' is not one of its precisions"),
        ({"precision": "int8"}, BackendUnavailable, "precision 'int8': .* was exported as fp32; mmn-fast export"),
        ({"precision": "int8", "device": "cuda"}, BackendUnavailable, "device 'cuda': int8 graphs are for CPUs"),
        ({"device": "cuda"}, BackendUnavailable, "device 'cuda': this onnxruntime .* has no CUDA provider, only"),
        ({"preset": "tacos"}, InputError, "was exported with preset 'shapes', got 'tacos'"),
    ],
)
def test_onnx_refuses_what_it_cannot_do(
    options: dict[str, str], error: type[Exception], message: str, exports: Exports
) -> None:
    with pytest.raises(error, match=message):
        mmn_fast.load(exports("demo"), **{"backend": "onnx", **options})  # type: ignore[arg-type]


def test_onnx_refuses_a_model_with_the_command_that_exports_it() -> None:
    with pytest.raises(InputError, match="runs exports only, .* is not one; make one with mmn-fast export demo -o DIR"):
        mmn_fast.load("demo", backend="onnx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["export", "demo", "-o", "{tmp}/out", "--precision", "int3"],
            "precision: expected one of fp32, fp16, bf16, int8, got",
        ),
        (["export", "{tmp}", "-o", "{tmp}/out"], "is not a converted directory: no config.json"),
        (["export", "demo"], "--output: name a directory to create"),
        (["export", "demo", "-o", "{tmp}/out", "--what", "audio"], "what: expected all, or some of video, text, score"),
        (["verify", "{tmp}"], "is not an export: no manifest.json"),
        (["verify", "{copy}"], "text.onnx is not the file that was verified: sha256 expected"),
        (
            ["ground", "--features", "{tmp}/x.npy", "--duration", "9", "-q", "a", "-m", "{copy}"],
            "text.onnx is not the file that was verified",
        ),
    ],
)
def test_the_command_refuses_with_one_sentence(arguments: list[str], message: str, copy: Path, tmp_path: Path) -> None:
    with (copy / "text.onnx").open("ab") as file:
        file.write(b"more")
    np.save(tmp_path / "x.npy", np.ones((20, 357), np.float32))
    filled = [one.format(tmp=tmp_path / "none" if one == "{tmp}" else tmp_path, copy=copy) for one in arguments]
    (tmp_path / "none").mkdir()
    done = run_here(*filled)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let this process write no file beyond a size; that stands in for a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("size", "written"),
    [
        (1_000, ["tokenizer.json"]),
        (10_000, ["reference.safetensors", "tokenizer.json"]),
        (40_000, ["reference.safetensors", "tokenizer.json", "video.onnx"]),
    ],
    ids=["the tokenizer", "the reference", "the graph"],
)
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    size: int, written: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last file that is written does not fit."""
    model, found = save_model(tiny_model(tmp_path), tmp_path / "model"), list[str]()

    @contextmanager
    def watched(*arguments: Any) -> Iterator[Path]:
        with new_directory(*arguments) as partial:
            try:
                yield partial
            finally:
                found.extend(sorted(path.name for path in partial.iterdir()))

    monkeypatch.setattr(to_onnx, "new_directory", watched)
    before = sorted(tmp_path.iterdir())
    with files_of_at_most(size):
        done = run_here("export", model, "--what", "video", "-o", tmp_path / "out")
    assert (done.returncode, done.stderr) == (1, f"mmn-fast: --output: {tmp_path / 'out'}: File too large\n")
    assert found == written
    assert sorted(tmp_path.iterdir()) == before
