"""top_moments in C++ equals the reference's scores, fusion and choice, on every instruction set of the host."""

from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pytest
import torch

from mmn_fast import _C
from mmn_fast.geometry import cells_to_moments, plan_for
from mmn_fast.kernels import reference
from mmn_fast.kernels.cpu import ops
from mmn_fast.postprocess import fuse_scores, select_moments
from mmn_fast.presets import PRESETS, Preset
from tests.tolerances import TOLERANCES, check_close

ISAS = _C.available_cpu_isas()
PRESET = PRESETS["charades-sta"]
CLOSE = TOLERANCES["score_ties", "fp32"].atol


def preset_of(fusion: str, power: float) -> Preset:
    """Make a preset without the check of its power: the kernel takes any finite one, presets refuse negative ones."""
    preset = dataclasses.replace(PRESET, score_fusion=fusion)
    object.__setattr__(preset, "score_power", power)
    return preset


def embeddings(P: int, S: int, J: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal((rows, J)) + 0.5 for rows in (P, P, S, S)]
    return [(a / np.linalg.norm(a, axis=1, keepdims=True)).astype(np.float32) for a in arrays]


def moments_of(P: int, seed: int = 0) -> np.ndarray:
    """Draw moments on a grid, so that IoUs at the threshold and empty moments occur."""
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 40, P)
    return np.stack([start, start + rng.integers(0, 12, P)], 1).astype(np.float32) * np.float32(1.37)


def run(arrays, moments, preset, top_k, isa, threads=1, iou_threshold=0.5):
    S = len(arrays[2])
    cells, scores = np.full((S, top_k), -77, np.int32), np.full((S, top_k), np.nan, np.float32)
    _C.top_moments(
        *arrays,
        moments=moments,
        fusion=preset.score_fusion,
        power=preset.score_power,
        iou_threshold=iou_threshold,
        top_k=top_k,
        cells=cells,
        scores=scores,
        threads=threads,
        isa=isa,
    )
    return cells, scores


def fused_in_float64(arrays, preset) -> np.ndarray:
    contrastive, iou = reference.match_scores(*(torch.from_numpy(a).double() for a in arrays))
    return fuse_scores(contrastive.numpy(), iou.numpy(), preset)


def check_choice(cells, scores, fused, moments, iou_threshold) -> None:
    """Check that every pick is, within rounding, the best that earlier picks left, and that none is left at the end."""
    for row, values, exact in zip(cells, scores, fused, strict=True):
        free = exact != 0
        for p, value in zip(row, values, strict=True):
            if p < 0:
                assert value == 0
                assert not free.any()
                continue
            assert free[p]
            assert exact[p] >= exact[free].max() - CLOSE
            assert abs(value - exact[p]) <= CLOSE
            start, end = moments[p]
            inter = np.maximum(np.minimum(moments[:, 1], end) - np.maximum(moments[:, 0], start), np.float32(0))
            with np.errstate(invalid="ignore"):
                iou = inter / (np.maximum(moments[:, 1], end) - np.minimum(moments[:, 0], start))
            free &= ~(iou > np.float32(iou_threshold))
            free[p] = False


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("fusion", "power"), [("power", 0.5), ("power", 0.3), ("power", 2.0), ("product", 0.5)])
@pytest.mark.parametrize(
    ("P", "S", "J"), [(1, 1, 5), (136, 3, 256), (230, 70, 33), (33, 32, 8), (17, 33, 1), (7, 0, 8), (0, 2, 8)]
)
def test_top_moments_chooses_what_float64_chooses(P, S, J, fusion, power, isa):
    arrays, moments, preset = embeddings(P, S, J), moments_of(P), preset_of(fusion, power)
    for top_k, iou_threshold in ((1, 0.5), (5, 0.4), (300, 0.7)):
        cells, scores = run(arrays, moments, preset, top_k, isa, 2, iou_threshold)
        check_choice(cells, scores, fused_in_float64(arrays, preset), moments, iou_threshold)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", list(PRESETS))
