"""The convolution by FFT tiles in Triton agrees with float64 results: interpreted, or on a GPU if there is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmn_fast.geometry import plan_for, proposal_plan
from mmn_fast.kernels.gpu.conv.block_sizes import GatherConfig
from mmn_fast.kernels.gpu.conv.crop import ConvSettings
from mmn_fast.kernels.gpu.conv.fourier import FourierProposalConv, spectral_weights
from mmn_fast.kernels.transforms import SPECTRAL_TILES, fourier
from mmn_fast.presets import PRESETS
from tests.kernels.conv_cases import DEVICE, ConvCase, on_device
from tests.tolerances import check_close

pytestmark = pytest.mark.interpreter
# These blocks leave rows and channels over, and take the interpreter less than minutes.
SMALL = GatherConfig(16, 64, 32, 4, 2, 1)
# Tile, plan, C_0, C, B. The interpreter takes a step per point of a tile, so large tiles have few layers.
CASES = {
    "one-cell": (12, proposal_plan(1, (), 1, 1), 5, 7, 1),
    "one-cell-k5": (12, proposal_plan(1, (), 5, 2), 3, 5, 3),
    "k4-even": (12, proposal_plan(3, (2,), 4, 2), 17, 18, 3),
    "k5-channels": (16, proposal_plan(6, (2,), 5, 1), 40, 70, 1),
    "k5-tiles": (12, proposal_plan(12, (3, 2), 5, 1), 7, 17, 2),
    "k7": (24, proposal_plan(6, (2,), 7, 1), 8, 20, 3),
    "k9": (16, proposal_plan(9, (3,), 9, 1), 6, 5, 2),
    "k9-tiles": (24, proposal_plan(18, (5, 4), 9, 1), 5, 6, 1),
    "k11": (12, proposal_plan(3, (2,), 11, 1), 4, 3, 1),
}


class Case(ConvCase):
    """A case whose map is NaN outside the needed cells; the tiles must not read NaN."""

    def __init__(self, name: str, precision: str) -> None:
        self.tile, plan, *sizes = CASES[name]
        super().__init__(plan, tuple(sizes), precision, rounded=False)

    def conv(self) -> FourierProposalConv:
        return FourierProposalConv(self.settings, SMALL, tile=self.tile)

    def padded(self, conv: FourierProposalConv, inputs: torch.Tensor | None = None, outside: float = torch.nan):
        return super().padded(conv, inputs, outside)


@on_device
@pytest.mark.parametrize(
    ("name", "precision"),
    [*((name, "fp32") for name in CASES), ("one-cell", "fp16"), ("k4-even", "fp16"), ("k9-tiles", "fp16")],
)
def test_fourier_conv_matches_the_reference(name: str, precision: str) -> None:
    c = Case(name, precision)
    conv = c.conv()
    out = conv(c.padded(conv))
    assert out.dtype == c.dtype
    scale = c.expected.abs().max()
    check_close(out.cpu().double() / scale, c.expected / scale, "fourier_conv", precision, name)


# The interpreter takes seconds per plan. float32 shows a wrong row best; float16 has the same schedule.
PLANS = [
    ("charades-sta", 12, "fp32"),
    ("tacos", 16, "fp32"),
    ("activitynet-captions", 24, "fp32"),
    ("hc-stvg", 12, "fp32"),
    ("shapes", 16, "fp16"),
]
PLANS_ON_DEMAND = [
    pytest.param(name, tile, "fp32", marks=pytest.mark.long)
    for name in PRESETS
    for tile in SPECTRAL_TILES
    if (name, tile, "fp32") not in PLANS
]


@pytest.mark.parametrize(("name", "tile", "precision"), [*PLANS, *PLANS_ON_DEMAND])
def test_fourier_conv_matches_the_reference_on_a_presets_plan(name: str, tile: int, precision: str) -> None:
    c = ConvCase(plan_for(PRESETS[name]), (3, 5, 1), precision, rounded=False)
    conv = FourierProposalConv(c.settings, GatherConfig(128, 16, 16, 4, 2, 1), tile=tile)
    scale = c.expected.abs().max()
    out = conv(c.padded(conv, outside=torch.nan))
    check_close(out.cpu().double() / scale, c.expected / scale, "fourier_conv_deep", precision, name)


def test_videos_do_not_meet() -> None:
    """A video's rows keep their bits beside other videos, even beside one that is all NaN, and in a second call."""
    c = Case("k4-even", "fp16")
    conv = c.conv()
    together = conv(c.padded(conv))
    assert torch.equal(conv(c.padded(conv)), together)
    assert torch.equal(conv(c.padded(conv, c.inputs[1:2])), together[:, 1:2])
    spoiled = c.inputs.clone()
    spoiled[0] = torch.nan
    out = conv(c.padded(conv, spoiled))
    assert out[:, 0].isnan().all()
    assert torch.equal(out[:, 1:], together[:, 1:])
    assert conv(c.padded(conv, c.inputs[:0])).shape == (c.plan.num_proposals, 0, 18)


