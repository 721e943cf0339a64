"""Directories, and parents that are made for them, appear whole or not at all."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmn_fast.checkpoint import load_model, save_model
from mmn_fast.demo.shapes import write_dataset
from mmn_fast.errors import InputError, WriteError
from mmn_fast.export.to_onnx import export
from mmn_fast.export.tritonserver_repository import write_repository
from mmn_fast.storage.files import new_directory


def make(output: Path, fill: Callable[[Path], object], stop: BaseException | None = None) -> None:
    with new_directory(output, "there") as partial:
        fill(partial)
        if stop is not None:
            raise stop


def test_a_directory_appears_with_its_parents_when_it_is_full(tmp_path: Path) -> None:
    output = tmp_path / "a" / "b" / "c"

    def fill(partial: Path) -> None:
        (partial / "file").write_text("whole")
        assert not output.exists()

    make(output, fill)
    assert [path.name for path in output.parent.iterdir()] == ["c"]
    assert (output / "file").read_text() == "whole"


@pytest.mark.parametrize("stop", [ValueError(), KeyboardInterrupt(), SystemExit(143)])
def test_a_failure_leaves_only_what_others_made(stop: BaseException, tmp_path: Path) -> None:
    before, other = tmp_path / "before", tmp_path / "a" / "other"
    before.mkdir()
    for output in (before / "c", tmp_path / "a" / "b" / "c"):
        with pytest.raises(type(stop)):
            make(output, lambda partial: (partial / "file").write_text("half"), stop)
    assert list(tmp_path.rglob("*")) == [before]
    with pytest.raises(type(stop)):
        make(tmp_path / "a" / "b" / "c", lambda _: other.touch(), stop)
    assert sorted(tmp_path.rglob("*")) == [other.parent, other, before]


def test_a_refusal_of_the_system_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="^there: .*/file/a/c: Not a directory$"):
        make(tmp_path / "file" / "a" / "c", lambda _: pytest.fail("there is no directory to fill"))
    output = tmp_path / "a" / "c"
    with pytest.raises(InputError, match="^there: .*/a/c: Directory not empty$"):
        make(output, lambda _: (output / "of_another").mkdir(parents=True))
    assert list((tmp_path / "a").iterdir()) == [output]


def test_a_full_disk_that_hdf5_tells_of_is_one_sentence(tmp_path: Path) -> None:
    """h5py's error has the system's number, and three lines of HDF5's own as its text."""
    refused = OSError(
        errno.EFBIG, "Can't synchronously write data (file write failed: time = Mon Nov 30\n, errno = 27)"
    )
    with pytest.raises(WriteError, match="^there: .*/c: File too large$"):
        make(tmp_path / "c", lambda _: None, refused)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("stopped", "write"),
    [
        ("mmn_fast.export.to_onnx.record_reference", lambda output, _: export("demo", output)),
        ("mmn_fast.export.tritonserver_repository._write_ground", lambda output, made: write_repository(made, output)),
        ("mmn_fast.tokenizer.Tokenizer.save", lambda output, _: save_model(load_model("demo"), output)),
        ("mmn_fast.demo.shapes._fill", lambda output, _: write_dataset(output, 0, {"test": 1}, workers=1)),
    ],
)
def test_every_writer_of_directories_leaves_nothing(
    stopped: str,
    write: Callable[[Path, Path], object],
    demo_export: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stopped, stop)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a" / "b" / "c", demo_export)
    assert list(tmp_path.iterdir()) == []
