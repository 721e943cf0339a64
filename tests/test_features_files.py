"""Feature files of one video: every suffix, keys, and damaged, foreign or unsafe files."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmn_fast.errors import InputError
from mmn_fast.features import load_features
from tests.feature_files import FEATURES, OTHERS, SUFFIXES, random_features, write

KEYED = [suffix for suffix in SUFFIXES if suffix != ".npy"]


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".NPY", ".H5"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_only_array_of_a_file_needs_no_key(tmp_path: Path, suffix: str, dtype: type) -> None:
    path = write(tmp_path / f"video.v1{suffix}", {"features": FEATURES.astype(dtype)})
    for source in (path, str(path)):
        actual = load_features(source)
        assert actual.dtype == dtype
        np.testing.assert_array_equal(actual, FEATURES.astype(dtype))


@pytest.mark.parametrize("suffix", KEYED)
def test_a_key_picks_among_several_arrays(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", {"c3d": FEATURES, "i3d": OTHERS})
    np.testing.assert_array_equal(load_features(path, "c3d"), FEATURES)
    np.testing.assert_array_equal(load_features(path, key="i3d"), OTHERS)
    np.testing.assert_array_equal(load_features(f"{path}::i3d"), OTHERS)
    with pytest.raises(InputError, match=r"a\.\w+.*: expected one array, or a key .*, got 2 keys \('c3d', 'i3d'\);"):
        load_features(path)
    with pytest.raises(InputError, match=r"no key 'c3e', did you mean 'c3d'\?; 2 keys \('c3d', 'i3d'\)$"):
        load_features(path, "c3e")
    with pytest.raises(InputError, match=r"no key 'zzzz'; 2 keys"):
        load_features(f"{path}::zzzz")


@pytest.mark.parametrize("suffix", KEYED)
def test_a_wrong_key_is_refused_even_where_there_is_one_array(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", {"c3d": FEATURES})
    with pytest.raises(InputError, match=r"^source: .*no key 'i3d', did you mean 'c3d'\?; 1 key \('c3d'\)$"):
        load_features(path, "i3d")


def test_bfloat16_files_are_read_as_float32(tmp_path: Path) -> None:
    tensor = torch.from_numpy(FEATURES).bfloat16()
    torch.save(tensor, tmp_path / "a.pt")
    save_file({"x": tensor}, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        np.testing.assert_array_equal(load_features(tmp_path / name), tensor.float().numpy())


def test_a_bare_tensor_file_is_read(tmp_path: Path) -> None:
    torch.save(torch.from_numpy(FEATURES).requires_grad_(), tmp_path / "a.pt")
    np.testing.assert_array_equal(load_features(tmp_path / "a.pt"), FEATURES)


def test_an_hdf5_key_is_a_path_and_may_name_a_group_with_one_dataset(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", {"v_1/c3d_features": FEATURES, "v_2/c3d_features": OTHERS, "v_2/fps": np.ones(1)})
    for key in ("v_1", "v_1/c3d_features", "/v_1/c3d_features", "v_1/"):
        np.testing.assert_array_equal(load_features(path, key), FEATURES)
    np.testing.assert_array_equal(load_features(f"{path}::v_2/c3d_features"), OTHERS)
    with pytest.raises(InputError, match=r"::v_2: expected one array, .* got 2 keys \('c3d_features', 'fps'\);"):
        load_features(path, "v_2")
    with pytest.raises(InputError, match=r"::v_1: no key 'c3d_feature', did you mean 'c3d_features'\?"):
        load_features(path, "v_1/c3d_feature")
    with pytest.raises(InputError, match=r"::v_1/c3d_features is a dataset, got key 'v_1/c3d_features/x' below it$"):
        load_features(path, "v_1/c3d_features/x")


def test_the_only_dataset_of_an_hdf5_file_is_found_at_any_depth_and_through_links(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", {"a/b/c": FEATURES})
    np.testing.assert_array_equal(load_features(path), FEATURES)
    with h5py.File(path, "a") as file:
        file["v/c3d_features"] = h5py.SoftLink("/a/b/c")
    np.testing.assert_array_equal(load_features(path, "v"), FEATURES)


def test_many_keys_are_counted_and_the_first_listed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", {f"v_{n}": FEATURES for n in range(9)})
    with pytest.raises(InputError, match=r"got 9 keys \('v_0', 'v_1', 'v_2', 'v_3', \.\.\.\);"):
        load_features(path)


@pytest.mark.parametrize("name", ["a.npy", "bare.pt"])
def test_a_key_is_refused_where_the_file_has_none(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.npy":
        np.save(path, FEATURES)
    else:
        torch.save(torch.from_numpy(FEATURES), path)
    for call in (lambda: load_features(path, "c3d"), lambda: load_features(f"{path}::c3d")):
        with pytest.raises(InputError, match=r"^source: .*keys, got key 'c3d'$"):
            call()


def test_a_key_is_given_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", {"c3d": FEATURES})
    with pytest.raises(InputError, match=r"^key: '.*a\.h5::c3d' names a key already, got 'i3d' as well$"):
        load_features(f"{path}::c3d", "i3d")
    with pytest.raises(InputError, match=r"^source: expected FILE::KEY, got no key in '.*a\.h5::'$"):
        load_features(f"{path}::")


def test_a_file_whose_name_holds_colons_is_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a::b.npy", {"x": FEATURES})
    np.testing.assert_array_equal(load_features(path), FEATURES)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_file_is_named(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(InputError, match=rf"^source: .*/none\{suffix}: no such file$"):
        load_features(tmp_path / f"none{suffix}")


def test_unknown_suffixes_list_the_known(tmp_path: Path) -> None:
    for name, came in (("a.mat", r"\.mat"), ("features", "no suffix")):
        (tmp_path / name).write_bytes(b"x")
        known = r"\.h5, \.hdf5, \.npy, \.npz, \.pt, \.pth, \.safetensors"
        with pytest.raises(InputError, match=rf"{name}: expected a file ending in {known}, got {came}$"):
            load_features(tmp_path / name)


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a file, got a directory; name the file of one video$"):
        load_features(tmp_path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_git_lfs_pointer_is_recognised(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    with pytest.raises(InputError, match=r"a Git-LFS pointer, not the file itself; run `git lfs pull` there$"):
        load_features(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("part", [0.02, 0.3, 0.5, 0.9, 0.99])
def test_truncated_files_are_refused_in_one_sentence(tmp_path: Path, suffix: str, part: float) -> None:
    path = write(tmp_path / f"a{suffix}", {"x": random_features(100)})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    message = rf"^source: .*a\{suffix}: truncated, damaged or no \{suffix} file \(.+\)$"
    with pytest.raises(InputError, match=message) as caught:
        load_features(path)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_empty_files_and_foreign_bytes_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"is empty$"):
        load_features(path)
    for content in (b"\0" * 500, b"<html>404</html>" * 50, b"\x80\x04\x95" + b"\xff" * 500, b"PK\x03\x04" + b"a" * 500):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"truncated, damaged or no \{suffix} file"):
            load_features(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_flipped_bytes_never_raise_anything_else(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", {"x": FEATURES})
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, min(len(content), 600), 60):
        damaged = bytearray(content)
        damaged[position] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        with contextlib.suppress(InputError):
            load_features(path)


class _Payload:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt"])
def test_pickled_objects_are_refused_and_not_run(tmp_path: Path, suffix: str) -> None:
    path, proof = tmp_path / f"a{suffix}", tmp_path / "ran"
    objects = np.array([_Payload(proof)], dtype=object)
    if suffix == ".pt":
        torch.save({"x": _Payload(proof)}, path)
    else:
        (np.save if suffix == ".npy" else np.savez)(path, objects)
    with pytest.raises(InputError, match=r"holds pickled Python objects and is not loaded, since that runs code$"):
        load_features(path)
    assert not proof.exists()


def test_a_torch_file_with_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"x": [1.0, 2.0]}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"expected a tensor, got list$"):
        load_features(tmp_path / "a.pt")
