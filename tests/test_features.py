"""The feature pipeline: against the official averaging written out in torch, on bad input, and on every file layout."""

from __future__ import annotations

import contextlib
import dataclasses
import fractions
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmn_fast.errors import InputError
from mmn_fast.features import (
    FeatureStore,
    check_duration,
    check_features,
    load_features,
    open_features,
    pre_clip_spans,
    pre_clips,
)
from mmn_fast.presets import PRESETS, Preset
from tests.tolerances import check_close

SIZES = [1, 2, 3, 31, 32, 33, 64, 90, 255, 256, 700, 5000]

# Every published preset with a narrow input: rows are averaged alike whatever their width.
NARROW = {name: dataclasses.replace(preset, feature_streams=(24,)) for name, preset in PRESETS.items()}
NARROW["two streams, clamped"] = dataclasses.replace(NARROW["charades-sta"], feature_streams=(5, 19))
NARROW["two streams, not clamped"] = dataclasses.replace(NARROW["hc-stvg"], feature_streams=(19, 5))
TINY = NARROW["charades-sta"]
WIDER = dataclasses.replace(NARROW["tacos"], feature_streams=(64,))
each_preset = pytest.mark.parametrize("preset", NARROW.values(), ids=NARROW.keys())


def official_pre_clips(features: torch.Tensor, preset: Preset) -> torch.Tensor:
    """MMN's `get_vid_feat` and `avgfeats`, MMN-STVG's where bounds are not clamped; in the dtype of the features."""
    streams = features.split(preset.feature_streams, dim=1)
    rows = torch.cat([torch.nn.functional.normalize(stream, dim=1) for stream in streams], dim=1)
    n_src, T = len(rows), preset.num_pre_clips
    idxs = torch.round(torch.arange(0, T + 1, 1.0) / T * n_src).long()
    if preset.clamp_pre_clips:
        idxs = idxs.clamp(max=n_src - 1)
    averaged = []
    for start, end in zip(idxs[:-1].tolist(), idxs[1:].tolist(), strict=True):
        if start < end:
            averaged.append(rows[start:end].mean(dim=0))
        else:
            averaged.append(rows[min(start, n_src - 1)])
    return torch.stack(averaged)


def expected(features: Any, preset: Preset) -> np.ndarray:
    """The official pre-clips in float64."""
    return official_pre_clips(torch.as_tensor(features).double(), preset).numpy()


def assert_close(actual: np.ndarray, truth: np.ndarray) -> None:
    assert actual.shape == truth.shape
    check_close(actual, truth, "pre_clips")


def random_features(n_src: int, width: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n_src, width), np.float32)


# --- pre_clips against the official code


@each_preset
@pytest.mark.parametrize("n_src", SIZES)
def test_pre_clips_match_the_official_code(n_src: int, preset: Preset) -> None:
    features = random_features(n_src, preset.input_size, seed=n_src)
    actual = pre_clips(features, preset)
    assert actual.dtype == np.float32
    assert actual.flags.c_contiguous
    assert_close(actual, expected(features, preset))


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS.keys())
def test_pre_clips_match_the_official_code_at_full_width(preset: Preset) -> None:
    features = np.abs(random_features(333, preset.input_size))
    actual = pre_clips(features, preset)
    assert_close(actual, expected(features, preset))
    assert_close(actual, official_pre_clips(torch.from_numpy(features), preset).numpy())


@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("T", [1, 7, 32, 200, 256])
def test_pre_clip_spans_are_the_official_bounds(T: int, clamp: bool) -> None:
    for n_src in [*range(1, 700), 9_999, 65_537, 100_000]:
        idxs = torch.round(torch.arange(0, T + 1, 1.0) / T * n_src).long()
        idxs = (idxs.clamp(max=n_src - 1) if clamp else idxs).numpy()
        starts, ends = pre_clip_spans(n_src, T, clamp)
        empty = idxs[:-1] == idxs[1:]
        np.testing.assert_array_equal(starts, np.minimum(idxs[:-1], n_src - 1))
        np.testing.assert_array_equal(ends, np.where(empty, starts + 1, idxs[1:]))


