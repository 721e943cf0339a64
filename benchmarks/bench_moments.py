"""From embeddings to moments: the engine's score() beside the official post-processing.

The peer does what the official inference and evaluation do for one video: normalise both maps, multiply with the
sentences over all N x N cells, sigmoid, mask, fuse, then per sentence nonzero, sort and the greedy NMS loop.

    python -m benchmarks.bench_moments [--threads 2] [--repeats 7]
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.timing import alternate, record
from mmn_fast.geometry import cells_to_moments, plan_for
from mmn_fast.kernels import native, reference
from mmn_fast.postprocess import fuse_scores
from mmn_fast.presets import PRESETS, Preset

TOP_K = 5
DURATION_S = 60.0


def official_moments(
    maps: list[torch.Tensor], text: list[torch.Tensor], mask: torch.Tensor, preset: Preset, duration_s: float
) -> list[torch.Tensor]:
    """Moments [<= P, 2] per sentence from dense maps [J, N, N] and sentences [S, J], contrastive then iou."""
    side = preset.num_clips
    contrastive, iou = (
        (F.normalize(sentences, dim=1) @ F.normalize(map2d, dim=0).flatten(1)).reshape(-1, side, side)
        for map2d, sentences in zip(maps, text, strict=True)
    )
    fused = (contrastive * mask * 0.5 + 0.5).pow(preset.score_power) * ((10 * iou).sigmoid() * mask)
    kept = []
    for score2d in fused:
        cells = score2d.nonzero()
        order = score2d[cells[:, 0], cells[:, 1]].argsort(descending=True)
        cells[:, 1] += 1
        moments = (cells * duration_s / side)[order]
        suppressed = torch.zeros(len(moments), dtype=torch.bool)
        for i in range(len(moments) - 1):
            if suppressed[i]:
                continue
            start, end = moments[i + 1 :].unbind(1)
            overlap = (end.min(moments[i, 1]) - start.max(moments[i, 0])).clamp(min=0)
            hull = end.max(moments[i, 1]) - start.min(moments[i, 0])
            suppressed[i + 1 :][overlap / hull > preset.nms_iou] = True
        kept.append(moments[~suppressed])
    return kept


def main() -> None:
    """Run the benchmark and append its lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sentences", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)

    for name in ("charades-sta", "activitynet-captions", "tacos"):
        preset = PRESETS[name]
        plan = plan_for(preset)
        mask = torch.from_numpy(plan.mask)
        smooth = [torch.randn(preset.joint_size, 1, 1, generator=generator) for _ in range(2)]
        maps = [
            base + torch.randn(preset.joint_size, preset.num_clips, preset.num_clips, generator=generator)
            for base in smooth
        ]
        text = [torch.randn(options.sentences, preset.joint_size, generator=generator) for _ in range(2)]
        rows, columns = torch.from_numpy(plan.cells).long().unbind(1)
        packed = [F.normalize(map2d[:, rows, columns].mT, dim=1).contiguous() for map2d in maps]
        sentences = [F.normalize(branch, dim=1) for branch in text]
        seconds = cells_to_moments(plan.cells, DURATION_S, preset.num_clips)

        def ours(
            packed: list[torch.Tensor] = packed,
            sentences: list[torch.Tensor] = sentences,
            preset: Preset = preset,
            seconds: np.ndarray = seconds,
        ) -> np.ndarray:
            contrastive, iou = reference.moment_scores(*packed, *sentences)
            fused = fuse_scores(contrastive.numpy(), iou.numpy(), preset)
            chosen = native.temporal_nms(fused, seconds, preset.nms_iou, TOP_K, threads=options.threads)
            return seconds[chosen]

        def official(
            maps: list[torch.Tensor] = maps,
            text: list[torch.Tensor] = text,
            mask: torch.Tensor = mask,
            preset: Preset = preset,
        ) -> list[torch.Tensor]:
            return official_moments(maps, text, mask, preset, DURATION_S)

        theirs = np.stack([moments[:TOP_K].numpy() for moments in official()])
        error = float(np.abs(theirs - ours()).max())
        timings = alternate({"mmn_fast": ours, "official": official}, options.repeats, warmup=1)
        record("bench_moments", timings, error, preset=name, sentences=options.sentences, threads=options.threads)
        mine, peer = timings["mmn_fast"].median_ms, timings["official"].median_ms
        print(
            f"{name:22} mmn_fast {mine:8.2f} ms   official {peer:9.2f} ms   ratio {peer / mine:6.1f}"
            f"   largest difference of the moments {error:.1e} s"
        )


if __name__ == "__main__":
    main()
