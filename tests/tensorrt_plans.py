"""Plans that the doubles of TensorRT and CUDA build and run: fixtures and helpers of several test files."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmn_fast
from mmn_fast.artifact.manifest import read_manifest
from mmn_fast.export.to_tensorrt import build_plans
from tests.cuda_runtime_double import CudaRuntime
from tests.tensorrt_double import make_tensorrt

VERSION = "10.16.1.11"


def install(monkeypatch: pytest.MonkeyPatch, cuda: CudaRuntime, version: str = VERSION) -> Any:
    """Make `import tensorrt` find a double, and the double's GPU the machine's only GPU."""
    trt = make_tensorrt(cuda, version)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    return trt


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> CudaRuntime:
    double = CudaRuntime()
    install(monkeypatch, double)
    return double


@pytest.fixture(scope="session")
def built(demo_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with plans that the double built."""
    directory = tmp_path_factory.mktemp("plans") / "exported"
    shutil.copytree(demo_export, directory)
    with pytest.MonkeyPatch.context() as monkeypatch:
        install(monkeypatch, CudaRuntime())
        build_plans(directory)
    return directory


@pytest.fixture
def exported(built: Path, tmp_path: Path) -> Path:
    """A copy of `built` for a test to damage."""
    return Path(shutil.copytree(built, tmp_path / "exported"))


def load(directory: Path, **options: Any) -> mmn_fast.Engine:
    return mmn_fast.load(directory, backend="tensorrt", backend_options=options)


def clips(videos: int) -> np.ndarray:
    """Draw pre-clips of some videos, float32 [B, T, D]."""
    preset = mmn_fast.load("demo").preset
    shape = videos, preset.num_pre_clips, preset.input_size
    return np.random.default_rng(videos).standard_normal(shape).astype(np.float32)


def proposals(directory: Path) -> tuple[int, ...]:
    """Read P and J of an export."""
    return tuple(map(int, read_manifest(directory).signature("score").inputs[0].shape))


def contents(directory: Path) -> dict[str, bytes]:
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}
