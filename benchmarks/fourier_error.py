"""Measures the error of FFT tiles in fp16, per size, without a GPU: the transforms' CPU twins, products in PyTorch.

Every value that the kernels store is rounded to fp16 as in the kernels; sums are float32. The yardstick is a direct
convolution with the same maps and operands in fp16. The rest of the model is float64. The error is the largest error of
a fused score, over all proposals and sentences of a golden case.

    python -m benchmarks.fourier_error [--cases charades_small ...] [--videos 150]

With --videos it compares the demo model's answers on a test split instead: recall and the best proposals.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor

import mmn_fast
from benchmarks.golden import cases
from mmn_fast.arrays import Float32
from mmn_fast.backends.torch_ref import TorchBackend
from mmn_fast.demo.split import draw_split
from mmn_fast.evaluation.agreement import Agreement, LabelledSplit, agreement
from mmn_fast.features import pre_clips
from mmn_fast.geometry import ProposalPlan, cover_with_tiles, plan_for
from mmn_fast.kernels.folding import folded_layers
from mmn_fast.kernels.gpu.conv.costs import TILES
from mmn_fast.kernels.gpu.conv.fourier import spectral_weights
from mmn_fast.kernels.gpu.fourier_ops import fourier_cells, fourier_tiles
from mmn_fast.kernels.reference import proposal_conv_packed
from mmn_fast.kernels.transforms import SPECTRAL_TILE, fourier
from mmn_fast.model import MMN, build_model
from mmn_fast.postprocess import fuse_scores

Conv = Callable[[Tensor, Sequence[Float32], Sequence[Float32], ProposalPlan], Tensor]
"""Maps [B, R_0, C_0] to [B, P, C]."""


def rounded(x: Tensor) -> Tensor:
    """Round to fp16; the result is float32."""
    return x.half().float()


def direct_fp16(x: Tensor, weights: Sequence[Float32], biases: Sequence[Float32], plan: ProposalPlan) -> Tensor:
    """Convolve directly: fp16 maps and weights, float32 sums and biases."""
    x = rounded(x)
    for number, layer in enumerate(plan.layers):
        one = ProposalPlan(plan.num_clips, plan.kernel, plan.mask, layer.cells, plan.inputs, (layer,))
        weight, bias = rounded(torch.from_numpy(weights[number])), torch.from_numpy(biases[number])
        x = rounded(proposal_conv_packed(x, [weight], [bias], one))
    return x


def fourier_fp16(
    x: Tensor,
    weights: Sequence[Float32],
    biases: Sequence[Float32],
    plan: ProposalPlan,
    tile: int = SPECTRAL_TILE,
) -> Tensor:
    """Convolve like `fourier.FourierProposalConv` in fp16."""
    transform = fourier(plan.kernel, tile)
    paired = 2 * transform.pairs
    x = x.transpose(0, 1).half().contiguous()
    for number, layer in enumerate(plan.layers):
        cover = cover_with_tiles(plan, number, transform.m)
        inputs, outputs = (torch.from_numpy(rows) for rows in (cover.inputs, cover.outputs))
        spectra = x.new_empty(transform.points_per_tile, len(inputs), *x.shape[1:])
        fourier_tiles(x, inputs, spectra)
        values = spectra.float().flatten(1, 2)  # [n * n, tiles B, C]
        points, scale = spectral_weights(torch.from_numpy(weights[number]), transform)
        planes = rounded(points)
        re, im, w_re, w_im = values[:paired:2], values[1:paired:2], planes[:paired:2], planes[1:paired:2]
        product = torch.empty(*values.shape[:2], planes.shape[2])
        product[:paired:2] = re @ w_re - im @ w_im
        product[1:paired:2] = re @ w_im + im @ w_re
        product[paired:] = values[paired:] @ planes[paired:]
        product = (product * scale).half().unflatten(1, spectra.shape[1:3])
        x = x.new_empty(len(layer.cells), x.shape[1], planes.shape[2])
        bias, cell_weights = torch.from_numpy(biases[number]), torch.from_numpy(layer.cell_weights)
        fourier_cells(product, outputs, bias, cell_weights, x)
    return x.transpose(0, 1).float()


class VideoBranch:
    """A model's video branch with another proposal convolution; the rest keeps the model's precision."""

    def __init__(self, net: MMN, conv: Conv) -> None:
        self._net, self._conv, self._plan = net, conv, plan_for(net.preset)
        state = {name: tensor.float().numpy() for name, tensor in net.state_dict().items()}
        self._weights, self._biases = folded_layers(state, net.preset.conv_layers)

    def __call__(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Encode pre-clips [B, T, D] into both embeddings [B, P, J], like `MMN.encode_video`."""
        rows, columns = torch.from_numpy(self._plan.inputs).long().unbind(1)
        inputs = self._net.moment_map(clips)[:, :, rows, columns].mT
        packed = self._conv(inputs.float(), self._weights, self._biases, self._plan).to(clips.dtype)
        heads = self._net.proposal_conv
        contrastive, iou = (
            torch.nn.functional.normalize(packed @ head.weight.flatten(1).T + head.bias, dim=-1)
            for head in (heads.conv1x1_contrastive, heads.conv1x1_iou)
        )
        return contrastive, iou


