"""Pre-clips equal the official averaging, written out in torch, for every memory layout; bad input is refused."""

from __future__ import annotations

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

from mmn_fast.errors import InputError
from mmn_fast.features import check_duration, check_features, pre_clip_spans, pre_clips
from mmn_fast.features.pre_clips import _add_sums
from mmn_fast.presets import PRESETS, Preset
from tests.feature_files import random_features
from tests.tolerances import check_close

SIZES = [1, 2, 3, 31, 32, 33, 64, 90, 255, 256, 700, 5000]

# Every published preset with a narrow input; averaging does not depend on the width.
NARROW = {name: dataclasses.replace(preset, feature_streams=(24,)) for name, preset in PRESETS.items()}
NARROW["two streams, clamped"] = dataclasses.replace(NARROW["charades-sta"], feature_streams=(5, 19))
NARROW["two streams, not clamped"] = dataclasses.replace(NARROW["hc-stvg"], feature_streams=(19, 5))
TINY = NARROW["charades-sta"]
WIDER = dataclasses.replace(NARROW["tacos"], feature_streams=(64,))
each_preset = pytest.mark.parametrize("preset", NARROW.values(), ids=NARROW.keys())


def official_pre_clips(features: torch.Tensor, preset: Preset) -> torch.Tensor:
    """Average like MMN's `get_vid_feat` and `avgfeats`, or like MMN-STVG if bounds are not clamped; dtype as given."""
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
    """Compute the official pre-clips in float64."""
    return official_pre_clips(torch.as_tensor(features).double(), preset).numpy()


def assert_close(actual: np.ndarray, truth: np.ndarray) -> None:
    assert actual.shape == truth.shape
    check_close(actual, truth, "pre_clips")


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


@pytest.mark.parametrize("width", [1, 2, 5, 357])
@pytest.mark.parametrize("longest", [1, 2, 3, 7, 8, 20])
def test_few_calls_for_all_pre_clips_sum_as_one_call_for_each(width: int, longest: int) -> None:
    rng = np.random.default_rng(longest)
    rows = rng.standard_normal((60, width)).astype(np.float32)
    counts = rng.integers(1, longest + 1, 17)
    counts[3] = longest
    starts = rng.integers(0, 60 - counts + 1)
    sums = np.ones((17, width), np.float32)
    _add_sums(sums, rows, starts, starts + counts)
    wanted = [
        rows[start : start + count].sum(axis=0) + np.float32(1) for start, count in zip(starts, counts, strict=True)
    ]
    assert np.array_equal(sums, wanted)
    _add_sums(sums[:0], rows, starts[:0], starts[:0])


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


@pytest.mark.parametrize(
    "wide", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["128 rows a block", "one row a block"]
)
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
