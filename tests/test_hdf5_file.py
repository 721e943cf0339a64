"""A full disk is an error of `new_hdf5`, and no crash, whatever HDF5 was writing."""

from __future__ import annotations

import errno
import resource
from pathlib import Path

import h5py
import numpy as np
import pytest

from mmn_fast.features.tubes import TubesWriter
from mmn_fast.storage.hdf5_file import new_hdf5
from mmn_fast.tubes import Tube
from tests.processes import in_fork

SMALL, LARGE = np.arange(3 * 8, dtype=np.float32).reshape(3, 8), np.ones((100, 357), np.float32)


def write(path: Path, rows: np.ndarray, most_bytes: int | None = None) -> int | None:
    """Write 40 datasets; return the error's number."""
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    try:
        with path.open("x+b") as file, new_hdf5(file) as (new, check):
            new.attrs["text"] = "x" * 500
            for number in range(40):
                new.create_dataset(f"video {number}", data=rows).attrs["duration_s"] = 1.5
                check()
    except OSError as error:
        return error.errno
    return None


@pytest.mark.parametrize("rows", [SMALL, LARGE], ids=["small", "large"])
def test_what_is_written_is_read(rows: np.ndarray, tmp_path: Path) -> None:
    assert write(tmp_path / "x.h5", rows) is None
    with h5py.File(tmp_path / "x.h5") as file:
        assert len(file) == 40
        assert np.array_equal(file["video 39"][:], rows)
        assert file.attrs["text"] == "x" * 500
        assert file["video 7"].attrs["duration_s"] == 1.5


@pytest.mark.parametrize("rows", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("most_bytes", [0, 1000, 5000])
def test_a_full_disk_is_an_error_and_no_crash(rows: np.ndarray, most_bytes: int, tmp_path: Path) -> None:
    assert in_fork(lambda: write(tmp_path / "x.h5", rows, most_bytes)) == errno.EFBIG


def write_tubes(path: Path, most_bytes: int) -> int | None:
    """Write tubes of 20 videos; return the error's number."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    tube = Tube(np.arange(4), np.tile([[0.0, 0.0, 9.0, 9.0]], (4, 1)), [SMALL])
    try:
        with TubesWriter(path) as writer:
            for number in range(20):
                writer.write(f"video {number}", [tube])
    except OSError as error:
        return error.errno
    return None


@pytest.mark.parametrize("most_bytes", [0, 1000, 5000])
def test_a_full_disk_is_an_error_of_tubes_too(most_bytes: int, tmp_path: Path) -> None:
    assert in_fork(lambda: write_tubes(tmp_path / "x.h5", most_bytes)) == errno.EFBIG
