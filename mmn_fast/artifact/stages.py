"""Which stages of the video graph an fp16 or bf16 export computes in float32. Needs no torch.

What rounding to 11 bits costs differs between models: small random ones lose 4e-3 to 1.2e-2 of a score or overflow,
most of it in the last half of the convolutions; a learned map's values may be too large for fp16.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmn_fast.presets import Preset

CLIP_POOL, SPARSE_MAX_POOL, HEADS = "clip_pool", "sparse_max_pool", "heads"


def conv_stages(preset: Preset) -> tuple[str, ...]:
    """The layers of the proposal convolution."""
    return tuple(f"proposal_conv.{number}" for number in range(preset.conv_layers))


def stages(preset: Preset) -> tuple[str, ...]:
    """The parts of the video graph that have weights, in the order of data; a learned `sparse_max_pool` has."""
    learned = (SPARSE_MAX_POOL,) if preset.pooling == "conv" else ()
    return CLIP_POOL, *learned, *conv_stages(preset), HEADS


def attempts(preset: Preset, precision: str) -> list[tuple[str, ...]]:
    """The sets of stages in float32 that an export tries, until one verifies.

    Args:
        preset: gives the stages.
        precision: "fp32", "fp16" or "bf16".

    Returns:
        For fp16 and bf16: none; then all but the second to the middle layer of the convolution; then all but the second
        layer. One stage at least stays narrow. For fp32: none, all are.
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
    """Stages as words of a sentence."""
    return f"{', '.join(fp32_stages[:-1])} and {fp32_stages[-1]}"
