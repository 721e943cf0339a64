"""The gathering convolution in Triton agrees with the float64 reference: interpreted, or on a GPU if there is one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmn_fast.geometry import plan_for, proposal_plan
from mmn_fast.kernels.gpu.conv import block_sizes
from mmn_fast.kernels.gpu.conv.block_sizes import GatherConfig
from mmn_fast.kernels.gpu.conv.crop import ConvSettings
from mmn_fast.kernels.gpu.conv.gather import GatherProposalConv
from mmn_fast.presets import PRESETS
from tests.kernels.conv_cases import DEVICE, DTYPES, ConvCase, on_device
from tests.tolerances import check_close

pytestmark = pytest.mark.interpreter
# Plan, C_0, C, B, blocks. Blocks of 16 leave rows and channels over. The presets' plans take few large blocks, because
# the interpreter's time depends on steps, not on products.
SMALL = GatherConfig(16, 16, 16, 4, 2, 4)
LARGE = GatherConfig(4096 if DEVICE.type == "cpu" else 128, 16, 16, 4, 2, 1)
CASES = {
    "one-cell": (proposal_plan(1, (), 1, 1), 5, 7, 1, SMALL),
    "one-cell-k5": (proposal_plan(1, (), 5, 2), 3, 5, 3, SMALL),
    "k3": (proposal_plan(3, (2,), 3, 2), 20, 18, 1, SMALL),
    "k3-odd": (proposal_plan(3, (2,), 3, 2), 17, 19, 2, SMALL),
    "k3-whole": (proposal_plan(3, (2,), 3, 2), 16, 32, 2, SMALL),
    "k4-even": (proposal_plan(3, (2,), 4, 2), 17, 18, 3, GatherConfig(64, 32, 16, 4, 2, 1)),
    "k7-split": (proposal_plan(3, (2,), 7, 2), 8, 16, 1, SMALL),
    "k9": (proposal_plan(3, (1,), 9, 2), 6, 5, 2, GatherConfig(64, 16, 16, 4, 2, 4)),
    **{name: (plan_for(preset), 3, 5, 1 + (name == "shapes"), LARGE) for name, preset in PRESETS.items()},
}


class Case(ConvCase):
    def __init__(self, name: str, precision: str) -> None:
        plan, *sizes, self.config = CASES[name]
        super().__init__(plan, tuple(sizes), precision)

    def conv(self, config: GatherConfig | None = None) -> GatherProposalConv:
        return GatherProposalConv(self.settings, config or self.config)


@pytest.fixture
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill memory that a call allocates with NaN, so that values which a kernel leaves out are seen."""

    def poisoned(empty: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(*args: Any, **kwargs: Any) -> torch.Tensor:
            made = empty(*args, **kwargs)
            return made.fill_(torch.nan) if made.is_floating_point() else made

        return call

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))


@on_device
@pytest.mark.usefixtures("poisoned_outputs")
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_gather_conv_matches_the_reference(name: str, precision: str) -> None:
    c = Case(name, precision)
    conv = c.conv()
    scale = c.expected.abs().max()
    out = conv(c.padded(conv))
    assert out.dtype == c.dtype
    check_close(out.cpu().double() / scale, c.expected / scale, "gather_conv", precision, name)


