"""The losses of tubes equal the recorded official ones and the written-out formula, also if `corrected`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.golden import recipe
from mmn_fast.geometry import proposal_mask
from mmn_fast.presets import PRESETS
from mmn_fast.training.losses import LossParams, iou_loss
from mmn_fast.training.tube_losses import tube_contrastive_loss
from tests.tolerances import check_close

GOLDEN = Path(__file__).parent / "golden"
RECORD = json.loads((GOLDEN / "hcstvg_losses_7.json").read_text())
COUNTS = [video["num_tubes"] for video in RECORD["videos"]]
VIDEO_OF = torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))
PARAMS = PRESETS["hc-stvg"].loss


def golden_input(name: str, *shape: int) -> Tensor:
    return torch.from_numpy(recipe.normal(f"stvg.{name}", shape, RECORD["seed"]))


def test_the_preset_has_the_recorded_parameters() -> None:
    assert {name: getattr(PARAMS, name) for name in RECORD["loss_params"]} == RECORD["loss_params"]


def test_losses_and_gradients_equal_the_official_ones() -> None:
    n, joint = RECORD["num_clips"], RECORD["joint"]
    mask = torch.from_numpy(proposal_mask(n, (n - 1,)))
    with np.load(GOLDEN / "hcstvg_losses_7.npz") as arrays:
        target = torch.from_numpy(np.concatenate([arrays[f"video{v}.target_iou"] for v in range(len(COUNTS))]))
        map2d = golden_input("map2d", len(VIDEO_OF), joint, n, n).requires_grad_()
        sentences = torch.cat([golden_input(f"sent{v}", 1, joint) for v in range(len(COUNTS))]).requires_grad_()
        video, sentence = tube_contrastive_loss(map2d[:, :, mask].mT, sentences, VIDEO_OF, target[:, mask], PARAMS)
        scores = golden_input("iouscore", len(VIDEO_OF), n, n).sigmoid() * mask
        iou = iou_loss(scores, target, mask, PARAMS.min_iou, PARAMS.max_iou)
        for name, value in (("loss_vid", video), ("loss_sent", sentence), ("loss_iou", iou)):
            check_close(value.item(), RECORD[name], "golden_losses", what=name)
        (video + sentence).backward()
        assert map2d.grad is not None
        check_close(map2d.grad.sum((2, 3)), arrays["grad_map2d_sum"], "golden_gradients", what="map2d")
        check_close(sentences.grad, arrays["grad_sent"], "golden_gradients", what="sentences")


def small_batch(counts: list[int], cells: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tubes = sum(counts)
    video_of = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return normal(tubes, cells, 6), normal(len(counts), 6), video_of, normal(tubes, cells).sigmoid()


def written_out(
    proposals: Tensor, sentences: Tensor, video_of: Tensor, target: Tensor, params: LossParams, corrected: bool
) -> tuple[Tensor, Tensor]:
    """Compute the losses with every sum of the formula as a loop."""
    unit = torch.nn.functional.normalize(sentences, dim=-1)
    cells = torch.nn.functional.normalize(proposals, dim=-1)
    video_terms, sentence_terms = [], []
    for b in range(len(sentences)):
        tubes = [g for g in range(len(video_of)) if video_of[g] == b]
        best = max(target[g, p].item() for g in tubes for p in range(target.shape[1]))
        g_star, p_star = next((g, p) for g in tubes for p in range(target.shape[1]) if target[g, p] == best)
        t_star = g_star - tubes[0]
        if corrected and best == 0:
            continue
        pair = ((cells[g_star, p_star] @ unit[b] - params.margin) / params.tau_video).exp()
        others = [(cells[g_star, p_star] @ s / params.tau_video).exp() for o, s in enumerate(unit) if o != b]
        video_terms.append(-(pair / (pair + sum(others))).log())
        pair = ((cells[g_star, p_star] @ unit[b] - params.margin) / params.tau_sent).exp()
        total = pair + 1e-6
        for g in range(len(video_of)):
            for p in range(target.shape[1]):
                term, y = unit[b] @ cells[g, p], target[g, p].item()
                if corrected:
                    if g not in tubes or (y < params.negative_video_iou and y < best - 1e-6):
                        total = total + (term / params.tau_sent).exp()
                    continue
                if g == g_star:
                    h = int(y >= best - 1e-6)
                    a = (int(y < params.negative_video_iou) + h) * term - params.margin * h
                    total = total + (a / params.tau_sent).exp()
                if g != t_star:
                    total = total + (term / params.tau_sent).exp()
        sentence_terms.append(-(pair / total).log())
    if not video_terms:
        return torch.tensor(0.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    return torch.stack(video_terms).mean(), torch.stack(sentence_terms).mean()


@pytest.mark.parametrize("corrected", [False, True], ids=["full", "corrected"])
@pytest.mark.parametrize("counts", [[1], [3], [1, 1], [2, 3, 1], [4, 1, 2]], ids=str)
@pytest.mark.parametrize("targets", ["any", "low", "ties", "none"])
def test_losses_equal_the_formula(counts: list[int], corrected: bool, targets: str) -> None:
    proposals, sentences, video_of, target = small_batch(counts)
    if targets == "low":
        target = target * 0.4
    elif targets == "ties":
        target = (target * 4).round() / 4
    elif targets == "none":  # the first video has no tube near the truth
        target = target.masked_fill((video_of == 0)[:, None], 0)
    expected = written_out(proposals, sentences, video_of, target, PARAMS, corrected)
    found = tube_contrastive_loss(proposals, sentences, video_of, target, PARAMS, corrected)
    for name, ours, theirs in zip(("video", "sentence"), found, expected, strict=True):
        check_close(ours.item(), theirs.item(), "losses", "fp64", what=name)


def test_official_negatives_depend_on_a_video_s_place_in_the_batch_corrected_ones_do_not() -> None:
    proposals, sentences, video_of, target = small_batch([3, 3])
    places = [3, 4, 5, 0, 1, 2]  # the videos in the other order
    swapped = (proposals[places], sentences[[1, 0]], video_of, target[places])
    for corrected in (False, True):
        here = tube_contrastive_loss(proposals, sentences, video_of, target, PARAMS, corrected)
        there = tube_contrastive_loss(*swapped, PARAMS, corrected)
        assert torch.allclose(here[0], there[0])
        assert torch.allclose(here[1], there[1]) is corrected


@pytest.mark.parametrize("corrected", [False, True], ids=["full", "corrected"])
def test_a_batch_of_one_tube_has_finite_losses_and_gradients(corrected: bool) -> None:
    proposals, sentences, video_of, target = small_batch([1], cells=1)
    proposals.requires_grad_()
    for value in (target, torch.zeros_like(target)):
        proposals.grad = None
        sum(tube_contrastive_loss(proposals, sentences, video_of, value, PARAMS, corrected)).backward()  # type: ignore[union-attr]
        assert proposals.grad is not None
        assert proposals.grad.isfinite().all()


def test_sixteen_bit_embeddings_are_widened_first() -> None:
    proposals, sentences, video_of, target = small_batch([2, 2])
    wide = tube_contrastive_loss(proposals.half().float(), sentences.half().float(), video_of, target.float(), PARAMS)
    narrow = tube_contrastive_loss(proposals.half(), sentences.half(), video_of, target.float(), PARAMS)
    assert [x.item() for x in wide] == [x.item() for x in narrow]
