"""The proposal convolutions that a GPU engine can take, and which one "auto" means."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch

from mmn_fast.geometry import FloatArray, ProposalPlan
from mmn_fast.kernels.conv_transforms import SPECTRAL_TILE
from mmn_fast.kernels.gather_choices import Times, arch_of, measured_times
from mmn_fast.kernels.gather_schedule import MAX_TAPS
from mmn_fast.kernels.gpu_buckets import VIDEO_BUCKETS
from mmn_fast.kernels.gpu_conv_plan import SPECTRAL_PLANES, choose_layers, chosen_ms, predicted_on
from mmn_fast.kernels.gpu_device import capability_of, precision_of
from mmn_fast.kernels.gpu_video import CropProposalConv, GpuProposalConv
from mmn_fast.presets import Preset

CONVS = {
    "auto": "what was measured to be fastest on this kind of GPU, and crop where nothing was measured",
    "crop": "the library's convolutions, cropped to boxes of needed cells",
    "gather": "needed cells and taps alone, in Triton",
    "fft": "products of spectra of 16 x 16 tiles, in Triton; fp16 and fp32",
    "mixed": "every layer by gather or by fft, by times that were measured, else predicted",
}
# In fp16 each spectral value's rounding meets every cell of a tile, and averages out over channels alone: models of 48
# channels were beyond three times the error of fp16 operands (benchmarks/NOTES.md).
_SPECTRAL_CHANNELS = 128
_MOST_KERNEL = {"gather": math.isqrt(MAX_TAPS), "fft": SPECTRAL_TILE, "mixed": math.isqrt(MAX_TAPS)}


def unavailable_reason(conv: str, dtype: torch.dtype, kernel: int, device: torch.device) -> str | None:
    """Why a proposal convolution cannot be taken, as a sentence; None if it can.

    Args:
        conv: a key of `CONVS`.
        dtype: of operands.
        kernel: k.
        device: where it is to run.
    """
    if conv in ("auto", "crop"):
        return None
    if conv in ("fft", "mixed") and dtype is torch.bfloat16:
        return f"conv: expected auto, crop or gather in bf16, which is too coarse for spectra, got {conv!r}"
    most = _MOST_KERNEL[conv]
    if kernel > most:
        return f"conv: expected auto or crop for a kernel of {kernel}, got {conv!r}, which takes at most {most}"
    if importlib.util.find_spec("triton") is None:
        return f"conv: expected auto or crop without Triton (pip install triton), got {conv!r}"
    if device.type != "cuda":
        from triton import knobs

        if not knobs.runtime.interpret:
            return f"conv: expected auto or crop on device {str(device)!r}, got {conv!r}"
    return None


def make_conv(
    conv: str,
    weights: Sequence[FloatArray],
    biases: Sequence[FloatArray],
    plan: ProposalPlan,
    dtype: torch.dtype,
    device: torch.device,
    autotune: Sequence[int] = (),
) -> GpuProposalConv:
    """Make a proposal convolution.

    Args:
        conv: a key of `CONVS` for which `unavailable_reason` has none.
        weights: per layer float32 [C_out, C_in, k, k], BatchNorm folded.
        biases: per layer float32 [C_out].
        plan: which cells are needed.
        dtype: of operands.
        device: where to run.
        autotune: numbers of videos for which "auto" and "mixed" now measure what was not measured before; if there are
            any, "gather" and "fft" measure block sizes when a number of videos comes for the first time.
    """
    arguments = (weights, biases, plan, dtype, device)
    if conv == "auto" and unavailable_reason("gather", dtype, plan.kernel, device):
        conv = "crop"
    if conv == "crop":
        return CropProposalConv(*arguments)
    from mmn_fast.kernels.triton_conv import GatherProposalConv
    from mmn_fast.kernels.triton_fourier import FourierProposalConv
    from mmn_fast.kernels.triton_mixed import MixedProposalConv, spectral_layers
    from mmn_fast.kernels.triton_tuning import Tuner

    tuner = Tuner(*arguments) if autotune else None
    gather_config, fft_config = (partial(tuner.config_for, name) if tuner else None for name in ("gather", "fft"))
    if conv == "fft":
        return FourierProposalConv(*arguments, fft_config)
    gather = GatherProposalConv(*arguments, gather_config)
    if conv == "gather":
        return gather
    if tuner:
        tuner.measure(autotune)
    capability = capability_of(device)
    widths = [weights[0].shape[1], *map(len, biases)]
    spectra = dtype is not torch.float16 or min(widths) >= _SPECTRAL_CHANNELS
    width, precision = widths[-1], precision_of(dtype)
    times = {bucket: measured_times(arch_of(capability), plan, width, bucket, precision) for bucket in VIDEO_BUCKETS}
    choices = measured_choices(times, spectra)
    if conv == "auto" and choices is None:
        return CropProposalConv(*arguments)
    if conv == "mixed":
        known = {n: one or predicted_on(capability, plan, widths, n) for n, one in times.items()}
        choices = {n: choose_layers(one, spectra) for n, one in known.items()}
    assert choices is not None
    spectral = spectral_layers(choices)
    if conv == "auto" and not spectral:
        return gather
    fft = FourierProposalConv(*arguments, fft_config, spectral)
    return MixedProposalConv(*arguments, choices, {"gather": gather, "fft": fft})


def measured_choices(times: Mapping[int, Times | None], spectra: bool = True) -> dict[int, tuple[str, ...]] | None:
    """Per bucket of videos the fastest algorithm of every layer, if together they beat the crop for every bucket.

    Args:
        times: per bucket what was measured.
        spectra: whether "fft" may be chosen.

    Returns:
        None where a bucket was not measured, or the crop is faster for one.
    """
    choices = {}
    for videos, measured in times.items():
        if measured is None:
            return None
        choices[videos] = choose_layers(measured, spectra)
        if chosen_ms(measured, choices[videos]) >= sum(measured["crop"]):
            return None
    return choices


def spectral_values(conv: str, preset: Preset) -> int:
    """Values of the spectral weights that a proposal convolution holds at most, for the count of memory."""
    if conv not in ("fft", "mixed"):
        return 0
    channels = preset.hidden_size + (preset.conv_layers - 1) * preset.conv_hidden_size
    return SPECTRAL_PLANES * channels * preset.conv_hidden_size
