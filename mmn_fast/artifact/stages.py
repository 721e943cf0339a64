"""Stages of the video graph that an fp16 or bf16 export computes in float32. Needs no torch.

The cost of rounding to 11 bits differs between models. Small random models lose 4e-3 to 1.2e-2 of a score or overflow,
mostly in the last half of the convolutions; a learned map's values may be too large for fp16.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmn_fast.presets import Preset

CLIP_POOL, SPARSE_MAX_POOL, HEADS = "clip_pool", "sparse_max_pool", "heads"


def conv_stages(preset: Preset) -> tuple[str, ...]:
    """The layers of the proposal convolution."""
    return tuple(f"proposal_conv.{number}" for number in range(preset.conv_layers))


def stages(preset: Preset) -> tuple[str, ...]:
    """The parts of the video graph that have weights, in the order of data; a learned `sparse_max_pool` is a part."""
    learned = (SPARSE_MAX_POOL,) if preset.pooling == "conv" else ()
    return CLIP_POOL, *learned, *conv_stages(preset), HEADS


def attempts(preset: Preset, precision: str) -> list[tuple[str, ...]]:
    """The sets of float32 stages that an export tries in turn, until one verifies.

    Args:
        preset: gives the stages.
        precision: "fp32", "fp16" or "bf16".

    Returns:
        For fp16 and bf16: no stage; then all but the second to the middle layer of the convolution; then all but the
        second layer. At least one stage stays narrow. For fp32: no stage, because all are float32 anyway.
    """
    found: list[tuple[str, ...]] = [()]
    if precision != "fp32":
        convs = conv_stages(preset)
        for kept in (convs[1 : len(convs) // 2], convs[1:2]):
            wide = tuple(stage for stage in stages(preset) if stage not in kept)
            if kept and wide not in found:
                found.append(wide)
    return found


def listed(fp32_stages: Sequence[str]) -> str:
    """List stages as words of a sentence."""
    return f"{', '.join(fp32_stages[:-1])} and {fp32_stages[-1]}"
