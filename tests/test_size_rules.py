"""Folders, files and functions stay small enough to read in one go."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = (".py", ".pyi", ".json", ".cc", ".cu", ".h")
MOST_FILES = 12
MOST_AT_THE_ROOT = 27  # files of the package's values and seams
MOST_LINES = 450
MOST_LINES_OF_A_FUNCTION = 60  # without the docstring

FOLDERS = sorted(
    {
        path.parent.relative_to(ROOT)
        for top in ("mmn_fast", "export", "csrc")
        for path in (ROOT / top).rglob("*.*")
        if path.suffix in SOURCES and (ROOT / "mmn_fast/export") not in path.parents
    }
)


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_a_folder_holds_at_most_a_dozen_files(folder: Path) -> None:
    names = [path.name for path in (ROOT / folder).iterdir() if path.suffix in SOURCES]
    assert len(names) <= (MOST_AT_THE_ROOT if folder == Path("mmn_fast") else MOST_FILES), sorted(names)


TREE = sorted(
    path.relative_to(ROOT)
    for top in ("mmn_fast", "export", "benchmarks", "tests")
    for path in (ROOT / top).rglob("*.py")
    if (ROOT / "mmn_fast/export") not in path.parents
)


@pytest.mark.parametrize("folder", sorted({path.parent for path in TREE}), ids=str)
def test_files_and_their_functions_are_short(folder: Path) -> None:
    for path in (path for path in TREE if path.parent == folder):
        text = (ROOT / path).read_text(encoding="utf-8")
        assert text.count("\n") <= MOST_LINES, path
        for function in _functions(ast.parse(text)):
            assert _lines(function) <= MOST_LINES_OF_A_FUNCTION, f"{path}: {function.name}"


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if folder.parts[0] == "csrc"], ids=str)
def test_files_of_the_native_code_are_short(folder: Path) -> None:
    for path in (ROOT / folder).iterdir():
        assert path.is_dir() or path.read_text(encoding="utf-8").count("\n") <= MOST_LINES, path.name


def _functions(body: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions within a body; expressions, most of the tree, hold none."""
    for node in ast.iter_child_nodes(body):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node
        if not isinstance(node, ast.expr):
            yield from _functions(node)


def _lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a function without its docstring."""
    lines, first = function.end_lineno - function.lineno + 1, function.body[0]
    return lines if ast.get_docstring(function) is None else lines - (first.end_lineno - first.lineno + 1)