def test_clamped_bounds_leave_the_last_row_out_and_unclamped_ones_do_not() -> None:
    features = random_features(64)
    changed = features.copy()
    changed[-1] = random_features(1, seed=1)
    for preset, ignored in ((NARROW["charades-sta"], True), (NARROW["hc-stvg"], False)):
        same = np.array_equal(pre_clips(features, preset), pre_clips(changed, preset))
        assert same == ignored, preset.name


def test_each_stream_is_normalised_on_its_own() -> None:
    preset = NARROW["two streams, clamped"]
    features = random_features(1)
    features[:, :5] *= 1000
    actual = pre_clips(features, preset)
    check_close(np.linalg.norm(actual[:, :5], axis=1), np.ones(len(actual)), "pre_clips")
    check_close(np.linalg.norm(actual[:, 5:], axis=1), np.ones(len(actual)), "pre_clips")


@each_preset
def test_rows_of_zeros_stay_zeros(preset: Preset) -> None:
    features = random_features(90)
    features[::3] = 0
    assert_close(pre_clips(features, preset), expected(features, preset))
    assert not pre_clips(np.zeros((5, 24), np.float32), preset).any()


@pytest.mark.parametrize("magnitude", [1e-30, 1e-20, 1e-13, 1e-12, 1e-6, 1e6, 1e15])
def test_magnitudes_within_float32_squares_match_the_official_code(magnitude: float) -> None:
    features = (random_features(90) * magnitude).astype(np.float32)
    assert_close(pre_clips(features, TINY), expected(features, TINY))


@pytest.mark.parametrize("magnitude", [1e19, 1e25, 1e37])
def test_rows_whose_squares_overflow_float32_still_get_unit_norm(magnitude: float) -> None:
    features = random_features(90)
    features[10:50] *= np.float32(magnitude)
    assert_close(pre_clips(features, NARROW["hc-stvg"]), expected(features, NARROW["hc-stvg"]))


def test_the_largest_float32_everywhere_gives_unit_norm() -> None:
    features = np.full((3, 24), np.finfo(np.float32).max, np.float32)
    rows = pre_clips(features, TINY)
    check_close(rows, np.full_like(rows, 24**-0.5), "pre_clips")


def test_rows_do_not_depend_on_the_rows_around_them() -> None:
    features = random_features(300)
    preset = dataclasses.replace(NARROW["activitynet-captions"], clamp_pre_clips=False)
    loud = features.copy()
    loud[200:] *= np.float32(1e30)
    starts, ends = pre_clip_spans(300, preset.num_pre_clips, clamp=False)
    before = ends <= 200
    assert before.sum() > 100
    assert starts[~before].max() > 200
    np.testing.assert_array_equal(pre_clips(loud, preset)[before], pre_clips(features, preset)[before])


@pytest.mark.parametrize("wide", [False, True], ids=["128 rows a block", "one row a block"])
def test_spans_longer_than_a_block_add_up(wide: bool) -> None:
    preset = dataclasses.replace(TINY, feature_streams=(2**18 + 1,) if wide else (3,))
    features = random_features(40 if wide else 128 * 32 * 5 + 77, preset.input_size)
    assert_close(pre_clips(features, preset), expected(features, preset))


# --- dtypes, layouts, tensors


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "longdouble", ">f4"])
def test_every_float_dtype_gives_what_its_float32_values_give(dtype: str) -> None:
    features = random_features(90).astype(dtype)
    np.testing.assert_array_equal(pre_clips(features, TINY), pre_clips(features.astype(np.float32), TINY))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn])
