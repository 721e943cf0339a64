"""Times one optimisation step, the package's beside the official way, on the same batch with the same losses.

The peer follows the official training, on the reference model: convolutions over the whole dense map, one call of the
text encoder per video, losses that loop over the videos of the batch, AdamW with PyTorch's defaults, gradients clipped
whatever their norm. Both start from the same weights, and dropout is off, so that losses can be compared. Later steps
of each continue from its own weights.

    python -m benchmarks.bench_training [--preset charades-sta] [--batch 4] [--threads 2] [--repeats 5]
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import alternate, record
from mmn_fast.geometry import cells_to_moments, plan_for, temporal_iou
from mmn_fast.model import MMN
from mmn_fast.presets import PRESETS, LossParams, TextEncoderConfig
from mmn_fast.training.data import Batch
from mmn_fast.training.losses import pairwise_iou
from mmn_fast.training.objective import Objective

# Four published videos of Charades-STA: duration, and sentences with their moments, in seconds.
VIDEOS = [
    (
        30.75,
        [
            ("person runs up the stairs.", 1.0, 11.0),
            ("a person watches another run up some stairs.", 1.0, 11.0),
        ],
    ),
    (
        27.25,
        [
            ("person runs to the window to look out.", 9.3, 14.4),
            ("a person sits in a chair.", 3.1, 11.8),
            ("person runs to the window.", 9.3, 14.4),
            ("person runs to the door.", 9.3, 14.4),
            ("a person sits on a chair.", 3.1, 11.8),
            ("the person sits in the chair momentarily.", 3.1, 11.8),
        ],
    ),
    (
        18.58,
        [
            ("a person stands in the bathroom holding a glass.", 0.0, 8.8),
            ("the person takes a bag from the bottom cabinet.", 12.7, 18.58),
        ],
    ),
    (
        21.08,
        [
            ("person sits in a chair.", 13.2, 20.8),
            ("person sits down on a chair.", 13.2, 20.8),
            ("person throwing a blanket onto the vacuum.", 10.7, 16.5),
            ("person they throw their clothes on to a nearby desk.", 6.9, 13.1),
        ],
    ),
]


def make_batch(num_videos: int, preset_name: str, vocab_size: int) -> Batch:
    """Make a batch of the sentences above, with random features and random word pieces: one per word, and two more."""
    preset, rng = PRESETS[preset_name], np.random.RandomState(0)
    cells = plan_for(preset).cells
    ids, video_of, ious, moments = [], [], [], []
    for video in range(num_videos):
        duration_s, sentences = VIDEOS[video % len(VIDEOS)]
        proposals = cells_to_moments(cells, duration_s, preset.num_clips)
        for sentence, start_s, end_s in sentences:
            ids.append(torch.from_numpy(rng.randint(1, vocab_size, len(sentence.split()) + 2)))
            video_of.append(video)
            moments.append(np.array([start_s, end_s], np.float32))
            ious.append(temporal_iou(proposals, moments[-1]))
    rows = rng.standard_normal((num_videos, preset.num_pre_clips, preset.input_size)).astype(np.float32)
    return Batch(
        F.normalize(torch.from_numpy(rows), dim=-1),
        torch.nn.utils.rnn.pad_sequence(ids, batch_first=True),
        torch.tensor([len(row) for row in ids]),
        torch.tensor(video_of),
        torch.from_numpy(np.array(ious, np.float32)),
        torch.from_numpy(np.array(moments)),
    )


class OfficialObjective:
    """Computes the losses like the official code: dense maps and loops over videos."""

    def __init__(self, model: MMN, batch: Batch) -> None:
        self.model, self.mask = model, model.mask
        rows = [batch.video_of == video for video in range(len(batch.pre_clips))]
        self.pre_clips = batch.pre_clips
        # Sentences are padded to the longest of their video; maps and moments are kept per video.
        self.lengths = [batch.lengths[row] for row in rows]
        self.token_ids = [
            batch.token_ids[row, : int(lengths.max())] for row, lengths in zip(rows, self.lengths, strict=True)
        ]
        side = len(model.mask)
        self.iou2d = [torch.zeros(int(row.sum()), side, side) for row in rows]
        for row, iou2d in zip(rows, self.iou2d, strict=True):
            iou2d[:, self.mask] = batch.iou[row]
        self.moments = [batch.moments[row] for row in rows]

    def __call__(self) -> Tensor:
        map2d, map2d_iou = self.model.proposal_conv(self.model.moment_map(self.pre_clips))
        text = [
            self.model.text_encoder(ids, lengths) for ids, lengths in zip(self.token_ids, self.lengths, strict=True)
        ]
        scores = []
        for video, (_, sentences) in enumerate(text):
            cells = F.normalize(map2d_iou[video], dim=0).flatten(1)
            cosine = (F.normalize(sentences, dim=1) @ cells).view(-1, *self.mask.shape)
            scores.append((10 * cosine).sigmoid() * self.mask)
        loss_iou = self._iou_loss(torch.cat(scores), torch.cat(self.iou2d))
        return torch.stack([*self._contrastive(map2d, [sentences for sentences, _ in text]), loss_iou])

    def _iou_loss(self, scores2d: Tensor, iou2d: Tensor) -> Tensor:
        params = self.model.preset.loss
        target = (iou2d.masked_select(self.mask) - params.min_iou) / (params.max_iou - params.min_iou)
        return F.binary_cross_entropy(scores2d.masked_select(self.mask), target.clamp(0, 1))

    def _contrastive(self, map2d: Tensor, sentences: list[Tensor]) -> tuple[Tensor, Tensor]:
        params: LossParams = self.model.preset.loss
        num_videos, joint = map2d.shape[:2]
        cells = F.normalize(map2d.masked_select(self.mask).view(num_videos, joint, -1), dim=1)
        every = F.normalize(torch.cat(sentences), dim=1)
        kept = torch.ones(len(every), len(every))
        start = 0
        pairs, proposal_logits, sentence_logits = [], [], []
        for video, video_sentences in enumerate(sentences):
            count, k = len(video_sentences), params.num_positive
            block = slice(start, start + count)
            kept[block, block] = (
                pairwise_iou(self.moments[video], self.moments[video]) < params.sent_removal_iou
            ).float()
            own = F.normalize(video_sentences, dim=1)
            iou = self.iou2d[video].masked_select(self.mask).view(count, -1)
            best = iou.topk(k, dim=1).indices
            positive = cells[video].index_select(1, best.flatten()).view(joint, count, k).permute(1, 2, 0)
            pairs.append(torch.bmm(positive, own[:, :, None])[..., 0] - params.margin)
            proposal_logits.append((positive.reshape(-1, joint) @ every.mT).view(count, k, -1))
            same = (own @ cells[video]) * (iou < params.negative_video_iou).float()
            others = [v for v in range(num_videos) if v != video]
            other = own @ cells[others].transpose(0, 1).reshape(joint, -1)
            sentence_logits.append(
                torch.cat([pairs[-1][..., None], *(x[:, None].repeat(1, k, 1) for x in (same, other))], dim=2)
            )
            start += count
        kept = (kept + torch.eye(len(every))).clamp(0, 1)
        pair = torch.cat(pairs)
        margin = params.margin * torch.eye(len(every))
        proposal = ((torch.cat(proposal_logits).transpose(0, 1) - margin) / params.tau_video).exp() * kept
        loss_video = (proposal.sum(2).log() - pair.mT / params.tau_video).mean()
        sentence = (torch.cat(sentence_logits) / params.tau_sent).exp().sum(2)
        return loss_video, ((sentence + 1e-6).log() - pair / params.tau_sent).mean()


def stepper(
    model: MMN, objective: Callable[[], Tensor], learning_rate: float, fused: bool, weight: float
) -> Callable[[], Tensor]:
    """Make a function that does one step and returns the losses."""
    text = [parameter for name, parameter in model.named_parameters() if "bert" in name]
    rest = [parameter for name, parameter in model.named_parameters() if "bert" not in name]
    optimizer = torch.optim.AdamW(
        [{"params": rest}, {"params": text, "lr": learning_rate / 10}],
        lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-5, fused=fused or None,
    )  # fmt: skip

    def step() -> Tensor:
        optimizer.zero_grad()
        losses = objective()
        (weight * (losses[0] + losses[1]) + losses[2]).backward()
        if fused:
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            if norm > 5:
                torch.nn.utils.clip_grads_with_norm_(model.parameters(), 5.0, norm)
        else:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        return losses.detach()

    return step


def main() -> None:
    """Run the benchmark and append its line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="charades-sta", choices=PRESETS)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    preset, text = PRESETS[arguments.preset], TextEncoderConfig()
    batch = make_batch(arguments.batch, preset.name, text.vocab_size)
    torch.manual_seed(0)
    peer = MMN(preset, text).train()
    peer.text_encoder.bert.dropout = 0.0
    ours = copy.deepcopy(peer)
    for conv in ours.proposal_conv.convs:
        conv.to(memory_format=torch.channels_last)
    objective = Objective(ours)
    recipe = preset.recipe
    steps = {
        "official": stepper(
            peer, OfficialObjective(peer, batch), recipe.learning_rate, False, recipe.contrastive_weight
        ),
        "mmn_fast": stepper(ours, lambda: objective(batch), recipe.learning_rate, True, recipe.contrastive_weight),
    }
    # The error is that of the first step, from the same weights; later steps diverge like any two float32 runs.
    first = {name: step() for name, step in steps.items()}
    error = (first["official"] - first["mmn_fast"]).abs() / first["official"].abs()
    timings = alternate(steps, arguments.repeats, warmup=1)
    ratio = timings["official"].median_ms / timings["mmn_fast"].median_ms
    record(
        "bench_training", timings, float(error.max()), preset=preset.name, threads=arguments.threads,
        batch=arguments.batch, sentences=len(batch.video_of), precision="fp32", ratio=ratio,
        losses={name: losses.tolist() for name, losses in first.items()},
    )  # fmt: skip
    for name, timing in timings.items():
        print(f"{name:10} {timing.median_ms:8.0f} ms  ({timing.p20_ms:.0f} to {timing.p80_ms:.0f})")
    print(f"ratio {ratio:.2f}, losses {first['mmn_fast'].tolist()} differ by {float(error.max()):.1e} relative")


if __name__ == "__main__":
    main()
