"""In fp32 on AMX, some models multiply bf16 terms: tests of the rule, and of emulated products on any host."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.golden import cases
from mmn_fast.features import pre_clips
from mmn_fast.geometry import plan_for, proposal_plan
from mmn_fast.kernels import reference
from mmn_fast.kernels.cpu import conv
from mmn_fast.kernels.folding import folded_layers
from mmn_fast.model import build_model
from tests.kernels.split_products import round_to_bf16, spectral_stack, split
from tests.tolerances import check_close


@pytest.fixture
def amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this host choose like a host with AMX."""
    monkeypatch.setattr(conv, "cpu_isa", lambda: "amx")


def _chosen(name: str, *, exact: bool = False) -> set[str]:
    preset = cases.load(name).preset
    widths = [(preset.hidden_size if n == 0 else preset.conv_hidden_size, preset.conv_hidden_size)
              for n in range(preset.conv_layers)]  # fmt: skip
    return {one.algorithm for one in conv.choose_algorithms(plan_for(preset), widths, exact=exact)}


@pytest.mark.parametrize("name", ["activitynet_full", "tacos_full", "hcstvg_full"])
def test_amx_splits_float32_where_scores_stay_near_and_exact_forbids_it(name: str, amx: None) -> None:
    assert _chosen(name) == {"fft-bf16x3"}
    assert not any("bf16" in algorithm for algorithm in _chosen(name, exact=True))


@pytest.mark.parametrize("name", ["charades_full", *cases.SMALL])
def test_amx_does_not_split_where_scores_would_be_too_far_off(name: str, amx: None) -> None:
    assert not any("bf16" in algorithm for algorithm in _chosen(name))


def test_no_measured_time_makes_a_layer_too_far_off_a_candidate(amx: None) -> None:
    preset = cases.load("charades_full").preset
    assert "fft-bf16x3" not in conv.candidates(plan_for(preset), 512, "fp32")
    assert "fft-bf16x3" in conv.candidates(plan_for(cases.load("tacos_full").preset), 512, "fp32")
    assert "fft-bf16" in conv.candidates(plan_for(preset), 512, "bf16")


def test_two_bf16_terms_keep_sixteen_bits() -> None:
    x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    high, low = split(x, 2)
    assert np.array_equal(high, round_to_bf16(x))
    assert np.abs(x - high - low).max() <= 2**-16 * np.abs(x).max()
    assert np.array_equal(high, torch.from_numpy(x).bfloat16().float().numpy())


def test_emulated_layers_are_the_reference_up_to_their_terms() -> None:
    plan, rng = proposal_plan(16, (15,), 3, 2), np.random.default_rng(0)
    weights = [(rng.standard_normal((6, 6, 3, 3)) / 7).astype(np.float32) for _ in range(2)]
    biases = [rng.standard_normal(6).astype(np.float32) for _ in range(2)]
    x = rng.standard_normal((2, len(plan.inputs), 6)).astype(np.float32)
    doubles = ([torch.from_numpy(a).double() for a in arrays] for arrays in (weights, biases))
    exact = reference.proposal_conv_packed(torch.from_numpy(x).double(), *doubles, plan).numpy()
    scale = np.abs(exact).max()
    check_close(spectral_stack(x, weights, biases, plan, [(0, 0)] * 2) / scale, exact / scale, "proposal_conv", "fft")
    two = spectral_stack(x, weights, biases, plan, [(2, 2)] * 2) / scale
    check_close(two, exact / scale, "proposal_conv", "fft-bf16x3")
    assert np.abs(two - exact / scale).max() > 1e-6, "as if nothing were lost"


@pytest.mark.long
@pytest.mark.parametrize("name", ["activitynet_full", "hcstvg_full"])
def test_emulated_products_stay_within_the_tolerance_of_float32(name: str) -> None:
    """Only the first video runs. TACoS would take most of an hour here; it was measured on AMX (benchmarks/results)."""
    case = cases.load(name)
    video, plan, state = case.videos[0], plan_for(case.preset), case.state()
    net = build_model(case.preset, case.text, state).double()
    weights, biases = folded_layers(state, case.preset.conv_layers)
    with torch.inference_mode():
        clips = torch.from_numpy(pre_clips(video.features, case.preset)).double()
        rows, columns = torch.from_numpy(plan.inputs).long().unbind(1)
        maps = net.moment_map(clips[None])[:, :, rows, columns].mT.float().numpy()
        out = torch.from_numpy(spectral_stack(maps, weights, biases, plan, [(2, 2)] * len(weights))).double()
        heads = net.proposal_conv.conv1x1_contrastive, net.proposal_conv.conv1x1_iou
        contrastive, iou = (F.normalize(F.linear(out, h.weight[:, :, 0, 0], h.bias), dim=-1)[0] for h in heads)
        ids = torch.from_numpy(video.token_ids)
        scores = net.score((contrastive, iou), net.encode_text(ids, (ids != 0).sum(1)))
    check_close(scores[0].numpy(), video.contrastive, "golden_maps", what=f"{name} contrastive")
    check_close(scores[1].numpy(), video.iou, "golden_maps_iou", what=f"{name} iou")