@on_device
@pytest.mark.usefixtures("poisoned_outputs")
@pytest.mark.parametrize("sizes", [(17, 19), (16, 19), (17, 32), (16, 32)])
def test_kernels_see_whole_widths_alone(sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Odd widths are padded; for whole widths the kernel uses the caller's maps and rows."""
    seen, run_layer = list[tuple[int, ...]](), GatherProposalConv.run_layer

    def spy(self: GatherProposalConv, number: int, x: torch.Tensor, out: torch.Tensor) -> None:
        seen.append((x.shape[-1], out.shape[-1], x.data_ptr(), out.data_ptr()))
        run_layer(self, number, x, out)

    monkeypatch.setattr(GatherProposalConv, "run_layer", spy)
    c = ConvCase(proposal_plan(3, (2,), 3, 2), (*sizes, 2), "fp32")
    conv = GatherProposalConv(c.settings, SMALL)
    given = c.padded(conv)
    out = conv(given)
    assert [widths[:2] for widths in seen] == [(-(-sizes[0] // 16) * 16, 32), (32, 32)]
    assert (seen[0][2] == given.data_ptr()) == (sizes[0] == 16)
    assert (seen[-1][3] == out.data_ptr()) == (sizes[1] == 32)
    scale = c.expected.abs().max()
    check_close(out.cpu().double() / scale, c.expected / scale, "gather_conv", "fp32", str(sizes))
    held = sum(t.nbytes for t in (*conv._maps[2], *conv._filled[2], conv._prepared[2].partial) if t is not None)
    assert conv.workspace_bytes(2) == held


@on_device
@pytest.mark.usefixtures("poisoned_outputs")
def test_split_taps_give_the_same_sums() -> None:
    """Work for fewer blocks than the device runs at once is split; with one cell some shares have no tap at all."""
    for name in ("one-cell-k5", "k3"):
        c = Case(name, "fp32")
        outs = []
        for max_splits in (1, 4):
            conv = c.conv(GatherConfig(64, 64, 16, 4, 2, max_splits))
            conv.programs = 8
            outs.append(conv(c.padded(conv)).cpu())
            splits = [layer.schedule.splits for layer in conv._prepared[len(c.inputs)].layers.values()]
            assert splits == [max_splits] * len(splits)
        scale = c.expected.abs().max()
        for out in outs:
            check_close(out.double() / scale, c.expected / scale, "gather_conv", "fp32", name)


@on_device
def test_videos_do_not_meet() -> None:
    """A video's rows keep their bits beside other videos, even beside one that is all NaN, and in a second call."""
    c = Case("k4-even", "fp16")
    conv = c.conv(GatherConfig(16, 32, 32, 4, 2, 1))
    together = conv(c.padded(conv))
    assert torch.equal(conv(c.padded(conv)), together)
    assert torch.equal(conv(c.padded(conv, c.inputs[1:2])), together[:, 1:2])
    spoiled = c.inputs.clone()
    spoiled[0] = torch.nan
    out = conv(c.padded(conv, spoiled))
    assert out[:, 0].isnan().all()
    assert torch.equal(out[:, 1:], together[:, 1:])


def test_blocks_of_float32_fit_where_those_of_16_bits_do_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MMN_FAST_CACHE", str(tmp_path))
    limit = 227 * 1024
    for precision, element_size in (("fp16", 2), ("fp32", 4)):
        conv = GatherProposalConv(Case("k3", precision).settings)
        conv.capability = (9, 0)
        for videos in (1, 8):
            assert conv.known_config(videos).shared_bytes(element_size) <= limit
    many = block_sizes.chosen_config("gather", (9, 0), conv.plan, 18, 8)
    assert many.shared_bytes(4) > limit


def test_no_videos_give_no_rows() -> None:
    c = Case("k3", "fp32")
    conv = c.conv()
    assert conv(c.padded(conv, c.inputs[:0])).shape == (c.plan.num_proposals, 0, 18)


def test_gather_conv_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    c = Case("k3", "fp32")
    conv = c.conv()
    good = c.padded(conv)
    for bad, message in (
        (good[1:], r"map_padded: expected \[49, B, 20\], got \[48, 1, 20\]"),
        (good.half(), "map_padded: expected torch.float32 on .*, got torch.float16"),
        (good.expand(-1, 2, -1), "map_padded: expected contiguous, got strides"),
    ):
        with pytest.raises(ValueError, match=message):
            conv(bad)
    with pytest.raises(ValueError, match="videos: expected 1 to 1369568 at once, got 1369569"):
        conv.prepare(1369569)
    with monkeypatch.context() as capturing:
        capturing.setattr(conv, "on_gpu", True)
        capturing.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with pytest.raises(ValueError, match=r"videos: expected prepare\(1\) before a graph is captured, got none"):
            conv(good)
    arguments = (c.plan, c.dtype, DEVICE)
    with pytest.raises(ValueError, match="weights, biases: expected 2 of each, got 1 and 2"):
        GatherProposalConv(ConvSettings(c.weights[:1], c.biases, *arguments))
    with pytest.raises(ValueError, match=r"weights\[1\]: expected \[18, 18, 3, 3\], got \[18, 18, 3, 2\]"):
        GatherProposalConv(ConvSettings([c.weights[0], c.weights[1][..., :2]], c.biases, *arguments))
    wide = [np.ones((2, 2, 11, 11), np.float32)]
    with pytest.raises(ValueError, match="plan: expected a kernel of at most 9, got 11"):
        GatherProposalConv(ConvSettings(wide, [np.ones(2, np.float32)], proposal_plan(1, (), 11, 1), *arguments[1:]))
    with pytest.raises(ValueError, match="dtype: expected one of .*, got torch.float64"):
        GatherProposalConv(ConvSettings(c.weights, c.biases, c.plan, torch.float64, DEVICE))
    with pytest.raises(ValueError, match="device: expected a CUDA device, .*, got meta"):
        GatherProposalConv(ConvSettings(c.weights, c.biases, c.plan, c.dtype, torch.device("meta")))


def test_shipped_choices_cover_every_preset_and_can_be_tuned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MMN_FAST_CACHE", str(tmp_path))
    for preset in PRESETS.values():
        for videos in (1, 7, 8, 500):
            plan, width = plan_for(preset), preset.conv_hidden_size
            # KiB of shared memory per block: 227 on sm_90, 163 on sm_80; sm_86 has only 99.
            for capability, limit in (((9, 0), 227), ((8, 0), 163)):
                config = block_sizes.chosen_config("gather", capability, plan, width, videos)
                assert config.shared_bytes() <= limit * 1024
    with pytest.raises(ValueError, match=r"device: expected compute capability 8.0 or later, got 7.5"):
        block_sizes.chosen_config("gather", (7, 5), plan, width, 1)
    monkeypatch.setenv("MMN_FAST_CACHE", str(tmp_path / "new"))
    key = block_sizes.choice_key(plan, width, 7)
    block_sizes.keep("sm_90", "another", LARGE)
    path = block_sizes.keep("sm_90", key, SMALL)
    assert block_sizes.chosen_config("gather", (9, 0), plan, width, 7) == SMALL
    assert block_sizes.chosen_config("gather", (9, 0), plan, width, 8) != SMALL
    assert sorted(path.parent.iterdir()) == [path]
    assert json.loads(path.read_text())["times"] == {}
    path.write_bytes(block_sizes.SHIPPED.read_bytes())
    block_sizes.keep("sm_90", "key", {"crop": [2.0], "gather": [1.0, 0.5]}, path)
    kept, shipped = (json.loads(file.read_text()) for file in (path, block_sizes.SHIPPED))
    assert kept == shipped | {"times": {"sm_90": {"key": {"crop": [2.0], "gather": [1.0, 0.5]}}}}
    path.write_text('{"choices": {"sm_90": {"key": {"block_rows": 3}}}}')
    with pytest.raises(ValueError, match=r"gather_choices.json: expected tuned choices"):
        block_sizes.chosen_config("gather", (9, 0), plan, width, 7)