def fused_with(case: cases.GoldenCase, net: MMN, conv: Conv) -> list[Float32]:
    """Compute every video's fused scores [S, P]; all but the proposal convolution is float64."""
    with torch.inference_mode():
        clips = np.stack([pre_clips(video.features, case.preset, "features") for video in case.videos])
        embedded = zip(*VideoBranch(net, conv)(torch.from_numpy(clips).double()), strict=True)
        scores = [net.score(video, text) for video, text in zip(embedded, _texts(case, net), strict=True)]
    return [fuse_scores(contrastive.numpy(), iou.numpy(), case.preset) for contrastive, iou in scores]


def _texts(case: cases.GoldenCase, net: MMN) -> list[tuple[Tensor, Tensor]]:
    """Encode each video's sentences; the tubes of one video share their sentences."""
    found: dict[bytes, tuple[Tensor, Tensor]] = {}
    for video in case.videos:
        ids = torch.from_numpy(video.token_ids)
        if video.token_ids.tobytes() not in found:
            found[video.token_ids.tobytes()] = net.encode_text(ids, (ids != 0).sum(1))
    return [found[video.token_ids.tobytes()] for video in case.videos]


def exact(x: Tensor, weights: Sequence[Float32], biases: Sequence[Float32], plan: ProposalPlan) -> Tensor:
    """Convolve in float64."""
    to64 = [[torch.from_numpy(a).double() for a in arrays] for arrays in (weights, biases)]
    return proposal_conv_packed(x.double(), to64[0], to64[1], plan)


WAYS: dict[str, Conv] = {
    "direct": direct_fp16,
    **{name: partial(fourier_fp16, tile=tile) for name, tile in TILES.items()},
}


def demo_agreement(conv: Conv, split: LabelledSplit) -> Agreement:
    """Compare the demo model with this proposal convolution to the same model in float32."""
    engine, reference = (mmn_fast.load("demo", backend="torch", precision="fp32") for _ in range(2))
    net = cast(TorchBackend, engine._backend).net
    net.encode_video = VideoBranch(net, conv)  # type: ignore[method-assign]
    return agreement(engine, reference, split)


def errors(name: str, ways: Sequence[str] = tuple(WAYS)) -> dict[str, float]:
    """Largest error of a golden case's fused scores for each way: direct and by FFT tiles."""
    case = cases.load(name)
    net = build_model(case.preset, case.text, case.state()).double()
    expected = fused_with(case, net, exact)
    return {
        way: max(float(abs(a - b).max()) for a, b in zip(fused_with(case, net, WAYS[way]), expected, strict=True))
        for way in ways
    }


def main() -> None:
    """Print each case's errors; brackets hold their ratio to the direct error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=[*cases.SMALL, *cases.FULL], choices=[*cases.SMALL, *cases.FULL])
    parser.add_argument("--videos", type=int, default=0, help="of the demo's test split, instead of golden cases")
    options = parser.parse_args()
    if options.videos:
        split = draw_split(options.videos)
        for way, conv in WAYS.items():
            found = demo_agreement(conv, split)
            lost = ", ".join(f"{name} {100 * value:+.2f}" for name, value in found.recall_difference.items())
            print(f"demo, {found.num_sentences} sentences, {way} fp16: largest error {found.max_fused_difference:.1e}")
            print(f"  same best proposal {found.top1:.4f}; points of {lost}")
        return
    for name in options.cases:
        direct, *tiles = errors(name).items()
        ratios = "  ".join(f"{way} {error:.1e} ({error / direct[1]:.2f})" for way, error in tiles)
        print(f"{name:20} direct fp16 {direct[1]:.1e}  {ratios}", flush=True)


if __name__ == "__main__":
    main()
