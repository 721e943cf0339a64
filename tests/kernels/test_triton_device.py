"""The convolutions in Triton, in tests that need a device: in CUDA graphs, and in many repeated runs."""

from __future__ import annotations

import pytest
import torch

from mmn_fast.geometry import plan_for, proposal_plan
from mmn_fast.kernels.gpu.conv.block_sizes import GatherConfig
from mmn_fast.kernels.gpu.conv.crop import ConvSettings
from mmn_fast.kernels.gpu.conv.mixed import MixedProposalConv, make_stack
from mmn_fast.kernels.gpu.conv.stack import ConvStack
from mmn_fast.presets import PRESETS
from tests.kernels.conv_cases import DEVICE, ConvCase, padded_map
from tests.tolerances import check_close

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a CUDA device")]

PLANS = {
    "k4-even": (proposal_plan(3, (2,), 4, 2), (17, 18, 3)),
    "k9": (proposal_plan(9, (3,), 9, 2), (70, 130, 2)),
}
BLOCKS = GatherConfig(64, 64, 64, 4, 3, 4)


def _stack(kind: str, settings: ConvSettings) -> ConvStack:
    if kind == "mixed":
        layers = [("fft16", "gather")[number % 2] for number in range(len(settings.plan.layers))]
        return MixedProposalConv(settings, {1: layers})
    return make_stack(kind, settings, BLOCKS)


@pytest.mark.parametrize(
    ("name", "kind", "precision"),
    [
        ("k4-even", "gather", "fp32"),
        ("k4-even", "fft12", "fp32"),
        ("k4-even", "mixed", "fp16"),
        ("k9", "gather", "fp16"),
        ("k9", "fft16", "fp16"),
        ("k9", "fft24", "fp16"),
    ],
)
def test_a_graph_gives_the_bits_of_a_call_a_thousand_times(name: str, kind: str, precision: str) -> None:
    case = ConvCase(*PLANS[name], precision)
    conv = _stack(kind, case.settings)
    map_padded = case.padded(conv)
    expected = conv(map_padded)
    scale = case.expected.abs().max()
    op = "gather_conv" if kind == "gather" else "fourier_conv"
    check_close(expected.cpu().double() / scale, case.expected / scale, op, precision, name)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = conv(map_padded)
    for _ in range(1000):
        out.fill_(torch.nan)
        graph.replay()
        assert torch.equal(out, expected)
    with pytest.raises(ValueError, match=r"videos: expected prepare\(5\) before a graph is captured"):
        _capture_unprepared(conv, map_padded)


def _capture_unprepared(conv: ConvStack, map_padded: torch.Tensor) -> None:
    many = map_padded[:, :1].expand(-1, 5, -1).contiguous()
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        conv(many)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("charades-sta", "gather"),
        ("activitynet-captions", "gather"),
        ("tacos", "gather"),
        ("charades-sta", "fft12"),
        ("activitynet-captions", "fft24"),
        ("tacos", "fft16"),
    ],
)
def test_repeated_runs_are_bit_equal(name: str, kind: str) -> None:
    """A thousand runs: a race between copies and matrix instructions would change a bit."""
    plan, width = plan_for(PRESETS[name]), 512
    generator = torch.Generator().manual_seed(0)
    k, layers = plan.kernel, len(plan.layers)
    weights = [torch.randn(width, width, k, k, generator=generator).numpy() * 0.1 for _ in range(layers)]
    biases = [torch.randn(width, generator=generator).numpy() / 8 for _ in range(layers)]
    conv = make_stack(kind, ConvSettings(weights, biases, plan, torch.float16, DEVICE))
    map_padded = padded_map(conv, torch.rand(1, len(plan.inputs), width, generator=generator).half())
    first = conv(map_padded)
    assert first.isfinite().all()
    for _ in range(1000):
        assert torch.equal(conv(map_padded), first)