@pytest.mark.parametrize("name", ["one-cell-k5", "k4-even", "k7"])
def test_the_arithmetic_of_the_error_bench_is_the_kernels_own(name: str) -> None:
    """`benchmarks.fourier_error` must round the same values as the kernels, so that its figures hold for them."""
    from benchmarks.fourier_error import fourier_fp16

    c = Case(name, "fp16")
    conv = c.conv()
    out = conv(c.padded(conv)).cpu().float().transpose(0, 1)
    simulated = fourier_fp16(c.inputs.float(), c.weights, c.biases, c.plan, c.tile)
    scale = float(c.expected.abs().max())
    # Another order of sums moves some values across a rounding boundary of 11 bits; the next layer averages the change.
    check_close(out / scale, simulated / scale, "fourier_simulated", "fp16", name)


def test_fourier_tiles_cost_little_more_than_fp16_operands() -> None:
    from benchmarks.fourier_error import errors

    # Other cases take longer; benchmarks/NOTES.md has them. Tiles of 24 are at the bound, and unused for this map.
    found = errors("hcstvg_small", ("direct", "fft12", "fft16"))
    assert max(found["fft12"], found["fft16"]) <= 3 * found["direct"], found


@pytest.mark.parametrize("tile", SPECTRAL_TILES)
@pytest.mark.parametrize("size", [0.0, 1e-12, 1.0, 1e6])
def test_spectral_weights_fit_float16(size: float, tile: int) -> None:
    weight = (np.random.default_rng(0).standard_normal((3, 2, 5, 5)) * size).astype(np.float32)
    points, scale = spectral_weights(torch.from_numpy(weight), fourier(5, tile))
    assert points.shape == (tile**2, 2, 3)
    largest = points.abs().max()
    assert largest == 0 if size == 0 else 0.5 < largest <= 1
    unit = size or 1.0
    check_close(points[-4] * scale / unit, weight.sum(axis=(2, 3)).T / unit, "spectral_weights")


def test_fourier_conv_refuses() -> None:
    c = Case("k4-even", "fp32")
    conv = c.conv()
    good = c.padded(conv)
    for bad, message in (
        (good[1:], r"map_padded: expected \[81, B, 17\], got \[80, 3, 17\]"),
        (good.half(), "map_padded: expected torch.float32 on .*, got torch.float16"),
        (good[:, :1].expand(-1, 2, -1), "map_padded: expected contiguous, got strides"),
    ):
        with pytest.raises(ValueError, match=message):
            conv(bad)
    with pytest.raises(ValueError, match="videos: expected 1 to .* at once, got 0"):
        conv.prepare(0)
    with pytest.raises(ValueError, match="weights, biases: expected 2 of each, got 1 and 2"):
        FourierProposalConv(ConvSettings(c.weights[:1], c.biases, c.plan, c.dtype, DEVICE))
    with pytest.raises(ValueError, match="dtype: expected one of .*, got torch.bfloat16"):
        FourierProposalConv(ConvSettings(c.weights, c.biases, c.plan, torch.bfloat16, DEVICE))
    with pytest.raises(ValueError, match="plan: expected a kernel of at most 12, got 13"):
        FourierProposalConv(ConvCase(proposal_plan(3, (2,), 13, 1), (3, 3, 1), "fp32").settings, tile=12)
    with pytest.raises(ValueError, match="device: expected a CUDA device, .*, got meta"):
        FourierProposalConv(ConvSettings(c.weights, c.biases, c.plan, c.dtype, torch.device("meta")))