def test_top_moments_equals_the_separate_ops_on_every_preset(name, isa):
    """Cosines and sigmoids are equal bit for bit; only the power may differ from NumPy's in the last bits."""
    preset = PRESETS[name]
    moments = cells_to_moments(plan_for(preset).cells, 97.3, preset.num_clips)
    arrays = embeddings(len(moments), 9, preset.joint_size, seed=3)
    contrastive, iou = np.full((2, 9, len(moments)), np.nan, np.float32)
    _C.match_scores(*arrays, contrastive=contrastive, iou=iou, threads=1, isa=isa)
    fused = fuse_scores(contrastive, iou, preset)
    cells, scores = run(arrays, moments, preset, 5, isa, 2, preset.nms_iou)
    picked = np.take_along_axis(fused, cells, 1)
    check_close(scores, picked, "score_power")
    if preset.score_fusion == "product" or preset.score_power == 0.5:
        np.testing.assert_array_equal(cells, select_moments(fused, moments, preset.nms_iou, 5))
        np.testing.assert_array_equal(scores, picked)
    else:
        check_choice(cells, scores, fused, moments, preset.nms_iou)


@pytest.mark.slow
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("power", [0.1, 0.3, 0.75, 1.0, 3.0])
def test_the_power_is_as_near_float64_as_promised(power, isa):
    """Vectors have one component: the cosine is exactly the product, and an iou of 0 makes u exactly one half."""
    cosine = np.concatenate([np.linspace(-1, 1, 20001), -1 + 2.0 ** -np.arange(1, 25), [-1.5]]).astype(np.float32)
    P = len(cosine)
    apart = np.arange(2 * P, dtype=np.float32).reshape(P, 2)
    arrays = [cosine[:, None], np.zeros((P, 1), np.float32), np.ones((1, 1), np.float32), np.ones((1, 1), np.float32)]
    cells, scores = run(arrays, apart, preset_of("power", power), P, isa)
    # The expected power starts from the base 0.5 c + 0.5 rounded once to float32, like the official code's.
    base = np.maximum(cosine * np.float32(0.5) + np.float32(0.5), np.float32(0)).astype(np.float64)
    some = base > 0
    found = np.zeros(P)
    found[cells[0, cells[0] >= 0]] = scores[0, cells[0] >= 0]
    assert (found[~some] == 0).all()
    error = np.abs(found[some] / (base[some] ** power / 2) - 1)
    allowed = (2 + np.abs(power * np.log(base[some]))) * 2.0**-23
    assert (error <= allowed).all(), f"{error.max():.3g}, {(error / allowed).max():.2f} of what is allowed"


@pytest.mark.parametrize("isa", ISAS)
def test_the_power_zero_and_negative_powers_follow_numpy_at_base_zero(isa):
    arrays = [np.array([[-1.0], [0.0]], np.float32), np.zeros((2, 1), np.float32), *np.ones((2, 1, 1), np.float32)]
    apart = np.array([[0, 1], [2, 3]], np.float32)
    for power in (0.0, -1.0):
        with np.errstate(divide="ignore"):
            fused = fuse_scores(
                np.array([[-1, 0]], np.float32), np.full((1, 2), 0.5, np.float32), preset_of("power", power)
            )
        cells, scores = run(arrays, apart, preset_of("power", power), 2, isa)
        np.testing.assert_array_equal(cells, select_moments(fused, apart, 0.5, 2))
        np.testing.assert_array_equal(scores, np.take_along_axis(fused, cells, 1))


@pytest.mark.parametrize("isa", ISAS)
def test_equal_scores_go_by_the_lower_cell(isa):
    arrays = embeddings(1, 3, 16)
    arrays[:2] = [np.repeat(array, 50, 0) for array in arrays[:2]]
    apart = np.arange(100, dtype=np.float32).reshape(50, 2)
    cells, scores = run(arrays, apart, PRESET, 50, isa)
    np.testing.assert_array_equal(cells, np.tile(np.arange(50), (3, 1)))
    assert (scores == scores[:, :1]).all()


