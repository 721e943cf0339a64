"""temporal_nms in C++ equals the float32 reference, index by index, on every instruction set of the host."""

import numpy as np
import pytest
import torch

from mmn_fast import _C
from mmn_fast.kernels import reference
from mmn_fast.kernels.cpu import ops

ISAS = _C.available_cpu_isas()


def reference_nms(scores: np.ndarray, moments: np.ndarray, iou_threshold: float, top_k: int) -> np.ndarray:
    return reference.temporal_nms(torch.from_numpy(scores), torch.from_numpy(moments), iou_threshold, top_k).numpy()


def moments_of(P: int, rng: np.random.Generator) -> np.ndarray:
    """Draw moments on a grid, so that equal IoUs, equal moments and empty moments occur."""
    start = rng.integers(0, 24, P)
    return np.stack([start, start + rng.integers(0, 12, P)], 1).astype(np.float32) * np.float32(1.37)


def run(scores: np.ndarray, moments: np.ndarray, iou_threshold: float, top_k: int, isa: str, threads: int = 1):
    out = np.full((len(scores), top_k), -77, np.int32)
    _C.temporal_nms(
        scores=scores, moments=moments, iou_threshold=iou_threshold, top_k=top_k, out=out, threads=threads, isa=isa
    )
    return out


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("top_k", [1, 5, 200])
@pytest.mark.parametrize("P", [0, 1, 7, 16, 17, 136, 2548])
@pytest.mark.parametrize("S", [0, 1, 7])
def test_temporal_nms_equals_the_reference(rng, isa, top_k, P, S):
    moments = moments_of(P, rng)
    scores = rng.standard_normal((S, P), np.float32)
    scores[rng.random((S, P)) < 0.3] = 0
    for iou_threshold in (0.0, 0.3, 0.5, 1.0):
        expected = reference_nms(scores, moments, iou_threshold, top_k)
        np.testing.assert_array_equal(run(scores, moments, iou_threshold, top_k, isa), expected)


@pytest.mark.parametrize("isa", ISAS)
def test_temporal_nms_breaks_ties_by_the_lower_index(rng, isa):
    moments = moments_of(136, rng)
    scores = rng.integers(-2, 3, (20, 136)).astype(np.float32)  # five values over 136 cells; 0 is no candidate
    expected = reference_nms(scores, moments, 0.4, 136)
    np.testing.assert_array_equal(run(scores, moments, 0.4, 136, isa), expected)
    same = np.ones((1, 40), np.float32)
    apart = np.arange(80, dtype=np.float32).reshape(40, 2)
    assert run(same, apart, 0.5, 40, isa)[0].tolist() == list(range(40))


@pytest.mark.parametrize("isa", ISAS)
def test_temporal_nms_suppresses_strictly_above_the_float32_threshold(isa):
    moments = np.array([[0, 10], [0, 5], [0, 7]], np.float32)  # IoU 0.5 exactly, and float32(0.7) exactly
    scores = np.array([[3, 2, 1]], np.float32)
    assert run(scores, moments[[0, 1, 1]], 0.5, 2, isa).tolist() == [[0, 1]]
    assert run(scores, moments, 0.7, 3, isa).tolist() == [[0, 1, -1]]  # [0, 5] drops [0, 7]: IoU 5/7, not 7/10
    assert run(scores[:, :2], moments[[0, 2]], 0.7, 2, isa).tolist() == [[0, 1]]
    below = float(np.nextafter(np.float32(0.7), np.float32(0)))
    assert run(scores[:, :2], moments[[0, 2]], below, 2, isa).tolist() == [[0, -1]]


@pytest.mark.parametrize("isa", ISAS)
def test_temporal_nms_takes_zero_as_no_candidate_and_infinities_as_scores(isa):
    apart = np.arange(12, dtype=np.float32).reshape(6, 2)
    scores = np.array([[0.0, -np.inf, -0.0, np.inf, -1.0, np.finfo(np.float32).tiny / 2]], np.float32)
    assert run(scores, apart, 0.5, 6, isa).tolist() == [[3, 5, 4, 1, -1, -1]]
    assert run(np.zeros((3, 6), np.float32), apart, 0.5, 2, isa).tolist() == [[-1, -1]] * 3


