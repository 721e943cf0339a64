"""Features of many videos: directories of files and HDF5 files."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from mmn_fast.errors import InputError
from mmn_fast.features import FeatureStore, open_features
from tests.feature_files import FEATURES, OTHERS, random_features, write

IDS = ["s30-d52.avi", "v_abc-1", "-_x.y.z"]


def directory_of(path: Path, suffix: str) -> Path:
    path.mkdir()
    for n, vid in enumerate(IDS):
        write(path / f"{vid}{suffix}", {"features": random_features(4 + n, seed=n)})
    return path


def make_store(layout: str, path: Path) -> FeatureStore:
    if layout.startswith("."):
        return open_features(directory_of(path, layout))
    below = "/c3d_features" if layout == "groups" else ""
    videos = {f"{vid}{below}": random_features(4 + n, seed=n) for n, vid in enumerate(IDS)}
    return open_features(write(path.with_suffix(".hdf5"), videos))


each_layout = pytest.mark.parametrize("layout", ["datasets", "groups", ".npy", ".npz", ".pt", ".safetensors"])


@each_layout
def test_a_store_gives_every_video(tmp_path: Path, layout: str) -> None:
    with make_store(layout, tmp_path / "f") as store:
        assert len(store) == 3
        assert store.ids() == sorted(IDS)
        for n, vid in enumerate(IDS):
            assert vid in store
            np.testing.assert_array_equal(store[vid], random_features(4 + n, seed=n))


@each_layout
def test_a_missing_video_is_named_with_close_matches(tmp_path: Path, layout: str) -> None:
    with make_store(layout, tmp_path / "f") as store:
        assert "v_abc-2" not in store
        message = r"^video 'v_abc-2': not in .*/f\S*, did you mean 'v_abc-1'\?; 3 videos \('-_x"
        with pytest.raises(InputError, match=message):
            store["v_abc-2"]


@each_layout
@pytest.mark.parametrize("vid", ["../secret", "..", ".", "", "/", "sub/video", "v_abc-1/c3d_features", "\0"])
def test_an_id_cannot_leave_the_store(tmp_path: Path, layout: str, vid: str) -> None:
    for suffix in (".npy", ".npz", ".pt", ".safetensors"):
        write(tmp_path / f"secret{suffix}", {"x": FEATURES})
    with make_store(layout, tmp_path / "f") as store:
        if layout.startswith("."):
            (tmp_path / "f" / "sub").mkdir()
            write(tmp_path / "f" / "sub" / f"video{layout}", {"x": FEATURES})
        assert vid not in store
        with pytest.raises(InputError, match=r"^video .*: not in "):
            store[vid]


@each_layout
def test_an_id_that_is_no_text_is_not_there(tmp_path: Path, layout: str) -> None:
    with make_store(layout, tmp_path / "f") as store:
        assert 3 not in store
        assert None not in store
        assert ["a"] not in store
        with pytest.raises(InputError, match=r"^video 3: not in "):
            store[3]  # type: ignore[index]


@each_layout
def test_a_closed_store_says_so(tmp_path: Path, layout: str) -> None:
    store = make_store(layout, tmp_path / "f")
    store.close()
    store.close()
    with pytest.raises(InputError, match=r"^video 'v_abc-1': .*/f\S* has been closed$"):
        store["v_abc-1"]


def test_the_feature_key_picks_among_several_and_is_not_needed_for_one(tmp_path: Path) -> None:
    videos = {"one/other": FEATURES, "two/c3d": FEATURES, "two/i3d": OTHERS, "bare": OTHERS}
    with open_features(write(tmp_path / "a.h5", videos), "i3d") as store:
        np.testing.assert_array_equal(store["one"], FEATURES)
        np.testing.assert_array_equal(store["two"], OTHERS)
        np.testing.assert_array_equal(store["bare"], OTHERS)
    for key in (None, "vgg"):
        message = r"^video 'two': .*a\.h5::two: expected one array, .* \('c3d', 'i3d'\);"
        with open_features(tmp_path / "a.h5", key) as store, pytest.raises(InputError, match=message):
            store["two"]
    (tmp_path / "d").mkdir()
    write(tmp_path / "d" / "one.npz", {"other": FEATURES})
    write(tmp_path / "d" / "two.npz", {"c3d": FEATURES, "i3d": OTHERS})
    write(tmp_path / "d" / "bare.npy", {"x": OTHERS})
    torch.save(torch.from_numpy(OTHERS), tmp_path / "d" / "tensor.pt")
    with open_features(tmp_path / "d", "i3d") as store:
        np.testing.assert_array_equal(store["one"], FEATURES)
        for vid in ("two", "bare", "tensor"):
            np.testing.assert_array_equal(store[vid], OTHERS)
    with open_features(tmp_path / "d") as store, pytest.raises(InputError, match=r"^video 'two': .*got 2 keys"):
        store["two"]


def test_two_files_of_one_video_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.npy", {"x": FEATURES})
    write(tmp_path / "a.npz", {"x": OTHERS})
    with open_features(tmp_path) as store:
        assert store.ids() == ["a"]
        with pytest.raises(InputError, match=r"^video 'a': expected one file in .*, got a\.npy and a\.npz$"):
            store["a"]


def test_hidden_and_other_files_are_no_videos(tmp_path: Path) -> None:
    for name in ("._v.npy", ".npy", "readme.txt", "v.npy.partial"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=r"^path: .*: expected features of at least one video, got none$"):
        open_features(tmp_path)
    write(tmp_path / "v.npy", {"x": FEATURES})
    assert open_features(tmp_path).ids() == ["v"]


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors"])
def test_a_damaged_or_vanished_file_is_named_with_its_video(tmp_path: Path, suffix: str) -> None:
    store = open_features(directory_of(tmp_path / "f", suffix))
    file = tmp_path / "f" / f"v_abc-1{suffix}"
    file.write_bytes(file.read_bytes()[:-20])
    where = rf"^video 'v_abc-1': .*v_abc-1\{suffix}"
    with pytest.raises(InputError, match=rf"{where}: truncated, damaged or no \{suffix} file"):
        store["v_abc-1"]
    file.unlink()
    with pytest.raises(InputError, match=rf"{where}: no such file$"):
        store["v_abc-1"]


def test_a_damaged_video_in_an_hdf5_file_is_named_and_the_others_still_read(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["good"] = FEATURES
        file.create_dataset("bad", data=FEATURES, compression="gzip", fletcher32=True)
        offset = file["bad"].id.get_chunk_info(0).byte_offset
        file["broken"] = h5py.SoftLink("/nowhere")
    content = bytearray(path.read_bytes())
    content[offset : offset + 16] = b"\xff" * 16
    path.write_bytes(content)
    with open_features(path) as store:
        np.testing.assert_array_equal(store["good"], FEATURES)
        for vid in ("bad", "broken"):
            with pytest.raises(InputError, match=rf"^video '{vid}': .*a\.h5: truncated or damaged \(.+\)$"):
                store[vid]


def test_paths_without_a_store_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^path: .*none\.hdf5: no such file$"):
        open_features(tmp_path / "none.hdf5")
    path = write(tmp_path / "a.hdf5", {"v": random_features(200)})
    content = path.read_bytes()
    for name, damaged in (("cut.hdf5", content[:-1000]), ("other.npy", b"\x93NUMPY" * 9)):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(InputError, match=rf"^path: .*{name}: expected an HDF5 file or a directory, got .*\(.+\)$"):
            open_features(tmp_path / name)
    (tmp_path / "lfs.hdf5").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(InputError, match="Git-LFS pointer"):
        open_features(tmp_path / "lfs.hdf5")
    with h5py.File(tmp_path / "empty.hdf5", "w"):
        pass
    with pytest.raises(InputError, match=r"expected features of at least one video, got none$"):
        open_features(tmp_path / "empty.hdf5")
