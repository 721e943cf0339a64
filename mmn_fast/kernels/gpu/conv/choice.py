"""The proposal convolutions of a GPU engine, and the choice that "auto" makes among them."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial

import torch

from mmn_fast.buckets import VIDEO_BUCKETS
from mmn_fast.geometry import ProposalPlan
from mmn_fast.kernels.gpu.conv.block_sizes import Times, arch_of, measured_times
from mmn_fast.kernels.gpu.conv.costs import (
    ALGORITHMS,
    TILES,
    choose_layers,
    engine_algorithms,
    fastest_stack,
    not_timed,
    predicted_on,
)
from mmn_fast.kernels.gpu.conv.crop import ConvSettings, CropProposalConv, GpuProposalConv
from mmn_fast.kernels.gpu.conv.gather_schedule import MAX_TAPS
from mmn_fast.kernels.gpu.device import capability_of
from mmn_fast.kernels.transforms import SPECTRAL_TILES
from mmn_fast.precisions import precision_of

CONVS = {
    "auto": "the fastest measured way on this kind of GPU, crop unless every way was measured",
    "crop": "the library's convolutions, cropped to boxes of needed cells",
    "gather": "needed cells and taps alone, in Triton",
    "fft": "products of spectra of tiles; measured, else predicted times choose a side of 12, 16 or 24; fp16 and fp32",
    "mixed": "every layer by gather or by fft; the same times choose",
}
_MOST_KERNEL = {"gather": math.isqrt(MAX_TAPS), "fft": max(SPECTRAL_TILES), "mixed": math.isqrt(MAX_TAPS)}


def unavailable_reason(conv: str, dtype: torch.dtype, kernel: int, device: torch.device) -> str | None:
    """Why a proposal convolution cannot be taken, as a sentence; None if it can.

    Args:
        conv: a key of `CONVS`.
        dtype: dtype of the operands.
        kernel: k.
        device: the device that would run it.
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
    conv: str, settings: ConvSettings, buckets: Sequence[int] = VIDEO_BUCKETS, autotune: bool = False
) -> GpuProposalConv:
    """Make a proposal convolution.

    Args:
        conv: a key of `CONVS` for which `unavailable_reason` returns None.
        settings: the layers and their device.
        buckets: numbers of videos per call.
        autotune: "auto", "fft" and "mixed" measure missing times now, and each kernel measures its block sizes when a
            number of videos comes for the first time.
    """
    plan, dtype, device = settings.plan, settings.dtype, settings.device
    if conv == "auto" and unavailable_reason("gather", dtype, plan.kernel, device):
        conv = "crop"
    if conv == "crop":
        return CropProposalConv(settings)
    from mmn_fast.kernels.gpu.conv.autotune import Tuner
    from mmn_fast.kernels.gpu.conv.mixed import MixedProposalConv, make_stack

    tuner = Tuner(settings) if autotune else None
    configs = {name: partial(tuner.config_for, name) for name in ALGORITHMS} if tuner else {}
    if tuner and conv != "gather":
        tuner.measure(buckets)
    choices = layer_choices(conv, plan, settings.widths, dtype, device, buckets)
    if conv == "gather" or (choices and conv == "auto" and set().union(*choices.values()) == {"gather"}):
        return make_stack("gather", settings, configs.get("gather"))
    if choices is None:
        return CropProposalConv(settings)
    return MixedProposalConv(settings, choices, configs=configs, name="fft" if conv == "fft" else "mixed")


def layer_choices(
    conv: str,
    plan: ProposalPlan,
    widths: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    buckets: Sequence[int] = VIDEO_BUCKETS,
) -> dict[int, tuple[str, ...]] | None:
    """Choose the algorithm of every layer for every bucket of videos, from the times known now.

    Args:
        conv: a key of `CONVS`.
        plan: the needed cells and taps.
        widths: channels of the map and of every layer, L + 1.
        dtype: dtype of the operands.
        device: the device that will run it.
        buckets: some of `buckets.VIDEO_BUCKETS`.

    Returns:
        Bucket -> a name of `costs.ALGORITHMS` per layer. None if layers are not chosen: for "crop", "gather", and
        "auto" when it means the crop.
    """
    if conv in ("crop", "gather"):
        return None
    capability, precision = capability_of(device), precision_of(dtype)
    among: Collection[str] = TILES if conv == "fft" else engine_algorithms(plan, widths, precision)
    arch = arch_of(capability)

    def in_full(times: Times) -> bool:
        # An algorithm without a time may be the fastest, so an incomplete set decides nothing.
        return not not_timed(times, plan.kernel, precision)

    times = {bucket: measured_times(arch, plan, widths[-1], bucket, precision, in_full) for bucket in buckets}
    if conv == "auto":
        return measured_choices(times, among)
    known = {n: one or predicted_on(capability, plan, widths, n) for n, one in times.items()}
    return {n: choose_layers(one, among) for n, one in known.items()}


def measured_choices(
    times: Mapping[int, Times | None], among: Collection[str] = ALGORITHMS
) -> dict[int, tuple[str, ...]] | None:
    """Choose the fastest whole stack for each bucket of videos, if it beats the crop in every bucket.

    Args:
        times: bucket -> complete measured times, or None.
        among: algorithms that may be chosen.

    Returns:
        Bucket -> the algorithm of every layer. None if some bucket lacks complete times, or is faster with the crop.
    """
    choices = {}
    for videos, measured in times.items():
        if measured is None:
            return None
        choices[videos], stack_ms = fastest_stack(measured, among)
        if stack_ms >= sum(measured["crop"]):
            return None
    return choices


def spectral_values(choices: Mapping[int, Sequence[str]] | None, widths: Sequence[int]) -> int:
    """Number of spectral weights that these choices hold, without the channels that fill up whole blocks."""
    used = {(number, name) for names in (choices or {}).values() for number, name in enumerate(names) if name in TILES}
    return sum(TILES[name] ** 2 * widths[number] * widths[number + 1] for number, name in used)
