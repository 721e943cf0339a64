"""The doubles of TensorRT and CUDA have only documented names, and the code uses only names of the doubles."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from mmn_fast.export import to_tensorrt
from mmn_fast.runtime import cuda_api, tensorrt_module, tensorrt_plan
from tests.cuda_runtime_double import CudaRuntime
from tests.tensorrt_double import make_tensorrt
from tests.tensorrt_plans import VERSION

YOUNG = "SAME_COMPUTE_CAPABILITY"  # exists from TensorRT 10.9 on; to_tensorrt refuses it in older versions
RUNTIME_CLASSES = {  # tensorrt_lean, which cannot build, has these too
    *("DataType", "ExecutionContextAllocationStrategy", "ICudaEngine", "IExecutionContext", "ILogger"),
    *("IOutputAllocator", "Runtime", "TensorIOMode"),
}
RECORD = Path(__file__).parent / "golden" / "tensorrt_api.json"


def used_names() -> set[str]:
    """Collect the doubles' names of TensorRT and of the CUDA runtime's bindings, as Class.member."""
    trt = make_tensorrt(CudaRuntime(), VERSION)
    names = set()
    for class_name, found in vars(trt).items():
        if isinstance(found, type):
            members = found.__members__ if hasattr(found, "__members__") else vars(found)
            names.add(f"tensorrt.{class_name}")
            names |= {f"tensorrt.{class_name}.{name}" for name in members if not name.startswith("_")}
    names |= {f"cuda.{name}" for name in vars(CudaRuntime) if name.startswith("cuda")}
    return names


def test_every_name_the_doubles_have_is_in_both_major_versions() -> None:
    record = json.loads(RECORD.read_text())
    for name in used_names():
        expected = record["versions"][name.split(".")[0]]
        if name.endswith(YOUNG):
            expected = [version for version in expected if version != "10.1.0"]
        assert record["names"].get(name) == expected, f"{name}: see the record's versions"


def test_the_code_uses_no_name_that_the_doubles_lack() -> None:
    names = used_names()
    classes = {name.split(".")[1] for name in names if name.startswith("tensorrt.")}
    for module in (tensorrt_plan, to_tensorrt, tensorrt_module, cuda_api):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "trt":
                assert node.attr in classes | {"__version__", "__name__"}, f"{module.__name__}: trt.{node.attr}"
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in {f"trt.{name}" for name in classes}:
                known = f"tensorrt.{ast.unparse(node.value).removeprefix('trt.')}.{node.attr}" in names
                assert known or node.attr == "__init__", f"{module.__name__}: {ast.unparse(node)}"
            if isinstance(node, ast.Constant) and str(node.value).startswith("cuda") and str(node.value)[4:5].isupper():
                assert f"cuda.{node.value}" in names, f"{module.__name__}: {node.value}"


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_lean", "cuda.bindings.runtime"])
def test_the_installed_library_has_every_name(module: str) -> None:
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        pytest.skip(f"{module} is not installed ({error})")
    prefix = "cuda" if module.startswith("cuda") else "tensorrt"
    for name in used_names():
        library, *path = name.split(".")
        if library != prefix or (module == "tensorrt_lean" and path[0] not in RUNTIME_CLASSES):
            continue
        if path[-1] == YOUNG and tuple(map(int, found.__version__.split(".")[:2])) < (10, 9):
            continue
        value: Any = found
        for part in path:
            assert hasattr(value, part), f"{module} has no {'.'.join(path)}"
            value = getattr(value, part)
