"""Fixtures: golden models as converted directories and engines, made once per run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mmn_fast
from mmn_fast.checkpoint import convert
from mmn_fast.kernels import triton_interpreter
from tests.golden import cases

if not torch.cuda.is_available():
    triton_interpreter.enable()  # before any test imports kernels in Triton

Exports = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see none of the package's environment variables but the ISA that a run forces."""
    for name in list(os.environ):
        if name.startswith("MMN_FAST_") and name != "MMN_FAST_CPU_ISA":
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def golden_files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A case's official files: a directory with model.pth, features.h5 and vocab.txt."""
    made: dict[str, Path] = {}

    def files(name: str) -> Path:
        if name not in made:
            case, root = cases.load(name), tmp_path_factory.mktemp(name)
            case.write_checkpoint(root / "model.pth")
            case.write_features(root / "features.h5")
            case.write_tokenizer(root / "vocab.txt")
            made[name] = root
        return made[name]

    return files


@pytest.fixture(scope="session")
def golden_model(golden_files: Callable[[str], Path]) -> Callable[[str], Path]:
    """A case's converted directory."""

    def model(name: str) -> Path:
        root = golden_files(name)
        output = root / "converted"
        if not output.exists():
            convert(root / "model.pth", cases.load(name).preset, root / "vocab.txt", output)
        return output

    return model


@pytest.fixture(scope="session")
def golden_engine(golden_model: Callable[[str], Path]) -> Callable[[str], mmn_fast.Engine]:
    """A case's engine with everything on "auto"."""
    engines: dict[str, mmn_fast.Engine] = {}

    def engine(name: str) -> mmn_fast.Engine:
        if name not in engines:
            engines[name] = mmn_fast.load(golden_model(name), backend="torch")
        return engines[name]

    return engine


@pytest.fixture(scope="session")
def exports(golden_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """An export of a golden case or of "demo" by precision, made once; score.onnx of the demo's chooses 5 moments.

    Tests that change one take a copy.
    """
    from mmn_fast.export.to_onnx import export

    made: dict[tuple[str, str], Path] = {}

    def get(name: str, precision: str = "fp32") -> Path:
        key = name, precision
        if key not in made:
            output = tmp_path_factory.mktemp("export") / f"{name}-{precision}"
            model, top_k = ("demo", 5) if name == "demo" else (golden_model(name), None)
            made[key] = export(model, output, precision=precision, top_k=top_k)
        return made[key]

    return get


@pytest.fixture(scope="session")
def demo_export(exports: Exports) -> Path:
    """The demo model's export in float32."""
    return exports("demo")