def test_every_float_tensor_gives_what_its_float32_values_give(dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(random_features(90)).to(dtype)
    actual = pre_clips(tensor.requires_grad_(dtype != torch.float8_e4m3fn), TINY)
    np.testing.assert_array_equal(actual, pre_clips(tensor.detach().float().numpy(), TINY))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_tensors_give_what_their_copies_give() -> None:
    features = random_features(90)
    np.testing.assert_array_equal(pre_clips(torch.from_numpy(features).cuda(), TINY), pre_clips(features, TINY))


@pytest.mark.parametrize(
    "relayout",
    [
        np.asfortranarray,
        lambda x: np.repeat(np.repeat(x, 2, axis=0), 3, axis=1)[::2, ::3],
        lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
        lambda x: torch.from_numpy(x).t().contiguous().t(),
        lambda x: x.tolist(),
        lambda x: list(x),
        lambda x: np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape),
    ],
    ids=["fortran", "strided", "negative strides", "transposed tensor", "list", "list of rows", "unaligned"],
)
@each_preset
def test_the_layout_in_memory_does_not_change_a_bit(relayout: Callable[[np.ndarray], Any], preset: Preset) -> None:
    features = random_features(301)
    np.testing.assert_array_equal(pre_clips(relayout(features), preset), pre_clips(features, preset))


def test_one_row_repeated_by_a_zero_stride_works() -> None:
    features = np.broadcast_to(random_features(1), (90, 24))
    assert_close(pre_clips(features, TINY), expected(features.copy(), TINY))


def test_the_input_is_left_as_it_was_and_the_result_shares_nothing_with_it() -> None:
    features = random_features(32)
    before = features.copy()
    features.flags.writeable = False
    result = pre_clips(features, TINY)
    np.testing.assert_array_equal(features, before)
    assert not np.shares_memory(result, features)


def test_check_features_returns_the_same_memory() -> None:
    features = random_features(32)
    assert np.shares_memory(check_features(features, 24), features)
    assert np.shares_memory(check_features(torch.from_numpy(features), 24), features)
    assert check_features(features.astype(np.float16), 24).dtype == np.float16
    assert check_features(torch.from_numpy(features).bfloat16(), 24).dtype == np.float32