@pytest.mark.parametrize("isa", ISAS)
def test_temporal_nms_keeps_equal_empty_moments_since_their_iou_is_nan(isa):
    empty = np.full((3, 2), 4.0, np.float32)
    assert run(np.ones((1, 3), np.float32), empty, 0.0, 4, isa).tolist() == [[0, 1, 2, -1]]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [2, 5])
def test_temporal_nms_is_bit_equal_over_isas_and_threads(rng, isa, threads):
    moments = np.sort(rng.random((1104, 2), np.float32) * 90, axis=1)
    scores = rng.standard_normal((29, 1104), np.float32)  # 1.6 M cell visits, enough work for five threads
    expected = run(scores, moments, 0.5, 50, "generic")
    np.testing.assert_array_equal(run(scores, moments, 0.5, 50, isa, threads), expected)
    alone = np.concatenate([run(scores[s : s + 1], moments, 0.5, 50, isa) for s in range(29)])
    np.testing.assert_array_equal(alone, expected)


def test_temporal_nms_allocates_out(rng):
    moments, scores = moments_of(50, rng), rng.standard_normal((4, 50), np.float32)
    out = ops.temporal_nms(scores, moments, 0.5, 5)
    np.testing.assert_array_equal(out, reference_nms(scores, moments, 0.5, 5))
    given = np.full((4, 5), 9, np.int32)
    assert ops.temporal_nms(scores, moments, 0.5, np.int64(5), out=given, threads=2) is given
    np.testing.assert_array_equal(given, out)


def good() -> dict:
    return {
        "scores": np.ones((3, 5), np.float32),
        "moments": np.zeros((5, 2), np.float32),
        "iou_threshold": 0.5,
        "top_k": 2,
        "out": np.zeros((3, 2), np.int32),
    }


def with_value(shape: tuple[int, ...], at: tuple[int, ...], value: float) -> np.ndarray:
    array = np.ones(shape, np.float32)
    array[at] = value
    return array


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"scores": 3}, TypeError, r"^scores: expected a NumPy array, got int$"),
        ({"scores": np.ones((3, 5))}, TypeError, r"^scores: expected float32 \[S, P\], got float64 \[3, 5\]$"),
        ({"scores": np.ones(5, np.float32)}, ValueError, r"^scores: expected float32 \[S, P\], got float32 \[5\]$"),
        (
            {"scores": np.ones((5, 3), np.float32).T},
            ValueError,
            r"^scores: expected C-contiguous float32 \[S, P\], got strided float32 \[3, 5\]$",
        ),
        (
            {"scores": with_value((3, 5), (2, 4), np.nan)},
            ValueError,
            r"^scores: expected no NaN, got NaN at row 2, column 4$",
        ),
        (
            {"moments": np.zeros((4, 2), np.float32)},
            ValueError,
            r"^moments: expected float32 \[5, 2\], got float32 \[4, 2\]$",
        ),
        (
            {"moments": with_value((5, 2), (3, 1), np.inf)},
            ValueError,
            r"^moments: expected finite seconds, got \(1, inf\) at row 3$",
        ),
        (
            {"moments": np.zeros((5, 2), np.int64)},
            TypeError,
            r"^moments: expected float32 \[P, 2\], got int64 \[5, 2\]$",
        ),
        ({"iou_threshold": 50}, ValueError, r"^iou_threshold: expected 0 to 1, got 50$"),
        ({"iou_threshold": float("nan")}, ValueError, r"^iou_threshold: expected 0 to 1, got nan$"),
        ({"top_k": 0}, ValueError, r"^top_k: expected at least 1, got 0$"),
        ({"top_k": 2.0}, TypeError, r"^top_k: expected a whole number, got 2\.0$"),
        ({"top_k": 0, "out": None}, ValueError, r"^top_k: expected at least 1, got 0$"),
        ({"out": np.zeros((3, 2), np.int64)}, TypeError, r"^out: expected int32 \[S, top_k\], got int64 \[3, 2\]$"),
        ({"out": np.zeros((3, 4), np.int32)}, ValueError, r"^out: expected int32 \[3, 2\], got int32 \[3, 4\]$"),
        ({"threads": -1}, ValueError, r"^threads: expected a whole number from 1 to 4096, got -1$"),
    ],
)
def test_temporal_nms_refuses_bad_arguments_with_a_sentence(wrong, error, message):
    with pytest.raises(error, match=message):
        ops.temporal_nms(**{**good(), **wrong})
