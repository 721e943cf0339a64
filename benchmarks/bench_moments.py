"""Times the way from embeddings to moments: the native engine's whole score(), beside the official post-processing.

The peer follows the official inference and evaluation of one video: normalise both maps, multiply them with the
sentences over all N x N cells, sigmoid, mask, fuse, then per sentence nonzero, sort and the greedy NMS loop.

    python -m benchmarks.bench_moments [--presets tacos ...] [--sentences 32] [--threads 2] [--repeats 7]
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.timing import alternate, record
from benchmarks.video_peers import load_case
from mmn_fast.backends.base import Settings
from mmn_fast.backends.native_cpu import NativeBackend
from mmn_fast.embeddings import TextEmbeddings, VideoEmbeddings
from mmn_fast.engine import Engine
from mmn_fast.geometry import plan_for
from mmn_fast.presets import Preset
from mmn_fast.types import Moment

TOP_K = 5
DURATION_S = 60.0


def official_moments(
    maps: list[torch.Tensor], text: list[torch.Tensor], mask: torch.Tensor, preset: Preset, duration_s: float
) -> list[torch.Tensor]:
    """Compute moments [<= P, 2] per sentence from dense maps [J, N, N] and sentences [S, J]: contrastive, then iou."""
    side = preset.num_clips
    contrastive, iou = (
        (F.normalize(sentences, dim=1) @ F.normalize(map2d, dim=0).flatten(1)).reshape(-1, side, side)
        for map2d, sentences in zip(maps, text, strict=True)
    )
    contrastive, iou = contrastive * mask, (10 * iou).sigmoid() * mask
    product = preset.score_fusion == "product"
    fused = contrastive * iou if product else (contrastive * 0.5 + 0.5).pow(preset.score_power) * iou
    kept = []
    for score2d in fused:
        cells = score2d.nonzero()
        order = score2d[cells[:, 0], cells[:, 1]].argsort(descending=True)
        cells[:, 1] += 1
        moments = (cells * duration_s / side)[order]
        suppressed = torch.zeros(len(moments), dtype=torch.bool, device=moments.device)
        for i in range(len(moments) - 1):
            if suppressed[i]:
                continue
            start, end = moments[i + 1 :].unbind(1)
            overlap = (end.min(moments[i, 1]) - start.max(moments[i, 0])).clamp(min=0)
            hull = end.max(moments[i, 1]) - start.min(moments[i, 0])
            suppressed[i + 1 :][overlap / hull > preset.nms_iou] = True
        kept.append(moments[~suppressed])
    return kept


def bench(case: str, sentences: int, threads: int, repeats: int, dry: bool) -> None:
    """Measure one preset, print and record it."""
    model = load_case(case)
    preset, plan = model.preset, plan_for(model.preset)
    engine = Engine(model, NativeBackend(model, Settings("cpu", "fp32", threads)))
    generator = torch.Generator().manual_seed(0)
    smooth = [torch.randn(preset.joint_size, 1, 1, generator=generator) for _ in range(2)]
    maps = [
        base + torch.randn(preset.joint_size, preset.num_clips, preset.num_clips, generator=generator)
        for base in smooth
    ]
    queries = [torch.randn(sentences, preset.joint_size, generator=generator) for _ in range(2)]
    mask = torch.from_numpy(plan.mask)
    rows, columns = torch.from_numpy(plan.cells).long().unbind(1)
    packed = [F.normalize(map2d[:, rows, columns].mT, dim=1).contiguous().numpy()[None] for map2d in maps]
    video = VideoEmbeddings(packed[0], packed[1], model.fingerprint, (DURATION_S,), ("",))
    embedded = [F.normalize(branch, dim=1).numpy() for branch in queries]
    text = TextEmbeddings(embedded[0], embedded[1], model.fingerprint, ("",) * sentences)

    def ours() -> list[list[Moment]]:
        return engine.score(video, text, top_k=TOP_K)[0]

    def official() -> list[torch.Tensor]:
        return official_moments(maps, queries, mask, preset, DURATION_S)

    differences = [
        np.abs(theirs[:TOP_K].numpy() - [(m.start_s, m.end_s) for m in mine]).max()
        for mine, theirs in zip(ours(), official(), strict=True)
    ]
    error = float(max(differences))
    timings = alternate({"mmn_fast": ours, "official": official}, repeats, warmup=1)
    mine, peer = timings["mmn_fast"].median_ms, timings["official"].median_ms
    if not dry:
        facts = {"preset": preset.name, "stage": "score", "batch": 1, "sentences": sentences, "top_k": TOP_K}
        record("bench_moments", timings, error, **facts, threads=threads, ratios={"official": peer / mine})
    print(
        f"{preset.name:22} {sentences} sentences  mmn_fast {mine:8.3f} ms   official {peer:9.2f} ms"
        f"   ratio {peer / mine:6.1f}   largest difference of the moments {error:.1e} s",
        flush=True,
    )


def run(presets: list[str], sentences: int, threads: int, repeats: int, dry: bool) -> None:
    """Measure the full-size golden cases of some presets, named like "tacos"."""
    torch.set_num_threads(threads)
    for preset in presets:
        bench(f"{preset}_full", sentences, threads, repeats, dry)


def main() -> None:
    """Run the benchmark and append its lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["charades", "activitynet", "tacos", "hcstvg"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sentences", type=int, default=32)
    parser.add_argument("--dry-run", action="store_true", help="record nothing")
    options = parser.parse_args()
    run(options.presets, options.sentences, options.threads, options.repeats, options.dry_run)


if __name__ == "__main__":
    main()
