"""Messages about files without features, with several arrays, or that are still being written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from mmn_fast.errors import InputError
from mmn_fast.features import load_features, open_features

WRITER = "import h5py, sys; f = h5py.File(sys.argv[1], 'a'); print('open', flush=True); sys.stdin.read()"


@pytest.mark.parametrize("name", ["x.mp4", "x.MKV", "x.webm"])
def test_a_video_file_is_named_as_such_with_what_to_do(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\0\0\0\x20ftypisom")
    message = r"this is a video, and a model takes features: `mmn-fast features VIDEO .* makes them, "
    with pytest.raises(InputError, match=rf"^source: .*{message}"):
        load_features(tmp_path / name)
    with pytest.raises(InputError, match=rf"^path: .*{message}"):
        open_features(tmp_path / name)
    with pytest.raises(InputError, match=rf"^path: .*got 1 video \('{name}'\), and a model takes features"):
        open_features(tmp_path)


def test_file_and_key_are_spelled_where_a_key_is_wanted(tmp_path: Path) -> None:
    array = np.zeros((3, 4), np.float32)
    np.savez(tmp_path / "two.npz", rgb=array, flow=array)
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["v1/rgb"] = file["v1/flow"] = array
        file["v2/rgb"] = file["v2/flow"] = array
    for source, wanted in (("two.npz", "::rgb"), ("two.h5", "::v1"), ("two.h5::v1", "/flow")):
        path = str(tmp_path / source)
        with pytest.raises(InputError) as caught:
            load_features(path)
        assert str(caught.value).endswith(f"; give FILE::KEY, as in {path}{wanted}")
    assert load_features(f"{tmp_path / 'two.h5'}::v1/flow").shape == (3, 4)
    with (
        open_features(tmp_path / "two.h5") as store,
        pytest.raises(InputError, match="feature_key names the one to take"),
    ):
        store["v1"]


def test_an_hdf5_file_that_somebody_writes_is_called_that(tmp_path: Path) -> None:
    path = tmp_path / "busy.h5"
    with h5py.File(path, "w") as file:
        file["v"] = np.zeros((3, 4), np.float32)
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdin=-1, stdout=-1, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        for read in (load_features, open_features):
            with pytest.raises(InputError, match=r"busy\.h5: the HDF5 file is locked: another process is"):
                read(path)
        writer.communicate("")
    assert load_features(f"{path}::v").shape == (3, 4)
