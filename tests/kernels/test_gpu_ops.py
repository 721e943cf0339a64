"""The GPU engine's operators agree with PyTorch in float64: the kernels' twins on the CPU, the kernels on a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mmn_fast.kernels.gpu.fourier_ops  # noqa: F401  its operators are called by name
from mmn_fast.features import pre_clip_spans, pre_clips
from mmn_fast.geometry import cells_to_moments, plan_for, proposal_cells, proposal_mask
from mmn_fast.geometry_crops import padded_rows
from mmn_fast.kernels import host, reference
from mmn_fast.kernels.cpu import ops
from mmn_fast.kernels.gpu import moment_ops, video_ops
from mmn_fast.postprocess import fuse_scores
from mmn_fast.presets import PRESETS
from tests.kernels.conftest import PRECISIONS
from tests.tolerances import check_close


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill memory that an operator allocates with NaN, or with the least integer."""
    made = torch.Tensor.new_empty

    def poisoned(self: torch.Tensor, *size: Any, **kwargs: Any) -> torch.Tensor:
        tensor = made(self, *size, **kwargs)
        return tensor.fill_(torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).min)

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _exact(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().double().numpy()


@pytest.mark.parametrize(
    ("rows", "pre_clip_count", "streams", "clamp"),
    [
        ((1,), 8, (5,), True),
        ((3, 40), 8, (16, 7), False),
        ((33, 2, 9), 4, (64,), True),
        ((300,), 16, (3, 1, 4, 1), True),
    ],
)
def test_feature_pool_makes_the_pre_clips_of_every_video(
    rows: tuple[int, ...], pre_clip_count: int, streams: tuple[int, ...], clamp: bool, precision: str, device: str
) -> None:
    width, dtype = sum(streams), PRECISIONS[precision]
    features = [_random(n, width, seed=n) for n in rows]
    features[0][0] = 0  # a zero row stays zero
    if len(features) > 1:
        features[1][0] *= 1e30  # the row's squares overflow
    spans = [pre_clip_spans(n, pre_clip_count, clamp) for n in rows]
    offsets = np.cumsum([0, *rows])
    starts, ends = (
        torch.from_numpy(np.concatenate([s[side] + o for s, o in zip(spans, offsets, strict=False)]).astype(np.int32))
        for side in range(2)
    )
    found = video_ops.feature_pool(
        torch.cat(features).to(device), starts.to(device), ends.to(device), list(streams), dtype
    )
    assert found.dtype == dtype
    expected = []
    for video, (first, last) in zip(features, spans, strict=True):
        parts = [F.normalize(part, dim=1) for part in video.double().split(streams, 1)]
        unit = torch.cat(parts, 1)
        expected += [unit[a:b].mean(0) for a, b in zip(first.tolist(), last.tolist(), strict=True)]
    check_close(_exact(found), torch.stack(expected), "gpu_feature_pool", precision)


def test_feature_pool_agrees_with_the_host_on_a_preset(device: str) -> None:
    preset = PRESETS["hc-stvg"]
    features = _random(50, preset.input_size)
    spans = pre_clip_spans(50, preset.num_pre_clips, preset.clamp_pre_clips)
    starts, ends = (torch.from_numpy(side.astype(np.int32)).to(device) for side in spans)
    found = video_ops.feature_pool(features.to(device), starts, ends, list(preset.feature_streams), torch.float32)
    check_close(_exact(found), pre_clips(features.numpy(), preset), "pre_clips")


@pytest.mark.parametrize(
    ("B", "T", "C", "kernel", "stride"), [(1, 1, 1, 1, 1), (3, 8, 24, 2, 2), (2, 9, 5, 3, 2), (0, 4, 8, 2, 2)]
)
def test_clip_pool_matches_torch(B: int, T: int, C: int, kernel: int, stride: int, precision: str, device: str) -> None:
    products, bias = _random(B, T, C).to(PRECISIONS[precision]), _random(C, seed=1)
    found = video_ops.clip_pool(products.to(device), bias.to(device), kernel, stride)
    expected = F.avg_pool1d((products.double() + bias).relu().mT, kernel, stride).permute(2, 0, 1)
    check_close(_exact(found), expected, "gpu_elementwise", precision)


@pytest.mark.parametrize(
    ("N", "counts", "B", "C"), [(1, (0,), 1, 1), (6, (2, 1), 3, 8), (16, (3, 2), 1, 24), (9, (8,), 2, 5)]
)
def test_sparse_max_pool_is_exact_and_writes_valid_cells_alone(
    N: int, counts: tuple[int, ...], B: int, C: int, precision: str, device: str
) -> None:
    dtype, border = PRECISIONS[precision], 2
    clips = _random(N, B, C).to(dtype)
    cells = torch.from_numpy(proposal_cells(proposal_mask(N, counts))).long()
    rows = (cells[:, 0] + border) * (N + 2 * border) + cells[:, 1] + border
    positions = torch.full((N, N), -1, dtype=torch.int32)
    positions[cells[:, 0], cells[:, 1]] = rows.int()
    found = torch.full(((N + 2 * border) ** 2, B, C), torch.nan, dtype=dtype, device=device)
    video_ops.sparse_max_pool(clips.to(device), positions.to(device), found)
    expected = torch.full(found.shape, torch.nan, dtype=dtype)
    dense = reference.sparse_max_pool(clips.permute(1, 2, 0).float(), counts).to(dtype)
    expected[rows] = dense[:, :, cells[:, 0], cells[:, 1]].permute(2, 0, 1)
    np.testing.assert_array_equal(_exact(found), _exact(expected))


def test_sparse_max_pool_keeps_nan_and_the_earlier_of_equals(device: str) -> None:
    clips = torch.tensor([0.0, -0.0, torch.nan, 1.0]).reshape(4, 1, 1)
    positions = torch.full((4, 4), -1, dtype=torch.int32)
    positions[torch.triu_indices(4, 4).unbind(0)] = torch.arange(10, dtype=torch.int32)
    found = torch.zeros(10, 1, 1, device=device)
    video_ops.sparse_max_pool(clips.to(device), positions.to(device), found)
    flat = found.flatten().cpu()
    assert flat.isnan().tolist() == [False, False, True, True, False, True, True, True, True, False]
    assert torch.signbit(flat[[0, 1, 4]]).tolist() == [False, False, True]


@pytest.mark.parametrize("videos_first", [True, False])
@pytest.mark.parametrize(("B", "cells", "C"), [(1, 1, 1), (3, 7, 16), (2, 12, 5)])
def test_conv_epilogue_puts_each_cell_in_its_place_and_writes_nothing_else(
    B: int, cells: int, C: int, videos_first: bool, precision: str, device: str
) -> None:
    dtype = PRECISIONS[precision]
    products, bias = _random(B, cells, C).to(dtype), _random(C, seed=1)
    weights = _random(cells, seed=2).abs()
    positions = torch.randperm(cells + 4, generator=torch.Generator().manual_seed(3))[:cells].int()
    positions[0::3] = -1
    shape = (B, cells + 4, C) if videos_first else (cells + 4, B, C)
    found = torch.full(shape, torch.nan, dtype=dtype, device=device)
    video_ops.conv_epilogue(
        products.to(device), bias.to(device), weights.to(device), positions.to(device), found, videos_first
    )
    expected = torch.full((B, cells + 4, C), torch.nan, dtype=torch.float64)
    here = positions >= 0
    expected[:, positions[here].long()] = ((products.double() + bias).relu() * weights[:, None])[:, here]
    expected = expected if videos_first else expected.transpose(0, 1)
    written = ~expected.isnan()
    assert torch.equal(~found.cpu().isnan(), written)
    check_close(_exact(found)[written], expected[written], "gpu_elementwise", precision)


@pytest.mark.parametrize(("P", "B", "J"), [(1, 1, 1), (5, 3, 16), (7, 2, 33), (4, 1, 256), (0, 2, 8)])
def test_heads_are_unit_vectors_of_each_branch(P: int, B: int, J: int, precision: str, device: str) -> None:
    products, bias = _random(P, B, 2 * J).to(PRECISIONS[precision]), _random(2 * J, seed=1)
    if P > 1:
        bias[:J], products[0, 0, :J] = 0, 0  # a zero vector stays zero and does not become NaN
    found = video_ops.heads(products.to(device), bias.to(device))
    expected = (products.double() + bias).chunk(2, -1)
    for ours, exact in zip(found, expected, strict=True):
        check_close(_exact(ours), F.normalize(exact, dim=-1).transpose(0, 1), "gpu_heads", precision)


@pytest.mark.parametrize("product", [True, False])
@pytest.mark.parametrize(("B", "P", "S", "J"), [(1, 1, 1, 1), (3, 17, 4, 32), (2, 9, 5, 33)])
def test_pair_scores_match_the_reference(
    B: int, P: int, S: int, J: int, product: bool, precision: str, device: str
) -> None:
    dtype = PRECISIONS[precision]
    video = [F.normalize(_random(B, P, J, seed=n), dim=-1).to(dtype) for n in range(2)]
    text = [F.normalize(_random(S, J, seed=2 + n), dim=-1).to(dtype) for n in range(2)]
    text[0][0] = -video[0][0, 0]  # at a cosine of -1, rounding may bring the power's base below 0
    pairs = torch.tensor([(b, s) for b in range(B) for s in range(S)] + [(-1, 0)], dtype=torch.int32)
    columns = [column.contiguous().to(device) for column in pairs.unbind(1)]
    power = 0.3
    found = [
        t.cpu() for t in moment_ops.pair_scores(*(t.to(device) for t in (*video, *text)), *columns, power, product)
    ]
    for row, (b, s) in enumerate(pairs.tolist()):
        if b < 0:
            assert all((scores[row] == 0).all() for scores in found)
            continue
        exact = reference.match_scores(*(v[b].double() for v in video), *(t[s : s + 1].double() for t in text))
        c, u = (scores[0] for scores in exact)
        fused = c * u if product else (0.5 * c + 0.5).clamp(min=0) ** power * u
        check_close(found[0][row], c, "match_scores")
        check_close(found[1][row], u, "match_scores")
        near = (0.5 * c + 0.5) > 1e-3  # the power is infinitely steep at 0
        check_close(found[2][row][near], fused[near], "gpu_fused")
        assert found[2][row].isfinite().all()


def test_a_pair_has_the_same_bits_in_any_call(device: str, precision: str) -> None:
    tensors = [F.normalize(_random(3, 19, 40, seed=n), dim=-1).to(device, PRECISIONS[precision]) for n in range(2)]
    text = [F.normalize(_random(4, 40, seed=2 + n), dim=-1).to(device, PRECISIONS[precision]) for n in range(2)]
    pairs = torch.tensor([[0, 2, 1, 2], [3, 1, 0, 0]], dtype=torch.int32, device=device)
    together = moment_ops.pair_scores(*tensors, *text, pairs[0], pairs[1], 0.5, False)
    alone = moment_ops.pair_scores(*tensors, *text, pairs[0, 1:2], pairs[1, 1:2], 0.5, False)
    assert all(torch.equal(a[0], t[1]) for a, t in zip(alone, together, strict=True))


@pytest.mark.parametrize("name", ["charades-sta", "tacos"])
@pytest.mark.parametrize("top_k", [1, 5, 200])
def test_pair_top_moments_choose_what_the_host_chooses(name: str, top_k: int, device: str) -> None:
    preset = PRESETS[name]
    cells = plan_for(preset).cells
    rng = np.random.default_rng(top_k)
    fused = rng.integers(-9, 10, (3, len(cells))).astype(np.float32)  # ties, and zeros that are no candidates
    fused[1] = np.nan
    durations = np.array([30.96, 7.0, 151.3], np.float32)
    chosen, scores = (
        tensor.cpu().numpy()
        for tensor in moment_ops.pair_top_moments(
            *(torch.from_numpy(array).to(device) for array in (fused, cells, durations)),
            top_k,
            preset.num_clips,
            preset.nms_iou,
        )
    )
    assert (chosen[1] == -1).all()
    for row in (0, 2):
        moments = cells_to_moments(cells, float(durations[row]), preset.num_clips)
        expected = ops.temporal_nms(fused[row : row + 1], moments, preset.nms_iou, top_k)[0]
        np.testing.assert_array_equal(chosen[row], expected)
        np.testing.assert_array_equal(scores[row], np.where(expected >= 0, fused[row][expected], 0))
    assert (scores[1] == 0).all()


@pytest.mark.parametrize(("S", "P", "top_k"), [(0, 7, 2), (1, 1, 1), (3, 0, 4), (7, 300, 5), (2, 2548, 200)])
def test_temporal_nms_chooses_what_the_host_chooses(S: int, P: int, top_k: int, device: str) -> None:
    rng = np.random.default_rng(P)
    start = rng.integers(0, 24, P)
    moments = np.stack([start, start + rng.integers(0, 12, P)], 1).astype(np.float32) * np.float32(1.37)
    scores = rng.integers(-9, 10, (S, P)).astype(np.float32)  # ties, and zeros that are no candidates
    inputs = [torch.from_numpy(array).to(device) for array in (scores, moments)]
    for threshold in (0.0, 0.5, 1.0):
        found = moment_ops.temporal_nms(*inputs, top_k, threshold).cpu().numpy()
        np.testing.assert_array_equal(found, ops.temporal_nms(scores, moments, threshold, top_k))


def test_temporal_nms_takes_nan_for_no_candidate(device: str) -> None:
    moments = torch.tensor([[0.0, 1.0], [5.0, 6.0], [0.0, 1.0]], device=device)
    scores = torch.tensor([[torch.nan, 1.0, 2.0], [torch.nan] * 3], device=device)
    assert moment_ops.temporal_nms(scores, moments, 3, 0.5).tolist() == [[2, 1, -1], [-1] * 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_twins_round_to_elements_as_torch_does(dtype: torch.dtype) -> None:
    """The op conv_epilogue with weight 1 rounds every exponent, ties and their neighbours, infinities and NaN."""
    bits = torch.arange(0, 2**31, 2**11 - 1, dtype=torch.int64).int()
    values = torch.cat([bits.view(torch.float32), (bits & ~0x1FFF | 0x1000).view(torch.float32)])
    clips = torch.zeros(len(values), 1, 1, dtype=dtype)
    one = torch.ones(len(values))
    for_each = torch.arange(len(values), dtype=torch.int32)
    # A bias per channel carries the float32 values; the products are zero.
    out = torch.full((1, 1, len(values)), torch.nan, dtype=dtype)
    video_ops.conv_epilogue(clips.reshape(1, 1, -1), values, one[:1], for_each[:1], out, True)
    expected = values.to(dtype)
    assert torch.equal(out.flatten().isnan(), expected.isnan())
    numbers = ~expected.isnan()
    assert torch.equal(out.flatten()[numbers], expected[numbers])
    every = torch.arange(2**16).to(torch.uint16).view(dtype)
    back = torch.full((1, 1, 2**16), torch.nan)
    assert len(every) == back.numel()
    same = torch.full((1, 1, 2**16), torch.nan, dtype=dtype)
    video_ops.conv_epilogue(every.reshape(1, 1, -1), torch.zeros(2**16), one[:1], for_each[:1], same, True)
    positive = every > 0
    assert torch.equal(same.flatten()[positive], every[positive])


def _arguments() -> dict[str, Callable[[], tuple[Any, ...]]]:
    ints = torch.zeros(4, dtype=torch.int32)
    ones = torch.ones(2, 4, 8)
    spectra = torch.zeros(256, 2, 3, 8)
    return {
        "feature_pool": lambda: (torch.ones(5, 8), ints, ints + 1, [5, 3], torch.float16),
        "clip_pool": lambda: (ones, torch.ones(8), 2, 2),
        "sparse_max_pool": lambda: (ones, torch.full((2, 2), -1, dtype=torch.int32), torch.zeros(9, 4, 8)),
        "conv_epilogue": lambda: (ones, torch.ones(8), torch.ones(4), ints - 1, torch.zeros(2, 6, 8), True),
        "heads": lambda: (ones, torch.ones(8)),
        "pair_scores": lambda: (ones, ones, torch.ones(3, 8), torch.ones(3, 8), ints, ints, 0.5, False),
        "pair_top_moments": lambda: (torch.ones(4, 3), torch.zeros(3, 2, dtype=torch.int32), torch.ones(4), 2, 16, 0.5),
        "temporal_nms": lambda: (torch.ones(4, 3), torch.ones(3, 2), 2, 0.5),
        "fourier_tiles": lambda: (torch.ones(5, 3, 8), ints.new_full((2, 256), -1), spectra.clone()),
        "fourier_cells": lambda: (
            *(spectra, ints.new_full((2, 9), -1), torch.ones(8), torch.ones(6)),
            torch.zeros(6, 3, 8),
        ),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", list(_arguments()))
def test_operators_are_consistent_for_torch_compile_and_export(name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.mmn_fast, name).default, _arguments()[name]())


@pytest.mark.parametrize(
    ("name", "place", "value", "error", "message"),
    [
        ("feature_pool", 0, torch.ones(5, 8).double(), TypeError, "features: expected contiguous float32"),
        ("feature_pool", 3, [5, 4], ValueError, r"streams: expected widths that add up to 8, got \[5, 4\]"),
        ("feature_pool", 4, torch.int8, TypeError, "dtype: expected float32, float16 or bfloat16, got torch.int8"),
        ("clip_pool", 1, torch.ones(7), ValueError, r"bias: expected contiguous float32 \[8\] on cpu, got .*\[7\]"),
        ("clip_pool", 2, 5, ValueError, "kernel: expected 1 to 4, got 5"),
        ("clip_pool", 3, 0, ValueError, "stride: expected at least 1, got 0"),
        ("sparse_max_pool", 1, torch.zeros(2, 2), TypeError, r"positions: expected contiguous int32 \[2, 2\]"),
        ("sparse_max_pool", 2, torch.zeros(9, 8, 4).mT, ValueError, "map_padded: .* got it with strides"),
        ("conv_epilogue", 4, torch.zeros(3, 6, 8), ValueError, r"out: expected contiguous float32 \[2, \?, 8\]"),
        ("heads", 0, torch.ones(2, 4, 7), ValueError, "products: expected two heads side by side, got a width of 7"),
        ("pair_scores", 2, torch.ones(3, 7), ValueError, r"text_contrastive: expected contiguous float32 \[\?, 8\]"),
        ("pair_top_moments", 3, 0, ValueError, "top_k: expected at least 1, got 0"),
        ("pair_top_moments", 5, 1.5, ValueError, "iou_threshold: expected 0 to 1, got 1.5"),
        ("temporal_nms", 1, torch.ones(4, 2), ValueError, r"moments: expected contiguous float32 \[3, 2\]"),
        ("temporal_nms", 2, 0, ValueError, "top_k: expected at least 1, got 0"),
        ("temporal_nms", 3, -0.5, ValueError, "iou_threshold: expected 0 to 1, got -0.5"),
        ("fourier_tiles", 0, torch.ones(5, 3, 8).double(), TypeError, "rows: expected contiguous float32 or float16"),
        ("fourier_tiles", 1, torch.zeros(2, 255, dtype=torch.int32), ValueError, "inputs: .* 12, 16, 24, got 255"),
        ("fourier_tiles", 2, torch.zeros(256, 2, 3, 7), ValueError, r"spectra: .* \[256, 2, 3, 8\]"),
        ("fourier_cells", 1, torch.zeros(2, 10, dtype=torch.int32), ValueError, "outputs: expected m .*, got 10"),
        ("fourier_cells", 1, torch.zeros(2, 17**2, dtype=torch.int32), ValueError, "outputs: .* 1 to 16, got 289"),
        ("fourier_cells", 2, torch.ones(7), ValueError, r"bias: .* \[8\]"),
        ("fourier_cells", 4, torch.zeros(5, 3, 8), ValueError, r"out: .* \[6, 3, 8\]"),
    ],
)
def test_operators_refuse_bad_arguments_with_a_sentence(
    name: str, place: int, value: Any, error: type[Exception], message: str
) -> None:
    arguments = list(_arguments()[name]())
    arguments[place] = value
    with pytest.raises(error, match=f"^{message}"):
        getattr(torch.ops.mmn_fast, name)(*arguments)


@pytest.mark.skipif(not host.build_info()["cuda"], reason="a build without CUDA")
@pytest.mark.parametrize(
    ("op", "binding", "arguments"),
    [
        ("feature_pool", "gpu_feature_pool", [0, 0, 0, 0, 0, 1, 1, [4], 0]),
        ("clip_pool", "gpu_clip_pool", [0, 0, 0, 1, 1, 4, 1, 1, 1, 0]),
        ("sparse_max_pool", "gpu_sparse_max_pool", [0, 0, 0, 1, 1, 4, 0]),
        ("conv_epilogue", "gpu_conv_epilogue", [0, 0, 0, 0, 0, 1, 1, 4, 4, 4, 0]),
        ("heads", "gpu_heads", [0, 0, 0, 0, 1, 1, 4, 0]),
        ("pair_scores", "gpu_pair_scores", [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 4, 0.5, False, 0]),
        ("pair_top_moments", "gpu_pair_top_moments", [0, 0, 0, 0, 0, 0, 1, 1, 1, 16.0, 0.5]),
        ("temporal_nms", "gpu_temporal_nms", [0, 0, 0, 0, 1, 1, 1, 0.5]),
        ("fourier_tiles", "gpu_fourier_tiles", [0, 0, 0, 1, 1, 4, 16, 0]),
        ("fourier_cells", "gpu_fourier_cells", [0, 0, 0, 0, 0, 1, 1, 4, 16, 8, 0]),
    ],
)
def test_a_refusal_of_cuda_is_an_exception_that_names_the_op(op: str, binding: str, arguments: list[Any]) -> None:
    """The named device does not exist, with or without a driver, so nothing is launched."""
    with pytest.raises(RuntimeError, match=f"^{op}: CUDA says cudaError"):
        getattr(host.extension, binding)(*arguments, 4096, 0)


def test_padded_rows_leave_the_border_free() -> None:
    plan = plan_for(PRESETS["charades-sta"])
    border, side = plan.border, plan.num_clips + 2 * plan.border
    rows = padded_rows(plan, plan.cells)
    assert len(np.unique(rows)) == plan.num_proposals
    y, x = np.divmod(rows, side)
    assert np.array_equal(np.stack([y, x], 1) - border, plan.cells)


def test_fused_scores_are_those_of_the_host() -> None:
    preset = PRESETS["tacos"]
    video = [F.normalize(_random(1, 50, 64, seed=n), dim=-1) for n in range(2)]
    text = [F.normalize(_random(1, 64, seed=2 + n), dim=-1) for n in range(2)]
    zero = torch.zeros(1, dtype=torch.int32)
    c, u, fused = moment_ops.pair_scores(*video, *text, zero, zero, preset.score_power, False)
    check_close(fused, fuse_scores(c.numpy(), u.numpy(), preset), "gpu_fused")
