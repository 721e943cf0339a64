"""The losses equal the recorded official ones, are sums over pairs, add up over parts, and stay finite."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.golden import recipe
from mmn_fast.errors import InputError
from mmn_fast.geometry import cells_to_moments, proposal_mask, temporal_iou
from mmn_fast.training.losses import (
    LossParams,
    contrastive_loss,
    contrastive_loss_packed,
    iou_logits_packed,
    iou_loss,
    pairwise_iou,
)
from tests.tolerances import check_close

GOLDEN = Path(__file__).parent / "golden"
RECORD = json.loads((GOLDEN / "losses_and_recall_5.json").read_text())
DATASETS = list(RECORD["datasets"])
JOINT, SEED, NUM_VIDEOS = RECORD["joint"], RECORD["seed"], 4


@dataclasses.dataclass
class Case:
    """A dataset's recorded inputs, rebuilt."""

    map2d: Tensor
    sentences: list[Tensor]
    iou2d: list[Tensor]
    moments: list[Tensor]
    scores2d: list[Tensor]
    mask: Tensor
    params: LossParams
    spec: dict[str, Any]


def load(dataset: str, dtype: torch.dtype = torch.float32) -> Case:
    spec = RECORD["datasets"][dataset]
    n = spec["num_clips"]
    mask = proposal_mask(n, spec["pooling_counts"])
    every = np.argwhere(np.ones((n, n), bool)).astype(np.int32)

    def normal(name: str, *shape: int) -> Tensor:
        return torch.from_numpy(recipe.normal(name, shape, SEED)).to(dtype)

    sentences, iou2d, moments, scores = [], [], [], []
    for number, video in enumerate(spec["videos"][:NUM_VIDEOS]):
        spans = np.array(video["moments"], np.float32)
        grid = cells_to_moments(every, video["duration"], n)
        iou2d.append(torch.from_numpy(np.stack([temporal_iou(grid, span) for span in spans])).to(dtype).view(-1, n, n))
        moments.append(torch.from_numpy(spans).to(dtype))
        sentences.append(normal(f"loss.{dataset}.sent{number}", len(spans), JOINT).requires_grad_())
        scores.append(normal(f"loss.{dataset}.iouscore{number}", len(spans), n, n).sigmoid() * torch.from_numpy(mask))
    return Case(
        normal(f"loss.{dataset}.map2d", NUM_VIDEOS, JOINT, n, n).requires_grad_(), sentences, iou2d, moments,
        scores, torch.from_numpy(mask), LossParams(**spec["loss_params"]), spec,
    )  # fmt: skip


def losses(case: Case) -> tuple[Tensor, Tensor]:
    return contrastive_loss(case.map2d, case.sentences, case.iou2d, case.moments, case.mask, case.params)


@pytest.mark.parametrize("dataset", DATASETS)
def test_losses_equal_the_official_ones(dataset: str) -> None:
    case = load(dataset)
    video, sentence = losses(case)
    iou = iou_loss(case.scores2d, case.iou2d, case.mask, case.params.min_iou, case.params.max_iou)
    for name, value in (("loss_vid", video), ("loss_sent", sentence), ("loss_iou", iou)):
        check_close(value.item(), case.spec[name], "golden_losses", what=f"{dataset} {name}")


@pytest.mark.parametrize("dataset", DATASETS)
def test_gradients_equal_the_official_ones(dataset: str) -> None:
    case = load(dataset)
    with np.load(GOLDEN / "losses_and_recall_5.npz") as arrays:
        sum(losses(case), torch.tensor(0.0)).backward()
        assert case.map2d.grad is not None
        map_grad = case.map2d.grad.sum((2, 3))
        check_close(map_grad, arrays[f"{dataset}.grad_map2d_sum"], "golden_gradients", what="map2d")
        check_close(case.sentences[0].grad, arrays[f"{dataset}.grad_sent0"], "golden_gradients", what="sentences")


@pytest.mark.parametrize("dataset", DATASETS)
def test_targets_equal_the_official_ones(dataset: str) -> None:
    case = load(dataset)
    with np.load(GOLDEN / "losses_and_recall_5.npz") as arrays:
        np.testing.assert_array_equal(case.iou2d[0][:, case.mask].numpy(), arrays[f"{dataset}.iou2d0"])