def test_an_hdf5_dataset_can_be_given_as_it_is(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        dataset = file.create_dataset("v", data=random_features(90))
        np.testing.assert_array_equal(pre_clips(dataset, TINY), pre_clips(random_features(90), TINY))


@pytest.mark.parametrize("call", [lambda x: pre_clips(x, WIDER), lambda x: check_features(x, 64)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_extra_memory_is_a_small_fraction_of_a_long_video(call: Callable[[Any], Any], dtype: type) -> None:
    features = np.ones((100_000, 64), dtype)
    tracemalloc.start()
    try:
        call(features)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 0.05 * features.nbytes


def test_features_need_neither_torch_nor_h5py_to_be_imported() -> None:
    code = (
        "import sys, numpy as np; from mmn_fast.features import pre_clips; from mmn_fast.presets import PRESETS;"
        "pre_clips(np.ones((9, 500), np.float32), PRESETS['activitynet-captions']);"
        "assert not {'torch', 'h5py', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- bad features and durations


@pytest.mark.parametrize(
    ("features", "came"),
    [
        (np.ones(24, np.float32), r"float32 \[24\]"),
        (np.ones((1, 4, 24), np.float32), r"float32 \[1, 4, 24\]"),
        (np.ones((4, 25), np.float32), r"float32 \[4, 25\]"),
        (np.ones((24, 4), np.float32), r"float32 \[24, 4\]; transpose it"),
        (np.ones((0, 24), np.float16), r"float16 \[0, 24\]"),
        (np.float32(3), r"float32"),
        (np.ones((4, 24), np.int64), r"int64 \[4, 24\]"),
        (np.ones((4, 24), bool), r"bool \[4, 24\]"),
        (np.ones((4, 24), np.complex64), r"complex64 \[4, 24\]"),
        (np.full((4, 24), None), r"object \[4, 24\]"),
        (torch.ones(4, 24, dtype=torch.int32), r"int32 \[4, 24\]"),
        (torch.ones(4, 24, device="meta"), r"Tensor \(.*\)"),
        (torch.ones(4, 24).to_sparse(), r"Tensor \(.*\)"),
        ([[1] * 24], r"int64 \[1, 24\]"),
        ([[1.0] * 24, [1.0]], r"list \(.*\)"),
        ([], r"float64 \[0\]"),
        (None, "NoneType"),
        ("video.npy", "str"),
        ({"features": 1}, "dict"),
    ],
)
def test_unusable_features_are_refused_with_what_came(features: Any, came: str) -> None:
    message = rf"^clip: expected a float array \[n_src, 24\]( with n_src >= 1)?, got {came}$"
    with pytest.raises(InputError, match=message):
        check_features(features, 24, "clip")


def test_a_wrong_width_names_the_preset() -> None:
    message = r"^features: expected a float array \[n_src, 4096\] for preset 'tacos', got float32 \[9, 500\]$"
    with pytest.raises(InputError, match=message):
        pre_clips(np.ones((9, 500), np.float32), PRESETS["tacos"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 128, 500, 999])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_the_first_row_that_is_not_finite_is_named(bad: float, row: int, kind: Callable[[Any], Any]) -> None:
    features = random_features(1000)
    features[row, 7] = features[999, 3] = bad
    message = rf"^clip: expected finite float32 values, got {bad} in row {row}$"
    with pytest.raises(InputError, match=message):
        pre_clips(kind(features), TINY, "clip")
    with pytest.raises(InputError, match=message):
        check_features(kind(features), 24, "clip")


def test_a_float64_value_beyond_float32_is_named() -> None:
    features = random_features(9).astype(np.float64)
    features[4, 2] = 1e39
    with pytest.raises(InputError, match=r"^features: expected finite float32 values, got 1e\+39 in row 4$"):
        pre_clips(features, TINY)


@pytest.mark.parametrize(
    "duration", [30, 30.0, np.float32(30), np.float64(30), np.float16(30), np.int64(30), fractions.Fraction(30)]
)
def test_real_durations_become_floats(duration: Any) -> None:
    assert check_duration(duration) == 30.0
    assert type(check_duration(duration)) is float


@pytest.mark.parametrize(
    "duration",
    [
        *(0, 0.0, np.float16(0), -1.5, np.nan, np.inf, 1e39, 1e-50, pytest.param(10**5000, id="huge int")),
        *(True, np.True_, "30", None, [30.0], 1j, np.array([30.0]), np.ones((9, 9)), torch.tensor([30.0])),
    ],
)
def test_other_durations_are_refused(duration: Any) -> None:
    kind = type(duration).__name__
    message = rf"^len: expected a positive, finite number of seconds, got .* \({kind}\)$"
    with pytest.raises(InputError, match=message):
        check_duration(duration, "len")


# --- one file


def write(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Arrays by name as a file of the suffix; a file without names (.npy) takes the first."""
    first = next(iter(arrays.values()))
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    match path.suffix.lower():
        case ".npy":
            with path.open("wb") as file:
                np.save(file, first)
        case ".npz":
            np.savez_compressed(path, **arrays)
        case ".pt" | ".pth":
            torch.save(tensors, path)
        case ".safetensors":
            save_file(tensors, path)
        case _:
            with h5py.File(path, "w") as hdf5:
                for name, array in arrays.items():
                    hdf5[name] = array
    return path


SUFFIXES = [".h5", ".hdf5", ".npy", ".npz", ".pt", ".pth", ".safetensors"]
KEYED = [suffix for suffix in SUFFIXES if suffix != ".npy"]
FEATURES = random_features(5)
OTHERS = random_features(7, seed=1)


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
    """Unpickling it would make a file."""

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


# --- many videos

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


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
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
