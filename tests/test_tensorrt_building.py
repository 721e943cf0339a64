"""Plans are built: profiles, the builder's options, and refusals. TensorRT and CUDA are doubles."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmn_fast
from mmn_fast.artifact import sidecar
from mmn_fast.artifact.manifest import read_manifest
from mmn_fast.artifact.sidecar import BUCKETS, Profile, choose_profile, profiles_for
from mmn_fast.errors import BackendUnavailable, InputError
from mmn_fast.export import to_tensorrt
from mmn_fast.export.to_tensorrt import BuildOptions, build_plans
from tests.cuda_runtime_double import CudaRuntime
from tests.tensorrt_double import make_tensorrt
from tests.tensorrt_plans import VERSION, contents, install, load

# -- profiles


def test_profiles_take_every_size_up_to_the_largest_bucket(built: Path) -> None:
    manifest = read_manifest(built)
    video = profiles_for("video", manifest)
    assert [one.sizes["B"] for one in video] == list(BUCKETS["B"])
    for size in range(1, 49):
        number = choose_profile(video, {"B": size})
        assert number is not None
        assert video[number].sizes["B"] == min(bucket for bucket in BUCKETS["B"] if bucket >= size)
    assert choose_profile(video, {"B": 49}) is None
    assert choose_profile(video, {"B": 0}) is None
    text = profiles_for("text", manifest)
    limit = manifest.text.max_tokens
    for length in range(1, limit + 1):
        for sentences in (1, 2, 8, 9, 128):
            assert choose_profile(text, {"S": sentences, "L": length}) is not None
    assert choose_profile(text, {"S": 1, "L": limit + 1}) is None


@pytest.mark.parametrize("limit", [12, 16, 40, 64, 512])
def test_the_last_bucket_of_tokens_is_the_encoders_limit(limit: int) -> None:
    buckets = sidecar.token_buckets(limit)
    assert buckets[-1] == limit
    assert list(buckets) == sorted(set(buckets))


def test_text_batches_hold_every_sentence_once() -> None:
    rng = np.random.default_rng(0)
    ids = [rng.integers(1, 99, rng.integers(1, 41)) for _ in range(300)]
    seen: list[int] = []
    for rows, padded, mask in sidecar.text_batches(ids, 40):
        assert padded.shape == mask.shape
        assert len(rows) <= BUCKETS["S"][-1]
        assert padded.shape[1] in (16, 32, 40)
        for row, values, real in zip(rows, padded, mask, strict=True):
            np.testing.assert_array_equal(values[real > 0], ids[row])
            assert not values[real == 0].any()
        seen += rows
    assert sorted(seen) == list(range(300))


# -- building


@pytest.mark.parametrize("version", ["10.1.0", VERSION, "11.4.0.106"])
def test_plans_are_built_and_run_in_every_version(
    version: str, demo_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, CudaRuntime(), version)
    directory = Path(shutil.copytree(demo_export, tmp_path / "exported"))
    (plan,) = build_plans(directory, ["score"], BuildOptions(progress=True, workspace_mib=64))
    written = sidecar.read_sidecar(directory, "score")
    assert plan.read_bytes().startswith(b"plan of the double"), "a header before the plan"
    assert (written.tensorrt, written.gpu, written.compute_capability) == (version, "Double 9000", (9, 0))
    assert written.onnx_sha256 == read_manifest(directory).files["score.onnx"]
    assert written.profiles == tuple(Profile((("S", *bounds),)) for bounds in ((1, 1), (2, 8), (9, 32), (33, 128)))
    sidecar.check_sidecar(directory, written, "score", read_manifest(directory))
    assert not list(directory.glob(".*")), "partial files are left"


def content(plan: Path) -> dict[str, Any]:
    import pickle

    from tests.tensorrt_double import PREFIX

    found: dict[str, Any] = pickle.loads(plan.read_bytes()[len(PREFIX) :])
    return found


def test_options_reach_the_builder(cuda: CudaRuntime, exported: Path) -> None:
    (plan,) = build_plans(exported, ["score"])
    assert content(plan)["flags"] == [], "TF32 is off by default: 11 bits are outside fp32's bound"
    assert content(plan)["hardware"] == "NONE"
    options = BuildOptions(True, "ampere-plus", tf32=True, optimization_level=5, workspace_mib=3)
    (plan,) = build_plans(exported, ["score"], options)
    assert content(plan)["flags"] == ["TF32", "VERSION_COMPATIBLE"]
    assert content(plan)["hardware"] == "AMPERE_PLUS"
    assert content(plan)["level"] == 5
    assert content(plan)["pools"] == {"WORKSPACE": 3 * 2**20}
    assert sidecar.read_sidecar(exported, "score").tf32


def test_the_timing_cache_is_kept_and_one_of_another_gpu_refused(cuda: CudaRuntime, exported: Path) -> None:
    cache = exported / to_tensorrt.TIMING_CACHE
    assert cache.read_bytes() == b"timings Double 9000 10.16.1.11"
    build_plans(exported, ["score"])
    before = {file.name: file.read_bytes() for file in exported.glob("*.plan*")}
    cache.write_bytes(b"timings of another")
    with pytest.raises(InputError, match="timing_cache: .*another GPU or by another TensorRT"):
        build_plans(exported, ["score"])
    assert {file.name: file.read_bytes() for file in exported.glob("*.plan*")} == before


def test_a_full_disk_is_one_sentence_and_changes_nothing(
    cuda: CudaRuntime, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    before = contents(exported)
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(InputError, match="tensorrt: .*exported: No space left on device"):
        build_plans(exported, ["score"])
    assert contents(exported) == before


def test_a_build_that_fails_changes_nothing(cuda: CudaRuntime, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = sys.modules["tensorrt"]
    parse = trt.OnnxParser.parse_from_file

    def refuse_text(self: Any, model: str) -> bool:
        parse(self, model)
        self._errors = [trt.ParserError("no converter for Foo")]
        return not model.endswith("text.onnx")

    monkeypatch.setattr(trt.OnnxParser, "parse_from_file", refuse_text)
    before = {file.name: file.read_bytes() for file in exported.iterdir()}
    with pytest.raises(InputError, match="text.onnx: TensorRT 10.16.1.11 does not read the graph .node_0: no conv"):
        build_plans(exported, options=BuildOptions(version_compatible=True))
    assert {file.name: file.read_bytes() for file in exported.iterdir()} == before


def test_a_graph_that_does_not_fit_its_profiles_is_refused_with_tensorrts_words(
    cuda: CudaRuntime, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Profile, "shapes", lambda self, spec: ((1, 2), (1, 2), (1, 2)))
    with pytest.raises(InputError, match="builds no plan .video_contrastive"):
        build_plans(exported, ["score"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hardware": "any"}, "hardware: expected one of same-gpu, .*, got 'any'"),
        ({"optimization_level": 6}, "optimization_level: expected an integer from 0 to 5, got 6"),
        ({"optimization_level": True}, "optimization_level: expected an integer from 0 to 5, got True"),
        ({"workspace_mib": 0}, "workspace_mib: expected an integer >= 1, got 0"),
    ],
)
def test_bad_options_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BuildOptions(**arguments)


def test_plans_that_cannot_be_built_are_refused(
    cuda: CudaRuntime, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="graphs: expected some of video, text, score, got 'audio'"):
        build_plans(exported, ["audio"])
    with pytest.raises(InputError, match="is not an export"):
        build_plans(exported / "nowhere")
    install(monkeypatch, cuda, "10.1.0")
    with pytest.raises(InputError, match="hardware: TensorRT 10.1.0 has no 'same-compute-capability'"):
        build_plans(exported, ["score"], BuildOptions(hardware="same-compute-capability"))
    (exported / "score.onnx").write_bytes(b"other")
    with pytest.raises(InputError, match="score.onnx is not the file that was verified"):
        build_plans(exported, ["score"])


@pytest.mark.parametrize(
    ("installed", "message"),
    [
        (None, "TensorRT is not installed .pip install mmn_fast.tensorrt."),
        ("10.0.1", "tensorrt 10.0.1 is installed, expected a version from 10.1 to 11"),
        ("12.0.0", "tensorrt 12.0.0 is installed, expected a version from 10.1 to 11"),
    ],
)
def test_a_missing_or_old_tensorrt_is_named(
    installed: str | None, message: str, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = CudaRuntime()
    install(monkeypatch, cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", make_tensorrt(cuda, installed) if installed else None)
    monkeypatch.setitem(sys.modules, "tensorrt_lean", None)
    with pytest.raises(InputError, match=message):
        build_plans(exported)
    with pytest.raises(BackendUnavailable, match=f"backend 'tensorrt': {message}"):
        load(exported)


def test_missing_bindings_and_gpus_are_named(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, CudaRuntime(devices=0))
    with pytest.raises(BackendUnavailable, match="CUDA sees no device .no_device."):
        load(exported)
    install(monkeypatch, CudaRuntime(devices=2))
    with pytest.raises(BackendUnavailable, match="device 'cuda:2': there are 2 CUDA devices"):
        mmn_fast.load(exported, backend="tensorrt", device="cuda:2")
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(BackendUnavailable, match="pip install cuda-bindings"):
        load(exported)
