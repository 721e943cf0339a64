"""The only tolerances of the tests, each with its reason. A row changes together with its reason."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Tolerance(NamedTuple):
    """Largest allowed difference, absolute or relative to the expected value, and why that much."""

    atol: float
    rtol: float
    reason: str


TOLERANCES: dict[tuple[str, str], Tolerance] = {
    ("scores_of_halves", "fp32"): Tolerance(
        2e-3, 0, "unit vectors rounded to float16, 2^-12 of each value, in a cosine, times 10 in a sigmoid of slope 1/4"
    ),
    ("packed_losses", "fp64"): Tolerance(0, 1e-12, "the same float64 terms, packed and on whole maps"),
    ("windows_through_the_host", "fp32"): Tolerance(
        0, 1e-5, "twins score embeddings in float32 sums of another order than pairs on the device"
    ),
    ("printed_scores", "fp32"): Tolerance(0, 1e-6, "float32 numbers, written as JSON and read again"),
    ("network_features", "fp32"): Tolerance(
        1e-5, 1e-5, "the same float32 sums, of 10,000 terms at most, in another batch; seen 4e-7"
    ),
    ("prepared_frame", "fp32"): Tolerance(
        1e-6, 1e-6, "equal pixels of 8 bits, scaled and normalised in float32 or float64; seen 2.4e-7"
    ),
    ("rendered_centre", "fp32"): Tolerance(
        5e-3, 0, "frame widths: a third of one pixel of 64, whose edges are drawn soft"
    ),
    ("shape_box_pixels", "fp32"): Tolerance(
        1.5, 0, "pixels of 256: edges are drawn soft, and a tip that covers a seventh of a pixel leaves no trace"
    ),
    ("pre_clips", "fp32"): Tolerance(
        1e-7, 2e-6, "against float64: a float32 norm of D squares and sums of at most 128 rows; seen 5e-7 relative"
    ),
    ("golden_maps", "fp64"): Tolerance(
        2e-6, 0, "float64 rounded to float32 at each seam, and truths stored as float32; seen 1.2e-7"
    ),
    ("golden_maps_iou", "fp64"): Tolerance(2e-6, 0, "as golden_maps; sigmoid(10 cosine) has a slope of 2.5"),
    ("golden_maps", "fp32"): Tolerance(
        2e-5, 0, "float32 sums of up to 12,800 terms in short chains, up to 8 layers; seen 5.1e-6 (charades_small)"
    ),
    ("golden_maps_iou", "fp32"): Tolerance(
        5e-5, 0, "as golden_maps, times 2.5, the slope of sigmoid(10 cosine); seen 7.2e-6 (charades_conv_small)"
    ),
    # PyTorch's float32 convolution on AVX2 adds a layer's n = k^2 C terms in one chain. Each partial sum is rounded to
    # 2^-24 of itself, which gives an error of sqrt(n) 2^-24 of the sum of absolute terms (Higham and Mary 2019, a bound
    # that fails with a small probability). The sum of absolute terms is sqrt(n) times as large as a sum of terms of
    # random sign. So a layer is off by up to n 2^-24 of its output: 7.6e-4 for 25 x 512 terms, more for larger kernels.
    ("torch_maps", "fp32"): Tolerance(
        7.6e-4,
        0,
        "12,800 x 2^-24, one chain of a layer's terms; seen 2.4e-4 (charades_small on AVX2), 1.5e-5 (AVX-512)",
    ),
    ("torch_maps_iou", "fp32"): Tolerance(
        1.9e-3, 0, "torch_maps times 2.5, the slope of sigmoid(10 cosine); seen 3.3e-4 (charades_small on AVX2)"
    ),
    ("golden_moments", "fp32"): Tolerance(1e-5, 1e-6, "float32 seconds up to some hundred, one rounding apart"),
    ("golden_recall", "fp32"): Tolerance(1e-6, 0, "counts divided once, in float32 by the official code"),
    ("golden_viou", "fp32"): Tolerance(
        1e-6, 0, "float32 by the official code: boxes of some hundred pixels, means of up to 300 frames; seen 1.8e-7"
    ),
    ("annotated_boxes", "fp64"): Tolerance(0, 1e-12, "corners become widths and corners again: two float64 roundings"),
    ("target_iou", "fp32"): Tolerance(1e-12, 6e-8, "differences of float64 sums, rounded once to float32"),
    ("score_ties", "fp32"): Tolerance(1e-5, 0, "scores closer than this may rank either way in two implementations"),
    ("proposal_conv_packed", "fp64"): Tolerance(1e-11, 1e-11, "the same products in float64 in another order"),
    ("proposal_conv", "direct"): Tolerance(
        3e-6, 0, "of the largest output, float32 sums of up to 24,300 terms a layer; seen 6e-7"
    ),
    ("proposal_conv", "fft"): Tolerance(3e-6, 0, "of the largest output; the transform is unitary; seen 8e-7"),
    ("proposal_conv", "winograd"): Tolerance(
        5e-5, 0, "of the largest output; the transforms' entries amplify float32 rounding; seen 1.5e-5 after 8 layers"
    ),
    ("proposal_conv", "fft-bf16x3"): Tolerance(
        1e-4, 0, "of the largest output; operands of 16 bits, 2^-17 of a product is lost; seen 4e-5 after 8 layers"
    ),
    ("proposal_conv", "fft-bf16x2"): Tolerance(
        3e-2, 0, "of the largest output; weights of 8 bits; seen 1.5e-2 after 8 layers"
    ),
    ("proposal_conv", "fft-bf16"): Tolerance(
        4e-2, 0, "of the largest output; spectra and weights of 8 bits; seen 2.1e-2 after 8 layers"
    ),
    ("proposal_conv", "direct-bf16"): Tolerance(
        1e-2, 0, "of the largest output; operands of 8 bits; seen 6e-3 after 8 layers"
    ),
    ("proposal_conv", "runs-bf16"): Tolerance(1e-2, 0, "as direct-bf16; seen 6e-3 after 8 layers"),
    ("gather_conv", "fp32"): Tolerance(
        1e-6, 0, "of the largest output, float32 sums of up to 784 terms a layer; seen 4.2e-7 after 8 layers (tacos)"
    ),
    ("gather_conv", "fp16"): Tolerance(
        2e-3, 0, "of the largest output; maps rounded to 11 bits after each of up to 8 layers; seen 1.1e-3 (tacos)"
    ),
    ("fourier_tiles", "fp32"): Tolerance(2e-7, 0, "float32 sums of 256 values near 1, over 256"),
    ("fourier_tiles", "fp16"): Tolerance(2e-7, 6e-4, "the same, rounded once to 11 bits"),
    ("fourier_tiles", "bf16"): Tolerance(2e-7, 4.1e-3, "the same, rounded once to 8 bits"),
    ("spectral_weights", "fp32"): Tolerance(
        1e-5, 1e-4, "over the weights' size; float32 sums of 25 of them of both signs, beside float64 rounded once"
    ),
    ("fourier_cells", "fp32"): Tolerance(2e-5, 0, "float32 sums of 256 values, up to 20"),
    ("fourier_cells", "fp16"): Tolerance(2e-5, 6e-4, "the same, rounded once to 11 bits"),
    ("fourier_cells", "bf16"): Tolerance(2e-5, 4.1e-3, "the same, rounded once to 8 bits"),
    ("fourier_conv", "fp32"): Tolerance(
        3e-6, 0, "of the largest output, as proposal_conv fft; sums of 256 and up to 260 terms"
    ),
    ("fourier_conv_deep", "fp32"): Tolerance(
        6e-6,
        0,
        "of the largest output, as fourier_conv after up to 8 layers; a tap left out is 1e-3; seen 3.1e-6 (tacos)",
    ),
    ("fourier_conv_deep", "fp16"): Tolerance(
        4e-3, 0, "as fourier_conv in fp16, after up to 8 layers; a tap left out is 1e-2"
    ),
    ("fourier_conv", "fp16"): Tolerance(
        4e-3, 0, "of the largest output; maps, spectra and weights of 11 bits; seen 6e-4 (one-cell)"
    ),
    ("fourier_simulated", "fp16"): Tolerance(
        1e-4, 0, "of the largest output; the same roundings, sums perhaps in another order; seen 0, the error is 3e-4"
    ),
    ("amx_products", "fp32"): Tolerance(
        1e-5, 0, "float32 chains of up to 900 products, over the root of k; a term left out is 1e-3; seen 6.0e-6"
    ),
    ("gpu_feature_pool", "fp32"): Tolerance(1e-7, 2e-6, "as pre_clips"),
    ("gpu_feature_pool", "fp16"): Tolerance(6e-8, 6e-4, "rounded once to 11 bits; subnormals below 6e-5 lose 2^-25"),
    ("gpu_feature_pool", "bf16"): Tolerance(1e-9, 4.1e-3, "rounded once to 8 bits"),
    ("gpu_elementwise", "fp32"): Tolerance(1e-6, 1e-6, "a few float32 operations on values near 1"),
    ("gpu_elementwise", "fp16"): Tolerance(1e-6, 6e-4, "the same, rounded once to 11 bits"),
    ("gpu_elementwise", "bf16"): Tolerance(1e-6, 4.1e-3, "the same, rounded once to 8 bits"),
    ("gpu_heads", "fp32"): Tolerance(1e-6, 1e-6, "a float32 norm of J squares"),
    ("gpu_heads", "fp16"): Tolerance(1e-6, 6e-4, "the same, rounded once to 11 bits"),
    ("gpu_heads", "bf16"): Tolerance(1e-6, 4.1e-3, "the same, rounded once to 8 bits"),
    ("gpu_backend", "fp32"): Tolerance(1e-4, 0, "the bound promised for fp32"),
    ("gpu_backend", "fp16"): Tolerance(1e-2, 0, "as torch_backend: another batch may take another order of sums"),
    ("gpu_fused", "fp32"): Tolerance(5e-6, 0, "match_scores, and a power whose slope is below 3 where it is tested"),
    ("match_scores", "fp32"): Tolerance(2e-6, 0, "float32 chains of J products of unit vectors, times 10 in sigmoid"),
    ("score_power", "fp32"): Tolerance(
        0, 1e-6, "NumPy's power and the kernel's, each within (2 + |p ln base|) 2^-23, base above 0.1"
    ),
    ("text_encoder", "fp32"): Tolerance(1e-5, 0, "float32 attention and sums in another order, unit-norm output"),
    ("native_text", "fp32"): Tolerance(
        2e-6, 0, "against float64, unit-norm output; the promise is 1e-5; seen 4.3e-7 (scores and gelus far out)"
    ),
    ("export_graph", "fp64"): Tolerance(
        2e-6,
        0,
        "the same sums in float64; folding BatchNorm rounds each weight to float32 once more; seen 5e-7",
    ),
    ("onnx_backend", "fp32"): Tolerance(2e-5, 0, "the promised bound for fp32; float32 sums in another order"),
    ("onnx_backend", "fp16"): Tolerance(2e-3, 0, "the promised bound for fp16, mixed with float32 where needed"),
    ("onnx_backend", "bf16"): Tolerance(1e-2, 0, "operands of 8 bits, mixed with float32 where needed"),
    ("golden_losses", "fp32"): Tolerance(0, 1e-5, "the promised bound: float32 means of some thousand terms"),
    ("golden_gradients", "fp32"): Tolerance(
        2e-7, 1e-5, "the promised bound; entries near 0 are float32 sums of terms of both signs, up to 0.3; seen 9e-8"
    ),
    ("losses", "fp64"): Tolerance(1e-11, 1e-11, "the same terms in float64, summed in another order"),
    ("torch_backend", "bf16"): Tolerance(6e-2, 0, "8 layers of operands of 8 bits; seen 4.0e-2 (charades_small)"),
    ("torch_backend", "fp16"): Tolerance(1e-2, 0, "8 layers of operands of 11 bits; seen 8.0e-3 (charades_small)"),
    ("unit_norm", "fp32"): Tolerance(1e-6, 0, "a float32 norm of J squares"),
    ("training_pass", "fp64"): Tolerance(
        1e-10, 1e-10, "float64 sums of up to 400,000 cells in another order, through 8 layers and back"
    ),
    ("training_parts", "fp32"): Tolerance(
        1e-6, 1e-5, "float32 means of some hundred terms, added part by part; the other weighing is 1e-3 away"
    ),
    ("distributed", "fp64"): Tolerance(1e-10, 1e-10, "float64 sums taken per process and then added"),
    ("video_file", "mean pixel"): Tolerance(
        1.5, 0, "of 255 steps: 8 bits of a smaller range round a colour by a step, H.264 at quality 4 adds little"
    ),
    ("video_file", "same moments"): Tolerance(
        0.15, 0, "share of sentences whose best moment changes with the pixels; 0.076 on 200 videos"
    ),
    ("threads", "fp32"): Tolerance(2e-6, 0, "PyTorch may split a sum differently over threads; unit-norm outputs"),
}


def check_close(
    actual: npt.ArrayLike, expected: npt.ArrayLike, op: str, precision: str = "fp32", what: str = ""
) -> None:
    """Compare two arrays; a failure states the largest difference and the reason of the tolerance."""
    tolerance = TOLERANCES[op, precision]
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    allowed = tolerance.atol + tolerance.rtol * np.abs(expected)
    worst = float((difference - allowed).max(initial=-np.inf))
    assert worst <= 0, (
        f"{what}: differs by {difference.max():.3g}, allowed {tolerance.atol:.3g} absolute and"
        f" {tolerance.rtol:.3g} relative ({tolerance.reason})"
    )
