"""NOTES.md's table of ways that the first GPU measurement may delete: all its names exist in code and in lines."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from mmn_fast.kernels.gpu.conv.choice import CONVS
from mmn_fast.kernels.gpu.conv.costs import ALGORITHMS

ROOT = Path(__file__).parents[1]
NOTES = (ROOT / "benchmarks" / "NOTES.md").read_text(encoding="utf-8")
SECTION = NOTES.partition("## What the first measurement on a GPU deletes")[2].partition("\n## ")[0]
FOLDERS = ("mmn_fast/kernels", "mmn_fast/kernels/gpu", "mmn_fast/kernels/gpu/conv", "benchmarks", "tests/kernels", ".")


def _files() -> list[str]:
    return sorted(set(re.findall(r"`([\w/]+\.(?:py|h|cu))`", SECTION)))


def _found(name: str) -> list[Path]:
    return [ROOT / folder / name for folder in FOLDERS if (ROOT / folder / name).is_file()]


@pytest.mark.parametrize("name", _files())
def test_files_are_there(name: str) -> None:
    assert len(_found(name)) == 1


def test_functions_are_there() -> None:
    names = {
        node.name
        for folder in ("mmn_fast/kernels", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }
    constants = {"TILES", "SPECTRAL_TILES", "PREDICTED_RATES"}
    fields = {"stage", "peer", "clock", "p20_ms", "p50_ms", "p80_ms", "max_error", "of_direct_error", "predicted_ms"}
    words = set(re.findall(r"`(?:[\w]+\.)?(\w+)`", re.sub(r"`[\w/]+\.(?:py|h|cu)`", "", SECTION)))
    assert words - names - constants - fields - set(ALGORITHMS) - set(CONVS) <= {
        "autotune",
        "bench_gather",
        "bench_gpu",
    }
    lines = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py"))
    assert not {field for field in fields if field not in lines}


def test_the_ways_are_those_that_engines_and_benchmarks_know() -> None:
    assert {*ALGORITHMS, *CONVS} == {"auto", "crop", "gather", "fft12", "fft16", "fft24", "fft", "mixed"}
