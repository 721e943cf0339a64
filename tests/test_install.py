"""Requirements of an installation: PyTorch, unless the build is told to leave it out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.conftest import Exports

ROOT = Path(__file__).parents[1]
GROUND = """
import importlib.util, sys
import numpy as np, mmn_fast
assert importlib.util.find_spec("torch") is None
engine = mmn_fast.load(sys.argv[1])
assert engine.info()["backend"] == "onnx"
video = mmn_fast.Video(np.ones((20, 357), np.float32), 12.0)
(moments,), = engine.ground([mmn_fast.Query(video, ["the red circle moves"])], top_k=3)
assert 1 <= len(moments) <= 3, moments
"""


def _run(*command: object, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **settings}
    return subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True)


def _requirements(base: Path, **settings: str) -> list[str]:
    done = _run(sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", base, **settings)
    assert done.returncode == 0, done.stderr
    always, *_ = (base / "mmn_fast.egg-info" / "requires.txt").read_text().split("[")
    return always.split()


@pytest.mark.slow
def test_torch_is_required_unless_the_build_is_told_not_to(tmp_path: Path) -> None:
    usual = _requirements(tmp_path)
    assert "torch>=2.6" in usual
    assert _requirements(tmp_path, MMN_FAST_NO_TORCH="0") == usual
    assert _requirements(tmp_path, MMN_FAST_NO_TORCH="1") == [one for one in usual if one != "torch>=2.6"]


def test_another_wish_is_refused(tmp_path: Path) -> None:
    done = _run(sys.executable, "setup.py", "egg_info", "--egg-base", tmp_path, MMN_FAST_NO_TORCH="yes")
    assert done.returncode != 0
    assert "MMN_FAST_NO_TORCH: expected 0 or 1, got 'yes'" in done.stderr


@pytest.mark.long
def test_an_export_runs_where_only_the_onnx_extra_is_installed(exports: Exports, tmp_path: Path) -> None:
    """The steps of docs/install.md, in a new environment."""
    built = ("*.so", "*.egg-info", ".*", "build")
    source = shutil.copytree(ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(*built))
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv" / "bin"
    done = _run(
        *(programs / "python", "-m", "pip", "install", f"{source}[onnx]"), MMN_FAST_NO_TORCH="1", MMN_FAST_CUDA="OFF"
    )
    assert done.returncode == 0, done.stderr
    installed = _run(programs / "python", "-m", "pip", "list", "--format=freeze").stdout
    assert not [one for one in installed.splitlines() if one.startswith(("torch", "nvidia", "triton"))]
    done = _run(programs / "python", "-I", "-c", GROUND, exports("demo"))
    assert done.returncode == 0, done.stderr
    done = _run(programs / "mmn-fast", "verify", exports("demo"))
    assert done.returncode == 0, done.stderr
    done = _run(programs / "mmn-fast", "export", "demo", "-o", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.strip().endswith("export: torch not installed (pip install torch)")