def naive_losses(
    proposals: Tensor, sentences: list[Tensor], iou: list[Tensor], moments: list[Tensor], params: LossParams
) -> tuple[Tensor, Tensor]:
    """Compute the losses pair by pair, with every sum of p(i_s | v_i) and p(i_v | s_i) written out."""
    unit = [torch.nn.functional.normalize(s, dim=-1) for s in sentences]
    cells = torch.nn.functional.normalize(proposals, dim=-1)
    video_terms, sentence_terms = [], []
    for v, video_sentences in enumerate(unit):
        overlap = pairwise_iou(moments[v], moments[v])
        for s, sentence in enumerate(video_sentences):
            for cell in iou[v][s].topk(params.num_positive).indices.tolist():
                pair = cells[v, cell] @ sentence - params.margin
                total = (pair / params.tau_video).exp()
                for other, other_sentences in enumerate(unit):
                    for t, negative in enumerate(other_sentences):
                        if other != v or (t != s and overlap[s, t] < params.sent_removal_iou):
                            total = total + (cells[v, cell] @ negative / params.tau_video).exp()
                video_terms.append(total.log() - pair / params.tau_video)
                total = (pair / params.tau_sent).exp()
                for other in range(len(cells)):
                    for p in range(cells.shape[1]):
                        negative = other != v or bool(iou[v][s, p] < params.negative_video_iou)
                        total = total + (cells[other, p] @ sentence / params.tau_sent * negative).exp()
                sentence_terms.append((total + 1e-6).log() - pair / params.tau_sent)
    return torch.stack(video_terms).mean(), torch.stack(sentence_terms).mean()


def small_batch(counts: list[int], proposals: int = 5) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(sum(counts))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    iou = [normal(count, proposals).sigmoid() for count in counts]
    moments = [normal(count, 2).abs().cumsum(1) for count in counts]
    return normal(len(counts), proposals, 6), [normal(count, 6) for count in counts], iou, moments


def packed(
    batch: tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]], params: LossParams, **options: Any
) -> tuple[Tensor, Tensor]:
    proposals, sentences, iou, moments = batch
    video_of = torch.arange(len(sentences)).repeat_interleave(torch.tensor([len(s) for s in sentences]))
    return contrastive_loss_packed(
        proposals, torch.cat(sentences), video_of, torch.cat(iou), torch.cat(moments), params, **options
    )


@pytest.mark.parametrize("num_positive", [1, 3])
@pytest.mark.parametrize("counts", [[1], [3], [2, 1, 4]], ids=str)
def test_contrastive_loss_is_the_sum_over_pairs(counts: list[int], num_positive: int) -> None:
    params = LossParams(tau_video=0.2, tau_sent=0.15, num_positive=num_positive)
    batch = small_batch(counts)
    for actual, expected in zip(packed(batch, params), naive_losses(*batch, params), strict=True):
        check_close(actual.item(), expected.item(), "losses", "fp64")


def test_loss_of_parts_of_a_batch_adds_up_to_the_whole() -> None:
    batch, params = small_batch([2, 1, 4]), LossParams(num_positive=2)
    whole = packed(batch, params)
    first, rest = (packed(batch, params, positives_of=part) for part in (slice(0, 3), slice(3, 7)))
    for term in range(2):
        check_close(((3 * first[term] + 4 * rest[term]) / 7).item(), whole[term].item(), "losses", "fp64")


def test_without_cross_video_negatives_videos_do_not_see_each_other() -> None:
    batch, params = small_batch([2, 1, 4]), LossParams()
    together = packed(batch, params, cross_video=False)
    alone = [packed(tuple([item[v : v + 1] for item in batch]), params) for v in range(3)]  # type: ignore[arg-type]
    for term in range(2):
        mean = sum(count * loss[term].item() for count, loss in zip([2, 1, 4], alone, strict=True)) / 7
        check_close(together[term].item(), mean, "losses", "fp64")


def test_losses_are_finite_at_a_tiny_temperature() -> None:
    batch = small_batch([2, 2])
    assert all(loss.isfinite() for loss in packed(batch, LossParams(tau_video=1e-4, tau_sent=1e-4)))


def test_contrastive_loss_refuses_counts_that_differ() -> None:
    case = load(DATASETS[0])
    with pytest.raises(InputError, match=r"moments: expected \[2, 5, 2, 4\] sentences per video, got \[5, 2, 4\]"):
        contrastive_loss(case.map2d, case.sentences, case.iou2d, case.moments[1:], case.mask, case.params)
    with pytest.raises(InputError, match=r"sentences: expected one entry per video of map2d, 3, got 4"):
        contrastive_loss(case.map2d[1:], case.sentences, case.iou2d, case.moments, case.mask, case.params)


def test_iou_logits_are_those_of_the_sentences_own_video() -> None:
    proposals, sentences, _, _ = small_batch([2, 1, 4])
    logits = iou_logits_packed(proposals, torch.cat(sentences), torch.tensor([0, 0, 1, 2, 2, 2, 2]))
    expected = [
        10 * torch.cosine_similarity(proposals[v], sentence, dim=-1)
        for v, video_sentences in enumerate(sentences)
        for sentence in video_sentences
    ]
    check_close(logits, torch.stack(expected), "losses", "fp64")
