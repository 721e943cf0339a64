"""Damaged plans, and plans of another model, GPU or TensorRT, are refused. TensorRT and CUDA are doubles."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import mmn_fast
from mmn_fast.artifact.sidecar import Sidecar, unfit_reason
from mmn_fast.errors import BackendUnavailable, InputError
from mmn_fast.export.to_tensorrt import BuildOptions, build_plans
from tests.cuda_runtime_double import CudaRuntime
from tests.tensorrt_plans import install, load


def spoil(directory: Path, **changes: Any) -> None:
    for graph in ("video", "text", "score"):
        path = directory / f"{graph}.plan.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tensorrt": "10.9.0.34"},
            "built by TensorRT 10.9.0.34 and runs on no other, but this is TensorRT 10.16.1.11",
        ),
        (
            {"tensorrt": "11.4.0.106", "version_compatible": True},
            "built by TensorRT 11.4.0.106 and runs on that or a newer one, but this is TensorRT 10.16.1.11",
        ),
        ({"gpu": "Other"}, r"built for Other \(compute capability 9.0\) only, but this GPU is Double 9000 \(9.0\)"),
        (
            {"hardware": "same-compute-capability", "compute_capability": [8, 0]},
            r"built for GPUs of compute capability 8.0, but this GPU is Double 9000 \(9.0\)",
        ),
        ({"version_compatible": True}, "holds host code; backend_options=.'allow_host_code': True. runs it"),
        ({"fingerprint": "0" * 32}, "is not of this model: fingerprint: expected .*, got 0+; build it again with"),
        ({"onnx_sha256": "0"}, "is not of this model: onnx_sha256: expected .*, got 0; build it again with"),
        ({"precision": "fp16"}, "is not of this model: precision: expected fp32, got fp16; build"),
        ({"profiles": []}, "is not of this model: profiles differ; build it again with"),
        ({"plan_sha256": "0"}, "is not the plan that its sidecar describes: sha256 expected 0, got "),
        ({"format_version": 9}, "expected mmn_fast TensorRT plan of format_version 1, got .* of 9"),
        ({"compute_capability": "nine"}, "plan.json: compute_capability: expected a list of 2 values, got 'nine'"),
        ({"profiles": 3}, "plan.json: profiles: expected a list of 0 to 10000 values, got 3"),
        ({"profiles": [{"B": [1, "2"]}]}, r"plan.json: profiles\[0\]: 'B'\[1\]: expected an integer >= 1, got '2'"),
        ({"gpu": ""}, "plan.json: gpu: expected text of 1 to 10000 characters, got ''"),
        ({"gpus": 1}, "plan.json: unknown key 'gpus'; did you mean 'gpu'"),
        ({"tf32": 1}, "plan.json: tf32: expected true or false, got 1"),
        ({"hardware": "any"}, "plan.json: hardware: expected 'same-gpu' or .*, got 'any'"),
    ],
)
def test_plans_of_others_are_refused(changes: dict[str, Any], message: str, cuda: CudaRuntime, exported: Path) -> None:
    spoil(exported, **changes)
    with pytest.raises((InputError, BackendUnavailable), match=message):
        load(exported)


def test_missing_and_foreign_files_are_refused(cuda: CudaRuntime, exported: Path) -> None:
    (exported / "text.plan.json").unlink()
    with pytest.raises(InputError, match="text.plan.json is missing, so nothing says what text.plan was built"):
        load(exported)
    (exported / "text.plan").unlink()
    with pytest.raises(InputError, match="text.plan is missing; build it with mmn-fast export .* --tensorrt"):
        load(exported)
    with pytest.raises(InputError, match="backend 'tensorrt' runs exports"):
        mmn_fast.load("demo", backend="tensorrt")
    with pytest.raises(BackendUnavailable, match="precision 'fp16': the plans of .* are fp32"):
        mmn_fast.load(exported, backend="tensorrt", precision="fp16")
    with pytest.raises(BackendUnavailable, match="runs on CUDA devices only"):
        mmn_fast.load(exported, backend="tensorrt", device="cpu")
    with pytest.raises(InputError, match="cuda_graphs: expected true or false, got 'no'"):
        load(exported, cuda_graphs="no")


def test_a_plan_that_tensorrt_does_not_read_is_refused(cuda: CudaRuntime, exported: Path) -> None:
    (exported / "score.plan").write_bytes(b"something else")
    spoil(exported)
    path = exported / "score.plan.json"
    import hashlib

    digest = hashlib.sha256(b"something else").hexdigest()
    path.write_text(json.dumps({**json.loads(path.read_text()), "plan_sha256": digest}))
    with pytest.raises(BackendUnavailable, match="score.plan: TensorRT does not read the plan .serialization"):
        load(exported)


@pytest.mark.parametrize("what", ["names", "count", "shapes"])
def test_a_plan_that_is_not_its_sidecars_is_refused(
    what: str, cuda: CudaRuntime, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = sys.modules["tensorrt"].ICudaEngine
    if what == "names":
        monkeypatch.setattr(engine, "get_tensor_name", lambda self, index: next(iter(self._tensors)))
    elif what == "count":
        monkeypatch.setattr(engine, "num_optimization_profiles", 1)
    else:
        monkeypatch.setattr(engine, "get_tensor_profile_shape", lambda self, name, profile_index: [(1,)] * 3)
    message = {
        "names": "inputs and outputs are not those of its graph",
        "count": "expected 7 profiles, got 1",
        "shapes": "profile 0: pre_clips: expected .*, got ",
    }[what]
    with pytest.raises(InputError, match=message):
        load(built)


def test_a_version_compatible_plan_runs_where_it_is_allowed(
    demo_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Path(shutil.copytree(demo_export, tmp_path / "exported"))
    install(monkeypatch, CudaRuntime(), "10.9.0.34")
    build_plans(directory, options=BuildOptions(version_compatible=True, hardware="ampere-plus"))
    install(monkeypatch, CudaRuntime(name="Newer", capability=(10, 0)), "11.4.0.106")
    assert load(directory, allow_host_code=True).info()["runtime"] == "tensorrt 11.4.0.106"
    install(monkeypatch, CudaRuntime(name="Older", capability=(7, 5)), "11.4.0.106")
    with pytest.raises(BackendUnavailable, match=r"compute capability 8.0 or higher, but this GPU is Older \(7.5\)"):
        load(directory, allow_host_code=True)


def test_versions_are_compared_as_numbers() -> None:
    written = Sidecar("video", "", "fp32", "", "", "10.9.0.34", "A", (9, 0), True, "same-gpu", False, 3, ())
    assert unfit_reason(written, "10.16.1.11", "A", (9, 0)) is None
    assert unfit_reason(written, "10.14.1.48.post1", "A", (9, 0)) is None
    assert "10.9.0.34" in str(unfit_reason(written, "10.8.0.43", "A", (9, 0)))
