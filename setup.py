"""Metadata of the package, and a `build_ext` that hands the extension to CMake. Compiler flags live in CMakeLists.txt.

Build options, all from the environment:
    MMN_FAST_CUDA                AUTO (default), ON or OFF: the CUDA kernels
    MMN_FAST_NO_TORCH            0 (default) or 1: do not require PyTorch; exports and TensorRT plans run without it
    CMAKE_BUILD_PARALLEL_LEVEL   compiler jobs at a time (default: one per core)
    CMAKE_ARGS                   further arguments, such as -DMMN_FAST_WERROR=ON
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    text = (ROOT / "mmn_fast" / "version.py").read_text()
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError('mmn_fast/version.py: expected a line __version__ = "...", found none')
    return match[1]


def torch_requirement() -> list[str]:
    without = os.environ.get("MMN_FAST_NO_TORCH", "0")
    if without not in ("0", "1"):
        raise RuntimeError(f"MMN_FAST_NO_TORCH: expected 0 or 1, got {without!r}")
    return [] if without == "1" else ["torch>=2.6"]


class CMakeBuild(build_ext):
    """Configures and builds target _C into the place where setuptools expects the extension."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11  # a build requirement, so absent when setup.py is only asked for metadata

        cmake, ninja = shutil.which("cmake"), shutil.which("ninja")
        if cmake is None or ninja is None:
            raise RuntimeError("building mmn_fast needs cmake and ninja on PATH (pip install cmake ninja)")
        build = Path(self.build_temp).resolve()
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        configure = [
            *(cmake, "-S", ROOT, "-B", build, "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={ninja}",  # each time: a path in CMake's cache may be pip's last build environment
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DMMN_FAST_CUDA={os.environ.get('MMN_FAST_CUDA', 'AUTO')}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", build, "--target", "_C"], check=True)


setup(
    name="mmn_fast",
    version=read_version(),
    description="Fast inference for the Mutual Matching Network: temporal grounding of sentences in videos",
    license="MIT",
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["mmn_fast", "mmn_fast.*"], exclude=["mmn_fast.export", "mmn_fast.export.*"]),
        *("mmn_fast.export", "mmn_fast.export.graphs"),
    ],
    package_dir={"mmn_fast.export": "export"},
    package_data={
        "mmn_fast": ["py.typed", "_C.pyi"],
        "mmn_fast.kernels.gpu.conv": ["*.json"],
        "mmn_fast.viz": ["static/*"],
        "mmn_fast.serving": ["static/*"],
        "mmn_fast.demo": ["model/*", "tubes_model/*"],
    },
    ext_modules=[Extension("mmn_fast._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    zip_safe=False,
    entry_points={"console_scripts": ["mmn-fast = mmn_fast.cli:main"]},
    install_requires=[
        *torch_requirement(),
        "numpy>=1.26",
        "tokenizers>=0.19",
        "safetensors>=0.4.3",
        "h5py>=3.10",
        "huggingface_hub>=0.23",
        "pyyaml>=6",
        "typer>=0.12",
        "rich>=13",
    ],
    extras_require={
        "bench": ["faiss-cpu", "onnx", "onnxruntime", "onnxscript", "openvino"],
        "onnx": ["onnx>=1.19", "onnxruntime"],  # 1.19 is the first that stores NumPy arrays of bf16
        # Replaces "onnx": both distributions install the same package, and the later one overwrites the earlier.
        "onnx-gpu": ["onnx>=1.19", "onnxruntime-gpu"],
        "tensorrt": ["tensorrt", "cuda-bindings"],
        "train": ["transformers>=4.44", "tensorboard"],
        "serve": [
            *("fastapi", "uvicorn", "httptools", "uvloop", "orjson", "prometheus-client", "python-multipart"),
            *("av>=18", "pillow"),  # uploaded videos, thumbnails
        ],
        "ray": ["ray[data,serve]>=2.60"],
        "hf": ["transformers>=5", "pillow"],
        # PyAV's wheels bring FFmpeg; Pillow resizes frames for the networks of `onnx:`.
        "video": ["av>=18", "pillow"],
        "viz": ["cairosvg"],
        "test": [
            *(
                "pytest",
                "pytest-xdist",
                "ruff",
                "mypy",
                "transformers>=4.44",
                "types-PyYAML",
                "onnx",
                "onnxruntime",
                "av>=18",
                "pillow",
                "fastapi",
                "uvicorn",
                "httptools",
                "uvloop",
                "orjson",
                "prometheus-client",
                "python-multipart",
                "httpx",
            ),
            "triton==3.6.*",  # Triton's interpreter and ahead-of-time compiler need no GPU
            "tritonclient[grpc]",  # holds the official protobuf of Triton's config files
        ],
    },
)
