"""Folders, files and functions stay small enough to be read at once."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = (".py", ".pyi", ".json", ".cc", ".cu", ".h")
MOST_FILES = 12
MOST_AT_THE_ROOT = 27  # the package's values and seams

FOLDERS = sorted(
    {
        path.parent.relative_to(ROOT)
        for top in ("mmn_fast", "export")
        for path in (ROOT / top).rglob("*.*")
        if path.suffix in SOURCES and (ROOT / "mmn_fast/export") not in path.parents
    }
)


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_a_folder_holds_at_most_a_dozen_files(folder: Path) -> None:
    names = [path.name for path in (ROOT / folder).iterdir() if path.suffix in SOURCES]
    assert len(names) <= (MOST_AT_THE_ROOT if folder == Path("mmn_fast") else MOST_FILES), sorted(names)