@pytest.mark.parametrize("isa", ISAS)
def test_a_sentence_gets_the_same_bits_alone_in_any_call_and_with_any_threads(isa):
    arrays, moments, preset = embeddings(1104, 75, 40), moments_of(1104), preset_of("power", 0.3)
    cells, scores = run(arrays, moments, preset, 7, isa)
    for threads in (2, 5):
        again = run(arrays, moments, preset, 7, isa, threads)
        assert (again[0].tobytes(), again[1].tobytes()) == (cells.tobytes(), scores.tobytes())
    for rows in (slice(0, 1), slice(3, 8), slice(31, 34), slice(74, 75)):
        part = run([*arrays[:2], arrays[2][rows], arrays[3][rows]], moments, preset, 7, isa)
        assert (part[0].tobytes(), part[1].tobytes()) == (cells[rows].tobytes(), scores[rows].tobytes())


def test_ten_thousand_sentences_are_chosen_in_bounded_memory():
    arrays, moments = embeddings(136, 10_000, 32), moments_of(136)
    options = {"fusion": "power", "power": 0.5, "iou_threshold": 0.5, "top_k": 5}
    tracemalloc.start()
    cells, scores = ops.top_moments(*arrays, moments, **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < cells.nbytes + scores.nbytes + 2**16  # 400 kB; an array [S, P] would take 5.4 MB
    check_choice(
        cells[::977],
        scores[::977],
        fused_in_float64([*arrays[:2], *(a[::977] for a in arrays[2:])], PRESET),
        moments,
        0.5,
    )


def good() -> dict:
    arrays = embeddings(5, 3, 4)
    return {
        **dict(zip(("video_contrastive", "video_iou", "text_contrastive", "text_iou"), arrays, strict=True)),
        "moments": np.zeros((5, 2), np.float32),
        "fusion": "power",
        "power": 0.5,
        "iou_threshold": 0.5,
        "top_k": 2,
    }


def with_value(shape: tuple[int, ...], at: tuple[int, ...], value: float) -> np.ndarray:
    array = np.ones(shape, np.float32)
    array[at] = value
    return array


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"video_iou": [1]}, TypeError, r"^video_iou: expected a NumPy array, got list$"),
        ({"text_iou": np.ones((3, 4))}, TypeError, r"^text_iou: expected float32 \[S, J\], got float64 \[3, 4\]$"),
        (
            {"text_iou": np.ones((2, 4), np.float32)},
            ValueError,
            r"^text_iou: expected float32 \[3, 4\], got float32 \[2, 4\]$",
        ),
        (
            {"text_contrastive": np.ones((3, 5), np.float32)},
            ValueError,
            r"^text_contrastive: expected float32 \[3, 4\], got float32 \[3, 5\]$",
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
        ({"fusion": "sum"}, ValueError, r"^fusion: expected power or product, got 'sum'$"),
        ({"power": float("nan")}, ValueError, r"^power: expected a finite number, got nan$"),
        ({"iou_threshold": 50}, ValueError, r"^iou_threshold: expected 0 to 1, got 50$"),
        ({"top_k": 0}, ValueError, r"^top_k: expected at least 1, got 0$"),
        ({"top_k": 2.0}, TypeError, r"^top_k: expected a whole number, got 2\.0$"),
        ({"threads": -1}, ValueError, r"^threads: expected a whole number from 1 to 4096, got -1$"),
        *(
            (
                {name: with_value((3, 4), (1, 2), np.nan)},
                ValueError,
                r"^embeddings: expected no NaN score, got one for sentence 1$",
            )
            for name in ("text_contrastive", "text_iou")
        ),
        (
            {"video_iou": with_value((5, 4), (4, 3), np.nan), "power": 0.3},
            ValueError,
            r"^embeddings: expected no NaN score, got one for sentence 0$",
        ),
        (
            {"video_contrastive": with_value((5, 4), (4, 3), np.nan), "power": 0.3},
            ValueError,
            r"^embeddings: expected no NaN score, got one for sentence 0$",
        ),
    ],
)
def test_top_moments_refuses_bad_arguments_with_a_sentence(wrong, error, message):
    with pytest.raises(error, match=message):
        ops.top_moments(**{**good(), **wrong})
