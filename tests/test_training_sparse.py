"""The training pass on existing cells equals the dense reference model in training mode, in float64."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from mmn_fast.geometry import plan_for
from mmn_fast.model import MMN
from mmn_fast.presets import PRESETS, Preset
from mmn_fast.training.sparse import encode_video, training_plan
from tests.tolerances import check_close
from tests.training_task import CONV_PRESET, TEXT

NARROW = [
    dataclasses.replace(preset, feature_streams=(7,), hidden_size=6, conv_hidden_size=5, joint_size=4)
    for preset in [*PRESETS.values(), CONV_PRESET]
]
SMALL = NARROW[0], NARROW[-1]


def name_of(preset: Preset) -> str:
    return preset.name


def dense(model: MMN, pre_clips: Tensor) -> list[Tensor]:
    """Compute the reference's embeddings before normalisation."""
    return [
        branch[:, :, model.cell_rows, model.cell_columns].mT
        for branch in model.proposal_conv(model.moment_map(pre_clips))
    ]


def pair_of_models(preset: Preset) -> tuple[MMN, MMN, Tensor]:
    torch.manual_seed(0)
    model = MMN(preset, TEXT).double().train()
    return model, copy.deepcopy(model), torch.randn(3, preset.num_pre_clips, preset.input_size, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("preset", NARROW, ids=name_of)
def test_values_gradients_and_statistics_are_the_dense_ones(preset: Preset) -> None:
    reference, model, pre_clips = pair_of_models(preset)
    expected, actual = dense(reference, pre_clips), encode_video(model, pre_clips)
    weights = [torch.randn_like(branch) for branch in expected]
    for branch, (a, e) in enumerate(zip(actual, expected, strict=True)):
        check_close(a.detach(), e.detach(), "training_pass", "fp64", f"branch {branch}")
    sum((a * w).sum() for a, w in zip(actual, weights, strict=True)).backward()
    sum((e * w).sum() for e, w in zip(expected, weights, strict=True)).backward()
    for (name, a), e in zip(model.named_parameters(), reference.parameters(), strict=True):
        if not name.startswith("text_encoder"):
            assert a.grad is not None
            assert e.grad is not None
            check_close(a.grad, e.grad, "training_pass", "fp64", name)
    for (name, a), e in zip(model.named_buffers(), reference.buffers(), strict=True):
        check_close(a, e, "training_pass", "fp64", name)


@pytest.mark.parametrize("preset", SMALL, ids=name_of)
def test_running_statistics_follow_the_dense_ones_over_steps(preset: Preset) -> None:
    reference, model, pre_clips = pair_of_models(preset)
    for step in range(3):
        dense(reference, pre_clips + step)
        encode_video(model, pre_clips + step)
    reference.eval()
    model.eval()
    for a, e in zip(model.encode_video(pre_clips), reference.encode_video(pre_clips), strict=True):
        check_close(a.detach(), e.detach(), "training_pass", "fp64")


def test_bias_before_batch_norm_has_a_zero_gradient_and_moves_the_running_mean() -> None:
    _, model, pre_clips = pair_of_models(SMALL[0])
    conv, norm = model.proposal_conv.convs[2], model.proposal_conv.bn[2]
    sum(branch.sum() for branch in encode_video(model, pre_clips)).backward()
    assert isinstance(conv.bias, Tensor)
    assert conv.bias.grad is not None
    assert not conv.bias.grad.any()
    before = norm.running_mean.clone()  # type: ignore[operator,union-attr]
    with torch.no_grad():
        conv.bias += 1
    encode_video(model, pre_clips)
    moved = norm.running_mean - 1.9 * before  # type: ignore[operator]  # the first step began at 0
    check_close(moved, torch.full_like(moved, 0.1), "training_pass", "fp64")


@pytest.mark.parametrize("preset", SMALL, ids=name_of)
def test_small_blocks_give_the_same(preset: Preset, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, model, pre_clips = pair_of_models(preset)
    whole = encode_video(reference, pre_clips)
    monkeypatch.setattr("mmn_fast.training.sparse._GATHERED_VALUES", 1)
    for a, e in zip(encode_video(model, pre_clips), whole, strict=True):
        check_close(a.detach(), e.detach(), "training_pass", "fp64")


@pytest.mark.parametrize("preset", SMALL, ids=name_of)
def test_channels_last_weights_give_the_same(preset: Preset) -> None:
    reference, model, pre_clips = pair_of_models(preset)
    for conv in model.proposal_conv.convs:
        conv.to(memory_format=torch.channels_last)
    for a, e in zip(encode_video(model, pre_clips), encode_video(reference, pre_clips), strict=True):
        check_close(a.detach(), e.detach(), "training_pass", "fp64")


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_stays_close(precision: torch.dtype) -> None:
    reference, model, pre_clips = pair_of_models(SMALL[0])
    reference, model, pre_clips = reference.float(), model.float(), pre_clips.float()
    with torch.autocast("cpu", dtype=precision):
        fast = encode_video(model, pre_clips)
    sum(branch.float().square().sum() for branch in fast).backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in model.parameters())
    whole = encode_video(reference, pre_clips)
    for a, e in zip(fast, whole, strict=True):
        error = (a.float() - e).norm() / e.norm()
        assert error < 0.05, f"relative error {error:.3g}: 8 layers of operands of 8 or 11 bits"


@pytest.mark.parametrize(
    ("name", "share"),
    [("charades-sta", 0.50), ("activitynet-captions", 0.58), ("tacos", 0.53), ("hc-stvg", 0.54)],
)
def test_plan_computes_about_half_of_the_dense_products(name: str, share: float) -> None:
    plan = training_plan(PRESETS[name], torch.device("cpu"))
    assert plan.products <= share * plan_for(PRESETS[name]).dense_taps
