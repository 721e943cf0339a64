"""New plans are compared with the reference before they replace earlier ones. TensorRT and CUDA are doubles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmn_fast.artifact import sidecar
from mmn_fast.artifact.manifest import check_files, read_manifest
from mmn_fast.benchmarking import stages
from mmn_fast.errors import BackendUnavailable
from mmn_fast.export import deploy, to_tensorrt
from mmn_fast.export.to_tensorrt import BuildOptions, build_plans
from mmn_fast.export.verify import BOUNDS, VerificationError
from mmn_fast.runtime import tensorrt_plan
from tests.cuda_runtime_double import CudaRuntime
from tests.tensorrt_plans import contents, load
from tests.tolerances import check_close


@pytest.fixture
def worn(exported: Path) -> dict[str, bytes]:
    """The files of an export with plans of an earlier build, one of which has no sidecar."""
    (exported / "score.plan.json").unlink()
    (exported / "text.plan").write_bytes(b"an earlier plan")
    return contents(exported)


def test_plans_are_held_to_the_reference(cuda: CudaRuntime, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = to_tensorrt.verify_plans(exported)
    assert found["top1_agreement"] == 1
    assert found["bound"] == BOUNDS["fp32"]
    assert max(found["max_error"].values()) <= found["bound"]
    spoil_runs(monkeypatch)
    before = contents(exported)
    with pytest.raises(VerificationError, match="tensorrt: .*: expected .* within 2e-05, got"):
        to_tensorrt.verify_plans(exported)
    assert contents(exported) == before


def spoil_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    run = tensorrt_plan.Plan.run

    def slightly_off(self: Any, inputs: Any, stream: int) -> Any:
        return {name: array * np.float32(1.0001) for name, array in run(self, inputs, stream).items()}

    monkeypatch.setattr(tensorrt_plan.Plan, "run", slightly_off)


def test_plans_that_are_off_leave_the_earlier_ones(
    cuda: CudaRuntime, exported: Path, worn: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_runs(monkeypatch)
    with pytest.raises(VerificationError, match="tensorrt: .*: expected .*; the new plans are not kept"):
        build_plans(exported, options=BuildOptions(version_compatible=True))
    assert contents(exported) == worn


@pytest.mark.parametrize("error", [BackendUnavailable("TensorRT refuses to run"), KeyboardInterrupt()])
def test_plans_that_could_not_be_verified_leave_the_earlier_ones(
    error: BaseException, cuda: CudaRuntime, exported: Path, worn: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, inputs: Any, stream: int) -> Any:
        assert {name: (exported / name).read_bytes() for name in worn} == worn, "replaced before they are verified"
        raise error

    monkeypatch.setattr(tensorrt_plan.Plan, "run", refuse)
    with pytest.raises(type(error)):
        deploy.Deployment(True, "same-gpu", False, False, None).run(exported)
    assert contents(exported) == worn
    check_files(exported, read_manifest(exported))


@pytest.mark.parametrize("moves", range(11))
def test_plans_that_cannot_all_be_moved_leave_the_earlier_ones(
    moves: int, cuda: CudaRuntime, exported: Path, worn: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six new files replace five earlier ones; the move fails after `moves` steps."""
    staged, replace, left = exported / "staged", Path.replace, [None] * moves
    staged.mkdir()
    for graph in ("video", "text", "score"):
        for path in (sidecar.plan_path(staged, graph), sidecar.sidecar_path(staged, graph)):
            path.write_bytes(b"new")

    def stop_once(self: Path, target: Path) -> Path:
        if not left:
            monkeypatch.undo()
            raise KeyboardInterrupt
        left.pop()
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", stop_once)
    with pytest.raises(KeyboardInterrupt):
        to_tensorrt._move_all(staged, exported)
    shutil.rmtree(staged)
    assert contents(exported) == worn


def test_new_plans_take_the_place_of_earlier_ones(cuda: CudaRuntime, exported: Path, worn: dict[str, bytes]) -> None:
    build_plans(exported)
    assert contents(exported).keys() - worn.keys() == {"score.plan.json"}
    load(exported)


def test_the_command_builds_verifies_and_serves_plans(cuda: CudaRuntime, demo_export: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from mmn_fast.cli import app

    directory = Path(shutil.copytree(demo_export, tmp_path / "exported"))
    options = [
        "--tensorrt",
        "--tf32",
        "--version-compatible",
        "--triton-repository",
        str(tmp_path / "models"),
        "--json",
    ]
    result = CliRunner().invoke(app, ["export", str(directory), *options])
    assert result.exit_code == 0, result.output
    written = [directory / f"{graph}.plan" for graph in ("video", "text", "score")]
    assert json.loads(result.stdout) == [*map(str, written), str(tmp_path / "models")]
    assert sidecar.read_sidecar(directory, "text").version_compatible
    assert (tmp_path / "models" / "mmn_text" / "1" / "model.plan").is_file()


def test_plans_are_measured_beside_the_graphs(cuda: CudaRuntime, exported: Path) -> None:
    options = stages.BenchOptions({"model": exported}, ["tensorrt", "onnx"])
    assert stages._choose(options, "auto") == ([("tensorrt", "fp32"), ("onnx", "fp32")], {})
    names = ["encode_video 1", "encode_text 2", "score 2"]
    calls, theirs = (stages.make_stages({"model": exported}, backend, "fp32", names) for backend in options.backends)
    for name in names:
        for ours, expected in zip(calls[name](), theirs[name](), strict=True):
            check_close(ours, expected, "golden_maps", what=name)
    (exported / "text.plan").unlink()
    chosen, unavailable = stages._choose(options, "auto")
    assert chosen == [("onnx", "fp32")]
    assert "text.plan is missing; build it with" in unavailable["tensorrt fp32"]
