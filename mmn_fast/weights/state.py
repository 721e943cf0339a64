"""A model's weights by their official names: lists the names and shapes, and checks weights against a preset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mmn_fast.errors import InputError
from mmn_fast.geometry import pool_steps
from mmn_fast.presets import PRESETS, Preset, TextEncoderConfig

State = dict[str, npt.NDArray[Any]]
Shape = tuple[int, ...]

BERT = "text_encoder.bert."
"""Prefix of the names of the text encoder's transformer."""


def state_shapes(preset: Preset, text: TextEncoderConfig) -> dict[str, Shape]:
    """Official state-dict keys of a model's parameters and statistics, with their shapes.

    `num_batches_tracked` is left out: inference does not read it, and not every checkpoint has it.
    """
    hidden, width, joint, k = preset.hidden_size, preset.conv_hidden_size, preset.joint_size, preset.conv_kernel
    shapes: dict[str, Shape] = {}

    def add(name: str, *weight: int) -> None:
        shapes[f"{name}.weight"] = weight
        shapes[f"{name}.bias"] = weight[:1]

    add("featpool.conv", hidden, preset.input_size, 1)
    if preset.pooling == "conv":
        for number, (kernel, _) in enumerate(pool_steps(preset.pooling_counts)):
            add(f"feat2d.convs.{number}", hidden, hidden, kernel)
    for layer in range(preset.conv_layers):
        add(f"proposal_conv.convs.{layer}", width, width if layer else hidden, k, k)
        add(f"proposal_conv.bn.{layer}", width)
        shapes[f"proposal_conv.bn.{layer}.running_mean"] = (width,)
        shapes[f"proposal_conv.bn.{layer}.running_var"] = (width,)
    add("proposal_conv.conv1x1_iou", joint, width, 1, 1)
    add("proposal_conv.conv1x1_contrastive", joint, width, 1, 1)

    shapes[f"{BERT}embeddings.word_embeddings.weight"] = (text.vocab_size, text.width)
    shapes[f"{BERT}embeddings.position_embeddings.weight"] = (text.max_tokens, text.width)
    add(f"{BERT}embeddings.LayerNorm", text.width)
    for layer in range(text.num_layers):
        block = f"{BERT}transformer.layer.{layer}"
        for name in ("q_lin", "k_lin", "v_lin", "out_lin"):
            add(f"{block}.attention.{name}", text.width, text.width)
        add(f"{block}.sa_layer_norm", text.width)
        add(f"{block}.ffn.lin1", text.ffn_width, text.width)
        add(f"{block}.ffn.lin2", text.width, text.ffn_width)
        add(f"{block}.output_layer_norm", text.width)
    add("text_encoder.layernorm", text.width)
    add("text_encoder.fc_out1", joint, text.width)
    add("text_encoder.fc_out2", joint, text.width)
    return shapes


def check_state(state: Mapping[str, npt.NDArray[Any]], preset: Preset, text: TextEncoderConfig, where: str) -> None:
    """Refuse weights that do not fit the preset's model.

    Args:
        state: arrays under official keys.
        preset: the expected preset.
        text: sizes of the text encoder.
        where: name of the weights' source in the message.

    Raises:
        InputError: a key is missing or unknown, a shape differs, or a value is not finite. The message names the key,
            and the preset with the given shape if there is one.
    """
    expected = state_shapes(preset, text)
    others = [
        other.name
        for other in PRESETS.values()
        if _video_shapes(state) == {k: s for k, s in state_shapes(other, text).items() if not k.startswith("text_")}
    ]
    hint = f"; these weights are of the sizes of {' and '.join(map(repr, others))}" if others else ""
    for name, shape in expected.items():
        if name in state and state[name].shape != shape:
            owners = [p.name for p in PRESETS.values() if state_shapes(p, text).get(name) == state[name].shape]
            if owners and not others:
                hint = f"; this width belongs to {' and '.join(map(repr, owners))}"
            raise InputError(
                f"{where}: {name} is {list(state[name].shape)}, preset {preset.name!r} expects {list(shape)}{hint}"
            )
    problems = []
    for label, names in (("missing", expected.keys() - state.keys()), ("unexpected", state.keys() - expected.keys())):
        if names:
            first = sorted(names)
            more = f" and {len(first) - 4} more" if len(first) > 4 else ""
            problems.append(f"{label} {'key' if len(first) == 1 else 'keys'} {', '.join(first[:4])}{more}")
    if problems:
        raise InputError(f"{where}: {'; '.join(problems)} (for preset {preset.name!r}){hint}")
    for name, array in state.items():
        if not np.isfinite(array).all():
            raise InputError(f"{where}: {name} holds NaN or infinite values")


def _video_shapes(state: Mapping[str, npt.NDArray[Any]]) -> dict[str, Shape]:
    return {name: array.shape for name, array in state.items() if not name.startswith("text_")}
