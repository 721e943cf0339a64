"""The build's CUDA option: without a working nvcc, AUTO continues and says so, ON fails; other values are refused."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmn_fast.kernels import host
from mmn_fast.version import __version__

ROOT = Path(__file__).parents[1]
pybind11 = pytest.importorskip("pybind11", reason="a build requirement, absent where a wheel was installed")
needs_cmake = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("ninja")), reason="cmake and ninja are build requirements"
)


def configure(build: Path, cuda: str, nvcc: Path | str) -> subprocess.CompletedProcess[str]:
    command = [
        *("cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
        f"-DMMN_FAST_CUDA={cuda}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]
    env = os.environ | {"CUDACXX": str(nvcc)}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


@pytest.fixture
def broken_nvcc(tmp_path: Path) -> Path:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'unsupported GNU version!' >&2\nexit 1\n")
    nvcc.chmod(0o755)
    return nvcc


def words(result: subprocess.CompletedProcess[str]) -> str:
    return " ".join(result.stderr.split())  # CMake wraps its messages


@pytest.mark.slow
@needs_cmake
def test_cuda_auto_builds_without_a_working_nvcc_and_says_why(tmp_path, broken_nvcc):
    result = configure(tmp_path / "build", "AUTO", broken_nvcc)
    assert result.returncode == 0, result.stderr
    assert "mmn_fast: built without CUDA kernels: " in words(result)
    assert "unsupported GNU version!" in words(result)


@pytest.mark.slow
@needs_cmake
@pytest.mark.parametrize("nvcc", ["broken", "absent"])
def test_cuda_on_fails_without_a_working_nvcc(tmp_path, broken_nvcc, nvcc):
    result = configure(tmp_path / "build", "ON", broken_nvcc if nvcc == "broken" else tmp_path / "absent")
    assert result.returncode != 0
    assert "MMN_FAST_CUDA=ON, but " in words(result)


@needs_cmake
def test_an_unknown_cuda_option_is_refused(tmp_path):
    result = configure(tmp_path / "build", "maybe", "nvcc")
    assert result.returncode != 0
    assert "MMN_FAST_CUDA: expected AUTO, ON or OFF, got 'maybe'" in words(result)


def test_build_info_describes_the_extension_that_is_loaded():
    info = host.build_info()
    assert info["version"] == __version__
    assert info["build_type"] == "Release"
    assert info["cuda_archs"] == (["sm_80", "sm_90a", "compute_80"] if info["cuda"] else [])
    assert (info["cuda_version"] is not None) == info["cuda"]


def test_a_cuda_build_holds_machine_code_for_each_architecture():
    if not host.build_info()["cuda"]:
        pytest.skip("this build has no CUDA kernels")
    cuobjdump = shutil.which("cuobjdump")
    if cuobjdump is None:
        pytest.skip("cuobjdump is not on PATH")
    listing = subprocess.run(
        [cuobjdump, "--list-elf", "--list-ptx", host._C.__file__], capture_output=True, text=True, check=True
    ).stdout
    for arch in ("sm_80.cubin", "sm_90a.cubin", "sm_80.ptx"):
        assert arch in listing
