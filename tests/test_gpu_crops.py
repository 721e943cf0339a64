"""The cropped proposal convolution: its boxes, and its values compared with the packed reference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from mmn_fast.geometry import plan_for
from mmn_fast.geometry_crops import crop_plan, cropped_taps, padded_rows
from mmn_fast.kernels import reference
from mmn_fast.kernels.gpu.conv.crop import ConvSettings, CropProposalConv
from mmn_fast.presets import PRESETS
from tests.tolerances import check_close

# Shares of the dense work. Boxes are rectangles, so they leave out little of a small map with few diagonals.
CROPPED = {"charades-sta": 0.61, "activitynet-captions": 0.61, "tacos": 0.58, "hc-stvg": 0.75, "shapes": 0.9}


@pytest.mark.parametrize("name", list(PRESETS))
def test_boxes_hold_every_needed_cell_once_and_save_work(name: str) -> None:
    plan = plan_for(PRESETS[name])
    for layer, boxes in zip(plan.layers, crop_plan(plan), strict=True):
        hits = np.zeros((layer.side, layer.side), int)
        for box in boxes:
            hits[box.top : box.bottom, box.left : box.right] += 1
        assert hits.max() == 1
        assert (hits[layer.cells[:, 0], layer.cells[:, 1]] == 1).all()
    assert plan.cell_taps < cropped_taps(plan) < CROPPED.get(name, 1) * plan.dense_taps


@pytest.mark.parametrize("name", ["charades-sta", "shapes", "hc-stvg"])
@pytest.mark.parametrize("B", [1, 3])
def test_the_cropped_convolution_matches_the_packed_reference(name: str, B: int) -> None:
    plan = plan_for(PRESETS[name])
    k, widths, rng = plan.kernel, [5, *[6] * len(plan.layers)], np.random.default_rng(B)
    weights = [
        rng.standard_normal((out, into, k, k)).astype(np.float32) / 3 for into, out in itertools.pairwise(widths)
    ]
    biases = [rng.standard_normal(out).astype(np.float32) for out in widths[1:]]
    inputs = torch.from_numpy(rng.standard_normal((B, len(plan.inputs), widths[0])).astype(np.float32))
    side = plan.num_clips + 2 * plan.border
    padded = torch.zeros(side**2, B, widths[0])
    padded[torch.from_numpy(padded_rows(plan, plan.inputs)).long()] = inputs.transpose(0, 1)
    found = CropProposalConv(ConvSettings(weights, biases, plan, torch.float32, torch.device("cpu")))(padded)
    exact = reference.proposal_conv_packed(
        inputs.double(), *([torch.from_numpy(a).double() for a in part] for part in (weights, biases)), plan
    )
    assert found.shape == (plan.num_proposals, B, widths[-1])
    check_close(found.transpose(0, 1) / exact.abs().max(), exact / exact.abs().max(), "proposal_conv", "direct", name)
