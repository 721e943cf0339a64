"""proposal_conv in C++ agrees with the float64 reference, by every algorithm, on every instruction set of the host."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch

from mmn_fast import _C
from mmn_fast.geometry import ProposalPlan, cover_with_tiles, plan_for, proposal_plan
from mmn_fast.kernels import reference
from mmn_fast.kernels.cpu.conv import ALGORITHMS, NativeProposalConv, choose_algorithms
from mmn_fast.kernels.transforms import fourier, winograd
from mmn_fast.presets import PRESETS
from tests.tolerances import check_close

ISAS = _C.available_cpu_isas()

# N, pooling_counts, k, L, C_0, C, B: odd sizes and every kind of geometry.
CASES = {
    "one-cell": (1, (), 1, 1, 5, 7, 1),
    "one-cell-k5": (1, (), 5, 2, 3, 5, 3),
    "k1": (17, (5, 4), 1, 3, 48, 5, 2),
    "k3": (3, (2,), 3, 2, 5, 48, 1),
    "k4-even": (9, (4, 2), 4, 2, 20, 33, 3),
    "k5": (16, (15,), 5, 3, 33, 48, 3),
    "k5-sparse": (17, (5, 4), 5, 1, 5, 65, 1),
    "k5-deep": (6, (5,), 5, 8, 10, 12, 2),
    "k7": (17, (5, 4), 7, 2, 48, 40, 1),
    "k9": (17, (3, 2), 9, 4, 8, 40, 16),
    "k9-wide": (5, (4,), 9, 1, 300, 34, 2),
    "k5-batch": (8, (7,), 5, 2, 16, 32, 17),
}
# Every algorithm on every instruction set that has it.
BOTH = [(name, isa) for isa in ISAS for name, known in ALGORITHMS.items() if known.isas is None or isa in known.isas]
DIRECT = [name for name, algorithm in ALGORITHMS.items() if algorithm.transform is None]


class Case:
    """A plan, weights scaled so that values keep their size from layer to layer, inputs, and the float64 output."""

    def __init__(self, name: str) -> None:
        N, pooling_counts, k, L, C_0, C, B = CASES[name]
        rng = np.random.default_rng(len(name) + N + C)
        self.plan: ProposalPlan = proposal_plan(N, pooling_counts, k, L)
        widths = [C_0, *[C] * L]
        self.weights = [
            (rng.standard_normal((c_out, c_in, k, k)) * np.sqrt(8 / c_in)).astype(np.float32)
            for c_in, c_out in pairwise(widths)
        ]
        self.biases = [rng.standard_normal(C).astype(np.float32) / 8 for _ in range(L)]
        self.inputs = np.abs(rng.standard_normal((B, len(self.plan.inputs), C_0), np.float32))
        to64 = [[torch.from_numpy(a).double() for a in arrays] for arrays in (self.weights, self.biases)]
        self.expected = reference.proposal_conv_packed(
            torch.from_numpy(self.inputs).double(), to64[0], to64[1], self.plan
        ).numpy()

    def conv(self, algorithm: str, isa: str | None = None) -> NativeProposalConv:
        return NativeProposalConv(self.weights, self.biases, self.plan, [algorithm] * len(self.weights), isa=isa)

    def run(self, conv: NativeProposalConv, threads: int = 1, videos: slice = slice(None)) -> np.ndarray:
        inputs = np.ascontiguousarray(self.inputs[videos])
        return conv(inputs, np.full((len(inputs), *self.expected.shape[1:]), np.nan, np.float32), threads)


@cache
def case(name: str) -> Case:
    return Case(name)


def has_transform(algorithm: str, k: int) -> bool:
    return k in ALGORITHMS[algorithm].kernels


@pytest.mark.parametrize(
    ("name", "algorithm", "isa"),
    [(name, algorithm, isa) for name in CASES for algorithm, isa in BOTH if has_transform(algorithm, CASES[name][2])],
)
def test_proposal_conv_matches_the_reference(name: str, algorithm: str, isa: str) -> None:
    c = case(name)
    scale = np.abs(c.expected).max()
    check_close(c.run(c.conv(algorithm, isa)) / scale, c.expected / scale, "proposal_conv", algorithm, f"{name} {isa}")


@pytest.mark.parametrize(("algorithm", "isa"), BOTH)
def test_proposal_conv_is_bit_equal_over_threads_and_batches(algorithm: str, isa: str) -> None:
    c = case("k5-batch")
    conv = c.conv(algorithm, isa)
    together = c.run(conv)
    for threads in (2, 5):
        assert c.run(conv, threads).tobytes() == together.tobytes()
    for videos in (slice(0, 1), slice(3, 6), slice(16, 17)):
        assert c.run(conv, 2, videos).tobytes() == together[videos].tobytes()


@pytest.mark.parametrize(("algorithm", "isa"), BOTH)
def test_proposal_conv_keeps_nan_in_its_own_video(algorithm: str, isa: str) -> None:
    c = case("k5")
    conv = c.conv(algorithm, isa)
    clean = c.run(conv)
    spoiled = c.inputs.copy()
    spoiled[1] = np.nan
    out = conv(spoiled)
    assert np.isnan(out[1]).all()
    assert out[[0, 2]].tobytes() == clean[[0, 2]].tobytes()


@pytest.mark.parametrize(("algorithm", "isa"), [both for both in BOTH if both[1] == ISAS[-1]])
def test_concurrent_calls_give_the_serial_results(algorithm: str, isa: str) -> None:
    c = case("k5-batch")
    conv = c.conv(algorithm, isa)
    expected = c.run(conv)
    with ThreadPoolExecutor(4) as executor:
        for result in executor.map(lambda n: c.run(conv, threads=1 + n % 3), range(16)):
            assert result.tobytes() == expected.tobytes()


def test_proposal_conv_mixes_algorithms_and_takes_no_videos() -> None:
    c = case("k5")
    conv = NativeProposalConv(c.weights, c.biases, c.plan, ["direct", "fft", "winograd"])
    scale = np.abs(c.expected).max()
    check_close(conv(c.inputs) / scale, c.expected / scale, "proposal_conv", "winograd")
    assert conv(c.inputs[:0]).shape == (0, *c.expected.shape[1:])
    assert all(size > 0 for size in conv.packed_mib)


@pytest.mark.parametrize("transform", [winograd(3), winograd(5), fourier(3), fourier(5), fourier(9)], ids=repr)
def test_tiles_cover_every_cell_once(transform) -> None:
    k = transform.tile + 1 - transform.m
    plan = proposal_plan(17, (5, 4), k, 2)
    for number, layer in enumerate(plan.layers):
        cover = cover_with_tiles(plan, number, transform.m)
        cells = cover.outputs[cover.outputs >= 0]
        np.testing.assert_array_equal(np.sort(cells), np.arange(len(layer.cells)))
        inputs = cover.inputs.reshape(-1, transform.tile, transform.tile)
        for tile, row in zip(*np.nonzero(cover.outputs >= 0), strict=True):
            y, x = divmod(row, transform.m)
            under = inputs[tile, y : y + k, x : x + k].ravel()
            neighbours = layer.neighbours[cover.outputs[tile, row]]
            np.testing.assert_array_equal(np.where(neighbours >= 0, under, -1), neighbours)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("preset", [p for p in PRESETS.values() if p.num_clips > 16], ids=lambda preset: preset.name)
def test_a_memory_limit_makes_layers_direct(preset, precision: str) -> None:
    plan = plan_for(preset)
    widths = [(preset.hidden_size, preset.conv_hidden_size)] * preset.conv_layers
    free = choose_algorithms(plan, widths, precision)
    total = sum(choice.packed_mib for choice in free)
    assert not all(choice.algorithm in DIRECT for choice in free)
    half = choose_algorithms(plan, widths, precision, max_packed_mib=total * 0.75)
    assert sum(choice.packed_mib for choice in half) <= total * 0.75
    none = choose_algorithms(plan, widths, precision, max_packed_mib=0)
    assert all(choice.algorithm in DIRECT for choice in none)


def test_proposal_conv_refuses_bad_arguments_with_a_sentence() -> None:
    c = case("k5")
    conv = c.conv("direct")
    with pytest.raises(TypeError, match=r"^inputs: expected float32 \[B, R, C\], got float64 \[3, "):
        conv(c.inputs.astype(np.float64))
    with pytest.raises(ValueError, match=r"^inputs: expected float32 \[3, .*, 33\], got float32 \[3, .*, 32\]$"):
        conv(np.ascontiguousarray(c.inputs[..., :-1]))
    with pytest.raises(ValueError, match=r"^algorithms: expected some of direct, winograd, .*, got 'gemm'$"):
        c.conv("gemm")
    with pytest.raises(ValueError, match=r"^layer: expected one that reads .* cells of 48 channels, got one of "):
        NativeProposalConv([c.weights[0]] * 3, c.biases, c.plan, ["direct"] * 3)
    bf16_isas = " or ".join(_C.bf16_isas())
    with pytest.raises(ValueError, match=f"^isa: expected one with bf16 products, {bf16_isas}, for split terms$"):
        c.conv("direct-bf16", isa="generic")
    native = _C.ProposalConv()
    ones = np.ones(4, np.float32)
    with pytest.raises(ValueError, match=r"^neighbours: expected -1 to 2, got 3$"):
        native.add_direct(np.ones((4, 2, 1), np.float32), ones, np.full((4, 1), 3, np.int32), ones, 3)
    grid = [np.zeros(1, np.int32), np.full((2, 16), -1, np.int32), np.zeros(2, np.int32), np.ones((2, 1), np.bool_)]
    matrix, offsets = np.ones((4, 2, 1), np.float32), np.zeros(1, np.int32)
    with pytest.raises(ValueError, match=r"^outputs: expected every cell once, got cell 0 0 times$"):
        native.add_cell_runs(matrix, ones, ones[:1], 3, *grid, offsets, 1)
    grid[1][0, :4] = np.arange(4)
    with pytest.raises(ValueError, match=r"^starts: expected slots below 1, got 0 to 3$"):
        native.add_cell_runs(matrix, ones, ones, 3, *grid, offsets, 1)
    with pytest.raises(ValueError, match=r"^outputs: expected an even number of tiles, got 1$"):
        native.add_cell_runs(matrix, ones, ones, 3, grid[0], grid[1][:1], *grid[2:], offsets, 1)
    bt, at = (matrix.astype(np.float32) for matrix in (winograd(5).bt, winograd(5).at))
    tiles = np.full((1, 64), -1, np.int32), np.full((1, 16), -1, np.int32)
    with pytest.raises(ValueError, match=r"^outputs: expected every cell once, got cell 0 0 times$"):
        native.add_tiled(2, ones, ones, 3, bt, at, *tiles)
