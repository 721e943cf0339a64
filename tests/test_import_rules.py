"""Imports go one way, and `import mmn_fast` is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mmn_fast

PACKAGE = Path(mmn_fast.__file__).parent

# Each module may import modules of its own layer's index or below at module level; DESIGN: values -> kernels -> model,
# text, features, postprocess -> backends -> engine, index -> evaluation, training -> command line, serving, demo.
LAYERS: list[set[str]] = [
    {
        *("version", "errors", "checks", "documents", "types", "environment", "files", "checksums", "embeddings"),
        *("torch_build", "cores", "unfinished", "forks", "once"),
    },
    {"official_yaml"},
    {"presets"},
    {"geometry"},
    {"geometry_crops"},
    {
        *("kernels.native", "kernels.reference", "kernels.conv_transforms", "kernels.folding", "torch_threads"),
        *("kernels.cuda_runtime", "kernels.tensorrt_module", "kernels.cell_runs", "kernels.gpu_captures"),
        "kernels.onnxruntime_module",
    },
    {
        *("kernels.native_conv", "kernels.native_text", "kernels.tensorrt_plan"),
        *("kernels.gpu_operator", "kernels.gpu_graphs", "kernels.gpu_buckets", "kernels.gpu_device"),
        *("kernels.gpu_recording", "kernels.gpu_clock"),
        *("kernels.gather_schedule", "kernels.gather_choices", "kernels.triton_interpreter"),
        "kernels.gpu_conv_plan",
    },
    {
        *("kernels.tuning", "kernels.triton_stack"),
        *("kernels.gpu_ops", "kernels.gpu_moment_ops", "kernels.gpu_fourier_ops", "kernels.gpu_copies"),
    },
    {"kernels.gpu_video", "kernels.gpu_runner", "kernels.triton_conv", "kernels.triton_fourier"},
    {"kernels.gpu_programs", "kernels.triton_mixed", "kernels.triton_tuning"},
    {"kernels.gpu_convs"},
    {"hub", "features", "text_encoder", "tokenizer", "postprocess", "state"},
    {"fingerprint", "official"},
    {"directory"},
    {"checkpoint", "model"},
    {"torch_runner"},
    {"backends.base"},
    {
        *("backends.registry", "backends.torch_ref", "backends.native_cpu", "backends.native_gpu"),
        *("backends.ort", "backends.trt"),
    },
    {"origin"},
    {"engine", "index"},
    {"evaluation", "training"},
    {"viz", "serving", "demo", "benchmarking"},
    {"cli"},
    {"__main__", "__init__"},
]
NO_TORCH = ("torch", "triton", "transformers")
TORCH_FREE = {
    *(
        "__init__",
        "errors",
        "checks",
        "documents",
        "official_yaml",
        "types",
        "files",
        "embeddings",
        "unfinished",
        "forks",
        "once",
        "presets",
        "geometry",
        "geometry_crops",
        "environment",
        "torch_build",
        "cores",
        "hub",
        "features",
        "tokenizer",
        "checksums",
        "state",
        "fingerprint",
        "official",
        "directory",
        "checkpoint",
    ),
    *(
        "postprocess",
        "engine",
        "origin",
        "cli",
        "kernels.native",
        "kernels.cell_runs",
        "kernels.native_conv",
        "kernels.tuning",
        "kernels.native_text",
        "kernels.conv_transforms",
        "kernels.folding",
        "kernels.gpu_graphs",
        "kernels.gpu_captures",
        "kernels.gpu_buckets",
        "kernels.gather_schedule",
        "kernels.gather_choices",
        "kernels.gpu_conv_plan",
        "kernels.triton_interpreter",
        "backends.base",
        "backends.registry",
        "backends.native_cpu",
        "backends.torch_ref",
        "backends.ort",
        "backends.trt",
        "kernels.cuda_runtime",
        "kernels.tensorrt_module",
        "kernels.onnxruntime_module",
        "kernels.tensorrt_plan",
    ),
}


def _name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def _layer(module: str) -> int | None:
    for number, names in enumerate(LAYERS):
        if any(module == name or module.startswith(name + ".") for name in names):
            return number
    return None


def _module_level_imports(path: Path) -> list[str]:
    found, body = [], list(ast.parse(path.read_text()).body)
    while body:
        node = body.pop()
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [node.module or ""] + [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif isinstance(node, (ast.If, ast.Try)):
            body += node.body
    return found


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if _name(path) not in ("kernels", "backends"))


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_imports_go_one_way(path: Path) -> None:
    name = _name(path)
    own = _layer(name)
    assert own is not None, f"{name} has no place in LAYERS"
    for imported in _module_level_imports(path):
        if imported.startswith("mmn_fast."):
            target = imported.removeprefix("mmn_fast.")
            layer = _layer(target)
            assert layer is None or layer <= own, f"{name} imports {imported}, which is above it"
            if name.startswith("backends.") and name != "backends.registry":
                assert not target.startswith("backends.") or target.startswith("backends.base"), (
                    f"{name} imports another backend, {imported}"
                )


@pytest.mark.parametrize(
    "path", [p for p in MODULES if _name(p).split(".")[0] in TORCH_FREE or _name(p) in TORCH_FREE], ids=_name
)
def test_torch_free_modules_do_not_import_torch(path: Path) -> None:
    assert not {name.split(".")[0] for name in _module_level_imports(path)} & set(NO_TORCH)


def test_import_is_light() -> None:
    """Under 0.3 s, in processor time and the best of five, so that a busy machine does not decide."""
    code = (
        "import sys, time; start = time.process_time(); import mmn_fast; print(time.process_time() - start);"
        f"assert not set(sys.modules) & set({NO_TORCH!r}), set(sys.modules) & set({NO_TORCH!r})"
    )
    runs = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True) for _ in range(5)]
    assert min(float(run.stdout) for run in runs) < 0.3


def test_public_names_resolve() -> None:
    assert len(mmn_fast.__all__) <= 10
    for name in mmn_fast.__all__:
        assert getattr(mmn_fast, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        mmn_fast.absent  # noqa: B018


def test_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()
    assert (PACKAGE / "_C.pyi").is_file()


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py")), ids=lambda path: path.stem
)
def test_benchmarks_take_names_of_each_other_that_are_there(path: Path) -> None:
    """Without importing them: their peers are not installed everywhere."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("benchmarks."):
            other = ast.parse((path.parent / f"{node.module.removeprefix('benchmarks.')}.py").read_text())
            there = {name.id for name in ast.walk(other) if isinstance(name, ast.Name)}
            there |= {one.name for one in other.body if isinstance(one, (ast.FunctionDef, ast.ClassDef))}
            there |= {
                alias.asname or alias.name
                for one in other.body
                if isinstance(one, ast.ImportFrom)
                for alias in one.names
            }
            assert {alias.name for alias in node.names} <= there
