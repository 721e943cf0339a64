"""Imports go one way, and `import mmn_fast` is fast."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mmn_fast

ROOT = Path(__file__).parents[1]
PACKAGE = Path(mmn_fast.__file__).parent

# The rungs from the bottom up; a module imports from its own rung and from lower ones. Names are relative to mmn_fast;
# a package's name stands for all of its modules. CONTRIBUTING.md describes each rung.
LADDER = {
    "values": (
        "version errors arrays precisions checks tubes process storage embeddings buckets preset_files recipes"
        " text_config presets"
    ),
    "geometry": "geometry geometry_crops",
    "kernels": "kernels",
    "model": "weights tokenizer media features types text_encoder model postprocess artifact checkpoint request",
    "runtime": "runtime",
    "backends": "backends",
    "engine": "origin windows engine_tubes engine kept_engines",
    "tools": "index batch evaluation training viz demo benchmarking export",
    "services": "serving",
    "commands": "cli __main__ __init__",
    "benchmarks": "benchmarks",
}
RUNGS = {name: number for number, names in enumerate(LADDER.values()) for name in names.split()}

MAY_NEED_TORCH = [
    "process.torch_threads",
    "text_encoder",
    "model",
    "kernels.reference",
    "kernels.gpu",
    "backends.native_gpu",
    "training",
    "runtime.device_copies",
    "runtime.graph_runner",
    "runtime.programs",
    "runtime.torch_runner",
    "runtime.video_branch",
    "benchmarks",
]
NO_TORCH = ("torch", "triton", "transformers")


def _modules() -> Iterator[tuple[str, Path]]:
    """Yield every module of the project, by its name in `LADDER`."""
    for folder, package in ((PACKAGE, ""), (ROOT / "export", "export."), (ROOT / "benchmarks", "benchmarks.")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if not (folder == PACKAGE and parts[0] == "export"):  # mmn_fast/export is an installed copy or a link
                name = package + ".".join(parts)
                yield name.removesuffix(".__init__") if "." in name else name, path


MODULES = dict(_modules())


def _own_name(imported: str) -> str:
    """The name in `LADDER` of one of the project's modules; "/types" stands for the `types` of the standard library."""
    if imported.startswith("mmn_fast."):
        return imported.removeprefix("mmn_fast.")
    return imported if imported.split(".")[0] in ("benchmarks", "tests") else f"/{imported}"


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _imports(path: Path, at_call_too: bool) -> frozenset[str]:
    """Names that a module imports when it is loaded, with `at_call_too` also in functions; not for TYPE_CHECKING."""
    found: set[str] = set()
    bodies = [_parsed(path).body]
    while bodies:
        for node in bodies.pop():
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}: import by the full name"
                found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            elif at_call_too or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                parts = ("body", "orelse", "finalbody", "handlers")
                bodies += [part for part in (getattr(node, name, None) for name in parts) if isinstance(part, list)]
    return frozenset(found)


def _rung(name: str) -> int | None:
    return next((RUNGS[own] for own in RUNGS if name == own or name.startswith(own + ".")), None)


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down_the_ladder(name: str) -> None:
    rung = _rung(name)
    assert rung is not None, f"{name} stands on no rung of LADDER"
    for imported in map(_own_name, _imports(MODULES[name], at_call_too=True)):
        assert imported.split(".")[0] != "tests", f"{name} imports {imported}"
        assert imported not in MODULES or (_rung(imported) or 0) <= rung, f"{name} imports {imported} from above"
        if name.startswith("backends.") and name != "backends.registry" and imported in MODULES:
            assert not imported.startswith("backends.") or imported == "backends.base", f"{name} imports {imported}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {
        name: {own for own in map(_own_name, _imports(path, at_call_too=True)) if own in MODULES and own != name}
        for name, path in MODULES.items()
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("name", [n for n in MODULES if not any(f"{n}.".startswith(f"{o}.") for o in MAY_NEED_TORCH)])
def test_other_modules_do_not_import_torch(name: str) -> None:
    assert not {imported.split(".")[0] for imported in _imports(MODULES[name], at_call_too=False)} & set(NO_TORCH)


def test_import_is_light() -> None:
    """Under 0.3 s of processor time, the best of five, so that a busy machine does not decide."""
    code = (
        "import sys, time; start = time.process_time(); import mmn_fast; print(time.process_time() - start);"
        f"assert not set(sys.modules) & set({NO_TORCH!r}), set(sys.modules) & set({NO_TORCH!r})"
    )
    runs = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True) for _ in range(5)]
    assert min(float(run.stdout) for run in runs) < 0.3


def test_public_names_resolve() -> None:
    assert len(mmn_fast.__all__) <= 14  # moments and tubes take three values each, an index two
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
    """The benchmarks are parsed, not imported, because their peers are not installed everywhere."""
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("benchmarks."):
            place = path.parent / node.module.removeprefix("benchmarks.")
            if place.is_dir():
                assert all((place / f"{alias.name}.py").is_file() for alias in node.names)
                continue
            other = _parsed(place.with_suffix(".py"))
            there = {name.id for name in ast.walk(other) if isinstance(name, ast.Name)}
            kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
            there |= {one.name for one in other.body if isinstance(one, kinds)}
            there |= {
                alias.asname or alias.name
                for one in other.body
                if isinstance(one, ast.ImportFrom)
                for alias in one.names
            }
            assert {alias.name for alias in node.names} <= there
